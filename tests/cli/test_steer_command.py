"""``fastzoo steer`` on the embedded model: sweep, scores, window, report; and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from chat_server import Server, completion, running_server, score
from hub_server import ROOT
from typer.testing import CliRunner
from zoo_folders import train_small

from fastzoo.cli.arguments import spread
from fastzoo.cli.main import app
from fastzoo.core.errors import AccessError, DataError, FastzooError, HubError, InputError, OutputError

NAME = "tiny-chat-L1-2x-jumprelu"


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(train_small(tmp_path_factory.mktemp("steer") / "run") / NAME)


def steer(sae: str, *arguments: str) -> Any:
    """What the command prints as JSON."""
    line = spread(["steer", sae, *arguments, "--max-new-tokens", "30", "--json"])
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def test_numbers_after_one_option() -> None:
    line = "steer x --alpha 0 -1.5 2e1 --latent 3 4 --auto --alpha=7 -- --alpha 1".split()
    expected = "steer x --alpha=0 --alpha=-1.5 --alpha=2e1 --latent=3 --latent=4 --auto --alpha=7 --"
    assert spread(line) == [*expected.split(), "--alpha=1"]
    assert spread(["steer", "--alpha"]) == ["steer", "--alpha"]


def test_every_setting_is_an_option_or_an_argument() -> None:
    from fastzoo.steering.settings import SteerSettings

    shown = CliRunner().invoke(app, ["steer", "--help"], env={"COLUMNS": "100"}).stdout
    for setting in fields(SteerSettings):
        names = setting.metadata.get("names") or ("--" + setting.name.replace("_", "-"),)
        assert re.search(rf"^ +{names[0]}\b|^ +{setting.name.upper()}", shown, re.M | re.I), names
        if setting.metadata:
            assert setting.metadata["help"].split()[0] in shown
    chosen = SteerSettings(source="x")
    assert chosen.alphas == [] and chosen.mode == "add" and chosen.max_new_tokens == 200
    assert SteerSettings(source="x", concept="le, la,").words == ["le", "la"]


def test_a_sweep_with_everything(sae: str, tmp_path: Path) -> None:
    page, saved = tmp_path / "report.html", tmp_path / "cells.json"
    alphas = ("--alpha", "0", "0.5", "3", "--units", "norm")
    more = ("--html", str(page), "--save", str(saved), "--concept", "le, la", "--wish", "Say le.")
    report = steer(sae, "--latent", "5", *alphas, *more)
    assert json.loads(saved.read_text()) == report
    assert report["alphas"] == [0, 0.5, 3] and report["latents"] == [5] and report["units"] == "norm"
    assert len(report["questions"]) == 24 and len(report["cells"]) == 24 * (3 + 3 + 1)
    by = {(c["arm"], c["question"], c["alpha"]): c for c in report["cells"]}
    for question in range(24):
        free = by["latent", question, 0]
        assert free["ids"] == by["random", question, 0]["ids"]
        assert free["scores"]["kept"] == 1 and not free["scores"]["degenerate"], free["text"]
    # Three times the residual stream's length is too much for any answer.
    assert all(by["latent", q, 3]["scores"]["degenerate"] for q in range(24))
    assert all(by["random", q, 3]["scores"]["degenerate"] for q in range(24))
    spot = report["sweet_spot"]
    assert spot["alphas"] == [0, 0.5, 3] and set(spot["controls"]) == {"random", "prompt"}
    assert spot["low"] is None or 0 < spot["low"] <= spot["high"] < 3
    assert len(report["writes"]["5"]) == 8 and report["residual_norm"] > 1

    text = page.read_text(encoding="utf-8")
    links: list[str] = []
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            tags.append(tag)
            links.extend(v for k, v in attrs if k in ("src", "href") and not v.startswith("#"))

    Reader().feed(text)
    assert links == [] and "script" not in tags and tags.count("svg") == 1 and "mark" in tags
    # A second run writes the same page.
    other = tmp_path / "again.html"
    steer(sae, "--latent", "5", *alphas, "--html", str(other), *more[4:])
    assert other.read_text(encoding="utf-8") == text


def test_what_models_say_is_no_markup(tmp_path: Path) -> None:
    from fastzoo.data.dialogues import Dialogue
    from fastzoo.steering.outcome import Outcome
    from fastzoo.steering.questions import Question
    from fastzoo.steering.report import render_report
    from fastzoo.steering.scoring.degenerate import Answer
    from fastzoo.steering.scoring.scores import Cell, score_cell

    hostile = "<script>alert(1)</script> <img src=x onerror=alert(1)> {{ 7 * 7 }} </div>"

    class Tokenizer:
        def decode(self, ids: Any, **how: Any) -> str:
            return hostile

    cell = Cell(0, 0.0, (1, 2, 3), True, hostile)
    score = score_cell(cell, cell.ids, None, hostile, cell.ids)
    about = {
        "sae": hostile,
        "base_model": {"name": hostile},
        "layer": 1,
        "latents": [1],
        "writes": {1: [hostile]},
        "special_tokens": {1: [hostile]},
        "mode": "add",
        "units": "raw",
        "positions": "all",
        "wish": hostile,
        "definitions": {},
    }
    question = Question(Dialogue([{"role": "user", "content": hostile}]))
    outcome = Outcome(about, [question], [cell], [score], None, Tokenizer(), None, [])
    page = render_report(outcome)
    assert "<script" not in page and "<img" not in page and "{{ 7 * 7 }}" in page
    assert Answer(hostile, cell.ids, True).fault is None


def test_pieces_of_an_answer_are_whole_characters() -> None:
    from fastzoo.steering.report import parts
    from fastzoo.steering.scoring.scores import Cell

    class Bytes:
        def decode(self, ids: Any, **how: Any) -> str:
            return bytes(ids).decode(errors="replace")

    text = "né là, né là, né là\x1b"
    cell = Cell(0, 0.0, tuple(text.encode()), True, text)
    pieces = parts(cell, Bytes())
    assert "".join(piece for piece, _ in pieces) == text.replace("\x1b", "␛")
    # The second "né là" begins in the middle of what stood before; all of it is marked.
    assert [marked for _, marked in pieces] == [False, True, False]
    # Cut in the middle of a character, which one of the pieces has.
    for end in range(1, len(cell.ids)):
        short = Cell(0, 0.0, cell.ids[:end], True, "")
        assert "".join(piece for piece, _ in parts(short, Bytes())) == Bytes().decode(short.ids)


@pytest.fixture(scope="module")
def judge() -> Iterator[Server]:
    with running_server() as server:
        yield server


ASKED = ("Hi there!", "What is red?", "--latent", "5", "--alpha", "0", "3", "--units", "norm")


def test_a_judges_ratings_are_shown(
    sae: str, judge: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    judge.answer = lambda p: score(2) if "able writer" in p else completion("Well ...")
    page = tmp_path / "page.html"
    line = ("--judge-url", judge.url, "--judge", "m", "--html", str(page), "--language", "fr")
    report = steer(sae, *ASKED, *line)
    wanted = {"concept": None, "instruction": None, "fluency": 2, "overall": None}
    assert [cell["judge"] for cell in report["cells"]] == [wanted] * len(report["cells"])
    assert "judge" in report["definitions"] and report["judge"] == f"m at {judge.url}"
    assert report["wish"] == "Answer in French." and any("French" in p for p in judge.prompts)
    text = page.read_text(encoding="utf-8")
    assert f"Ratings by m at {judge.url}" in text and "rated —, —, 2" in text


def test_a_judge_that_fails_costs_no_answer(
    sae: str, judge: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    judge.requests.clear()
    turns = itertools.count()

    def answer(prompt: str) -> Any:
        if next(turns) < 6:  # the first is the check
            return score(1)
        time.sleep(0.5)  # the replies before are through
        return 400, "no more", {}

    judge.answer = answer
    saved, cache = tmp_path / "cells.json", tmp_path / "replies.jsonl"
    line = spread(["steer", sae, *ASKED, "--max-new-tokens", "8", "--save", str(saved)])
    line += ["--judge-cache", str(cache)]
    result = CliRunner().invoke(app, [*line, "--judge-url", judge.url])
    assert isinstance(result.exception, HubError) and "no more" in str(result.exception)
    cells = json.loads(saved.read_text())["cells"]
    assert len(cells) == 2 * 5 and all(cell["text"] is not None for cell in cells)
    ratings = [value for cell in cells for value in cell["judge"].values()]
    assert ratings.count(1) >= 5 and None in ratings
    # All of it is on stdout, in lines of 80 columns.
    tables = result.stdout[result.stdout.index("arm ") :].splitlines()
    assert "instruction" in result.stdout and "latent 5: " in tables[-1]
    assert max(map(len, tables[:-1])) <= 80 and "did not rate all" in result.stderr
    # What was rated is kept, and not asked again.
    known = len(cache.read_text().splitlines())
    judge.requests.clear()
    judge.answer = lambda p: score(1)
    result = CliRunner().invoke(app, [*line, "--judge-url", judge.url, "--json"])
    ratings = [v for cell in json.loads(result.stdout)["cells"] for v in cell["judge"].values()]
    assert result.exit_code == 0 and set(ratings) == {1}
    everything = len(cache.read_text().splitlines())
    assert 0 < known < everything and len(judge.requests) == 1 + everything - known
    # One that does not answer at all is found before anything is written.
    saved.unlink()
    judge.answer = lambda p: (401, "who?", {})
    result = CliRunner().invoke(app, [*line, "--judge-url", judge.url])
    assert isinstance(result.exception, AccessError) and result.stdout == ""
    assert not saved.exists()


def test_an_output_that_cannot_be_is_found_first(sae: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe", "no/such", "x" * 300):
        for option in ("--save", "--html"):
            started = ["steer", "no-such-sae", "--auto", option, str(tmp_path / name)]
            error = CliRunner().invoke(app, started).exception
            assert isinstance(error, OutputError) and "cannot be written" in str(error)
    same = ["--save", str(tmp_path / "a"), "--html", str(tmp_path / "folder" / ".." / "a")]
    error = CliRunner().invoke(app, ["steer", "no-such-sae", "--auto", *same]).exception
    assert isinstance(error, InputError) and "the same file" in str(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_progress_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastzoo.cli.steer_tables import LiveAnswers
    from fastzoo.steering.generate import GenerationSettings
    from fastzoo.steering.sweep import Sweep

    monkeypatch.setattr("fastzoo.core.progress.LINE_SECONDS", 0.0)
    model: Any = None
    sweep = Sweep(model, None, model, 1, [1], [[], []], [0.0, 1.0], settings=GenerationSettings(4))
    with LiveAnswers(sweep) as told:
        for _ in range(2):
            told([(row, 7) for row in range(4)])
        told([(0, 7)])  # the other three have ended
        told([(row, 7) for row in range(4, 8)])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("%  ")[1].split("  ")[0] for line in lines] == [
        f"{n} of 8 answers" for n in (1, 2, 3, 5)
    ]


def test_latents_are_found_or_said_not_to_be(sae: str) -> None:
    report = steer(sae, "--auto", "--dialogues", "60", "--alpha", "0", "0.4", "--units", "norm")
    scores = [entry["score"] for entry in report["candidates"]]
    assert scores == sorted(scores, reverse=True) and 1 <= len(scores) <= 8
    assert report["latents"] == [report["candidates"][0]["latent"]]
    spot = report["sweet_spot"]
    assert spot["best"] == 0.4 or (spot["best"] is None and spot["reason"])
    given = steer(sae, "--auto", "--latent", "5", "6", "--alpha", "0", "0.4", "--units", "norm")
    assert {entry["latent"] for entry in given["candidates"]} == {5, 6}
    one = steer(sae, "Hello there, who are you?", "--latent", "5", "--alpha", "4")
    assert one["alphas"] == [0, 4] and one["units"] == "raw"
    assert one["sweet_spot"]["best"] is None and "1 question" in one["sweet_spot"]["reason"]


def test_latents_of_special_tokens_are_tried(sae: str) -> None:
    few = ("--dialogues", "20", "--alpha", "0.5", "--units", "norm")
    found = steer(sae, "Hello!", "How are you?", "--auto", "--special", *few)
    features = CliRunner().invoke(app, ["features", sae, "--dialogues", "20", "--json"])
    (special,) = json.loads(features.stdout)["saes"].values()
    fires_on: dict[int, list[str]] = {}
    for entry in special["tokens"]:
        for latent in entry["latents"]:
            fires_on.setdefault(latent["latent"], []).append(entry["token"])
    for entry in found["candidates"]:
        assert entry["special_tokens"] == fires_on[entry["latent"]]
    best = found["latents"][0]
    assert found["special_tokens"] == {str(best): fires_on[best]}


def test_roles_are_positions(sae: str) -> None:
    asked = (sae, "Hello!", "--latent", "5", "--alpha", "0", "2", "--units", "norm")
    by = {where: steer(*asked, "--positions", where) for where in ("all", "user", "assistant")}
    answers = {
        where: [cell["ids"] for cell in report["cells"] if cell["arm"] == "latent"]
        for where, report in by.items()
    }
    assert answers["all"][0] == answers["user"][0] == answers["assistant"][0]
    assert answers["all"][1] != answers["user"][1] != answers["assistant"][1]


def test_other_modes_and_samples(sae: str) -> None:
    clamped = steer(sae, "Tell me of cats.", "--latent", "5", "--mode", "clamp", "--alpha", "0", "90")
    assert {c["arm"] for c in clamped["cells"]} == {"latent", "prompt"}
    # What is clamped to 0 is compared with the answer that is not steered at all.
    doubled = ("--latent", "5", "--mode", "scale", "--alpha", "1", "2")
    scaled = steer(sae, "Tell me of cats.", *doubled)["cells"]
    report = steer(sae, "Tell me of cats.", "--latent", "5", "--alpha", "0", "1", "--concept", "arr, ahoy")
    plain = report["cells"][0]
    assert report["wish"] == "Use words such as these in your answer: arr, ahoy."
    by = {c["alpha"]: c for c in scaled if c["arm"] == "latent"}
    assert by[1]["ids"] == plain["ids"] and by[1]["scores"]["kept"] == 1
    zero = next(c for c in clamped["cells"] if c["arm"] == "latent" and c["alpha"] == 0)
    assert (zero["scores"]["kept"] == 1) == (zero["ids"] == plain["ids"])
    assert clamped["sweet_spot"] is None
    drawn = [
        steer(sae, "Tell me of cats.", "--latent", "5", "--alpha", "1", "--temperature", "3", *seed)
        for seed in (("--seed", "1"), ("--seed", "1"), ("--seed", "2"))
    ]
    assert drawn[0]["cells"] == drawn[1]["cells"] != drawn[2]["cells"]


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (("--alpha", "1"), InputError, "--latent, or let --auto"),
        (("--latent", "9999", "--alpha", "1"), InputError, "latent 9999: .* has 256 latents"),
        (("--latent", "1"), FastzooError, ""),
        (("--latent", "1", "--units", "raw"), InputError, "say which alphas"),
        (("--latent", "1", "--special", "--alpha", "1"), InputError, "--special goes with --auto"),
        (("--auto", "--mode", "scale", "--alpha", "1"), InputError, "--auto finds latents to add"),
        (("--latent", "1", "--mode", "push", "--alpha", "1"), InputError, "mode 'push'"),
        (("--latent", "1", "--positions", "some", "--alpha", "1"), InputError, "--positions 'some'"),
        (("--latent", "1", "--alpha", "1", "--questions", "gone.txt"), InputError, "gone.txt"),
        (("--latent", "1", "--alpha", "nan"), InputError, "finite"),
        (("", "--latent", "1", "--alpha", "1"), InputError, "a question is empty"),
        (("--latent", "1", "--alpha", "1", "--language", "xx"), InputError, "xx"),
        (("--latent", "1", "--alpha", "1", "--html", "no/such/x.html"), OutputError, "no/such"),
        (("--latent", "1", "--alpha", "1", "--judge-url", "ftp://x"), InputError, "ftp://x"),
        (("--latent", "1", "--alpha", "1", "--judge-cache", "x"), InputError, "--judge-cache goes"),
        (("--latent", "1", "--alpha", "1", "--judge", ""), InputError, "--judge: nothing"),
        (("--latent", "1", "--alpha", "1", "--concept", ","), InputError, "--concept: nothing"),
        (("--latent", "1", "--alpha", "1", "--concept", "le,+"), InputError, "'\\+' has no word"),
        (("--latent", "1", "--mode", "scale"), InputError, "--mode scale: say which values"),
        (("--latent", "1", "--alpha", "1", "x" * 30_000), DataError, "question 1: 30000 char"),
    ],
)
def test_what_is_refused(sae: str, arguments: tuple[str, ...], kind: type[FastzooError], says: str) -> None:
    result = CliRunner().invoke(app, spread(["steer", sae, *arguments, "--max-new-tokens", "2"]))
    if arguments == ("--latent", "1"):  # the embedded model has alphas by default
        assert result.exit_code == 0 and "window" in result.stdout
        return
    with pytest.raises(kind, match=says):
        assert result.exception is not None, result.output
        raise result.exception


def test_on_the_terminal(sae: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fastzoo.cli.main", "steer", sae, "Hi!", "What is red?"),
            *("--latent", "5", "--alpha", "0", "3", "--units", "norm", "--max-new-tokens", "20"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("> ")] == ["> Hi!", "> What is red?"]
    assert any(line.startswith("random ") for line in lines) and "latent 5: " in lines[-1]
