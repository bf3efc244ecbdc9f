"""Rows of `fastzoo list`, and what `fastzoo info` adds: this machine, the registry, the paper."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from examples import NAME, OUTSIDE, published, registry
from examples import example as example_record
from typer.testing import CliRunner

from fastzoo.cli.listing import KEYS, column_key, list_rows, pick, sort_rows, table
from fastzoo.cli.main import app
from fastzoo.core.errors import InputError
from fastzoo.core.tables import print_table
from fastzoo.hub.client import state_folder
from fastzoo.hub.registry import FILE
from fastzoo.results.figures import column_shown
from fastzoo.results.table import MEASURED, ResultRow, result_row
from fastzoo.saes.names import zoo_names
from fastzoo.saes.paper import paper_figures

HERE = "tiny-chat-L1-8x-jumprelu"
FIGURES = {
    "l0": 31.5,
    "log2_mse": -8.5,
    "fvu": 0.0625,
    "dead_latents": 12,
    "base_model": "Qwen/Qwen2.5-7B-Instruct",
}
PUBLISHED = registry(
    "org",
    published(NAME, **FIGURES),
    published(OUTSIDE, l0="not a number", log2_mse=-1, unknown_column=3),
    published(HERE, l0=1.0, log2_mse=-2.0),
)


def make_local(folder: Path, name: str, l0: float = 7.0) -> Path:
    """The records of an SAE on this machine; no weights."""
    record, figures = example_record()
    record["name"] = figures["name"] = name
    figures["metrics"]["l0"]["all"]["value"] = l0
    figures["metrics"]["l0"]["without_sinks"]["value"] = l0
    path = folder / name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(record))
    (path / "metrics.json").write_text(json.dumps(figures))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> list[ResultRow]:
    make_local(tmp_path, HERE)
    make_local(tmp_path / "b", "model-L3-8x-jumprelu", l0=9.0)
    make_local(tmp_path / "a", "model-L3-8x-jumprelu", l0=8.0)
    return list_rows(PUBLISHED, tmp_path)


def by_name(rows: list[ResultRow], name: str) -> ResultRow:
    (row,) = [row for row in rows if row["name"] == name]
    return row


def test_one_row_per_name_and_folder(rows: list[ResultRow], tmp_path: Path) -> None:
    assert all(list(row) == list(KEYS) for row in rows)
    assert len(rows) == 240 + 1 + 1 + 2
    words = ["both" if r["name"] == HERE else "local" for r in rows[:3]]
    assert [row["status"] for row in rows[:5]] == [*words, "published", "published"]
    assert {row["status"] for row in rows[5:]} == {"paper"}
    grid = [row["name"] for row in rows if row["status"] == "paper"]
    assert grid == [str(name) for name in zoo_names() if str(name) != NAME]

    twice = [row for row in rows if row["name"] == "model-L3-8x-jumprelu"]
    assert [row["l0"] for row in twice] == [8.0, 9.0]
    assert [row["path"] for row in twice] == [str(tmp_path / x / "model-L3-8x-jumprelu") for x in "ab"]
    both = by_name(rows, HERE)
    assert (both["status"], both["repo"], both["revision"]) == ("both", f"org/{HERE}", "c" * 40)
    assert both["l0"] == 7.0  # that of the folder

    there = by_name(rows, NAME)
    assert there["path"] is None and there["repo"] == f"org/{NAME}"
    assert {key: there[key] for key in FIGURES} == FIGURES
    odd = by_name(rows, OUTSIDE)
    assert odd["l0"] is None and odd["log2_mse"] == -1.0 and odd["paper_log2_mse"] is None


def test_the_papers_figures_are_never_among_ours(rows: list[ResultRow]) -> None:
    for row in rows:
        if row["status"] == "paper":
            assert all(row[column.name] is None for column in MEASURED)
    for name, paper in paper_figures().items():
        row = by_name(rows, str(name))
        assert row["paper_log2_mse"] == paper.log2_mse
        assert row["paper_log2_mse_special"] == paper.log2_mse_special


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({"model": ["qwen2.5-7b"]}, 30),
        ({"model": ["Qwen/Qwen2.5-7B-Instruct"], "layer": ["18"]}, 6),
        ({"model": ["llama-*"], "method": ["FAST"]}, 10 + 12 + 12),
        ({"expansion": ["16x"], "layer": ["9", "32"]}, 6 + 6),
        ({"architecture": ["topk"]}, 1),
        ({"architecture": ["topk"], "layer": ["18"]}, 0),
    ],
)
def test_picking(rows: list[ResultRow], wanted: dict[str, list[str]], count: int) -> None:
    assert len(pick(rows, wanted)) == count


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model", "qwen2.5-7", "Did you mean qwen2.5-7b"),
        ("layer", "99", "There are 1, 3, 4, 9, 12,"),
        ("architecture", "jumprelo", "Did you mean jumprelu"),
        ("method", "btf", "Did you mean bt-f"),
        ("expansion", "seven", "There are 8, 16."),
    ],
)
def test_what_no_sae_has(rows: list[ResultRow], key: str, value: str, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--{key}: no SAE has '{value}'")) as caught:
        pick(rows, {key: [value]})
    assert says in str(caught.value)


def test_sorting_puts_missing_values_last(rows: list[ResultRow]) -> None:
    for key in KEYS:
        for descending in (False, True):
            found = sort_rows(rows, key, descending=descending)
            cells: list[Any] = [row[column_shown(row, key)] for row in found]
            values = [cell for cell in cells if cell is not None]
            assert values == sorted(values, reverse=descending)
            assert cells[len(values) :] == [None] * (len(rows) - len(values))
            assert len(found) == len(rows)
    assert column_key("L0") == "l0" and column_key("log2-MSE") == "log2_mse"
    with pytest.raises(InputError, match=r"no column 'lg2_mse'\. Did you mean log2_mse"):
        column_key("lg2_mse")


@pytest.mark.parametrize("width", [20, 60, 80, 120, None])
def test_the_table_is_whole_on_any_terminal(
    rows: list[ResultRow], width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: width is not None)
    monkeypatch.setenv("COLUMNS", str(width or 20))
    headings, cells, left, left_out = table(rows, "kl")
    print_table(headings, cells, left)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 1 and lines[0].split()[:2] == ["name", "status"]
    for line, row in zip(lines[1:], rows, strict=True):
        assert line.split()[:2] == [row["name"], row["status"]] and "…" not in line
    assert "KL with sinks" in lines[0]  # the sorted one is never left out
    if width is None:
        assert left_out == [] and "paper: special" in lines[0] and "path" in lines[0]
        assert "FVU" in re.split(r"\s{2,}", lines[0]) and "FVU with sinks" not in lines[0]
        assert "31.5*   -8.500*" in lines[4] and "0.0625*" in lines[4]  # of an older version
        assert "9.0     0.250 " in lines[2]
    elif width >= 60:
        assert left_out and max(map(len, lines)) <= width
        assert all(heading not in lines[0].split("  ") for heading in left_out)


# --- the commands ------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs/, on a machine that has seen the registry of org."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTZOO_NAMESPACE", "org")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    seen = state_folder("org") / FILE
    seen.parent.mkdir(parents=True)
    seen.write_text(PUBLISHED.to_text(), encoding="utf-8")
    make_local(tmp_path / "runs" / "mine", HERE)
    return tmp_path


def command(*arguments: str) -> Any:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout) if "--json" in arguments else done


def test_list_picks_and_sorts(workplace: Path) -> None:
    assert [r["name"] for r in command("list", "--json", "--published", "--sort", "l0")] == [
        HERE,
        NAME,
        OUTSIDE,
    ]
    assert [r["name"] for r in command("list", "--json", "--local", "--published")] == [HERE]
    found = command(
        *("list", "--json", "--model", "qwen2.5-7b", "--method", "fast", "--layer", "18"),
        *("--layer", "20", "--sort", "paper_log2_mse", "--descending"),
    )
    assert [r["paper_log2_mse"] for r in found] == [2.0796, 1.3892, -8.2213, -9.1659]
    text = command("list", "--published")
    assert "* with attention sinks: measured by an older version" in text.stderr
    assert "paper" in text.stderr and text.stdout.splitlines()[0].startswith("name")
    assert command("list", "--json", "nothing-*") == []
    nothing = command("list", "qwen2.5-7b-L18")
    assert nothing.stdout == "" and "Did you mean '*qwen2.5-7b-l18*'?" in nothing.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("list", "--sort", "lg2_mse"), "Did you mean log2_mse"),
        (("list", "--descending"), "--sort COLUMN"),
        (("list", "--model", "gpt-2"), "no SAE has 'gpt-2'"),
        (("list", "--namespace", "../x"), "not the name of a user"),
        (("info", "qwen2.5-7b-L18-8x-jumprel"), "Did you mean qwen2.5-7b-L18-8x-jumprelu"),
        (("info", "tiny-chat-L9-8x-topk"), "Did you mean tiny-chat-L1-8x-topk"),
    ],
)
def test_what_cannot_be_asked_for(workplace: Path, arguments: tuple[str, ...], says: str) -> None:
    failed = CliRunner().invoke(app, arguments)
    assert isinstance(failed.exception, InputError) and says in str(failed.exception)
    assert failed.output == ""


def test_info_of_what_is_published(workplace: Path) -> None:
    facts = command("info", NAME, "--json")
    assert facts["status"] == "published" and facts["repo"] == f"org/{NAME}"
    assert facts["revision"] == "c" * 40 and facts["weights_sha256"] == "4a" * 32
    assert {key: facts[key] for key in FIGURES} == FIGURES
    assert facts["paper_log2_mse"] == -9.1659 and facts["d_sae"] == 28672
    outside = command("info", OUTSIDE, "--json")
    assert outside["log2_mse"] == -1.0 and "paper_log2_mse" not in outside
    paper = command("info", "qwen2.5-7b-L20-8x-jumprelu", "--json")
    assert paper["status"] == "paper" and "repo" not in paper


def test_info_compares_what_is_here_with_what_is_published(workplace: Path) -> None:
    import torch

    from fastzoo.hub.files import Content
    from fastzoo.saes import architecture
    from fastzoo.saes.formats import save_sae
    from fastzoo.saes.names import parse_name

    folder = workplace / "runs" / "mine" / HERE
    torch.manual_seed(0)
    hook = folder / "blocks.1.hook_resid_post"
    save_sae(architecture("jumprelu")(4, 32), hook, layer=1, metadata={})
    facts = command("info", HERE, "--json")
    assert facts["status"] == "both" and facts["path"] and facts["same_weights_here"] is False
    assert facts["published_l0"] == 1.0 and facts["l0"] == 7.0

    sae = PUBLISHED.saes[parse_name(HERE)]
    weights = hook / "sae_weights.safetensors"
    right = Content(weights).at(f"{hook.name}/{weights.name}")
    same = type(sae)(sae.name, sae.repo_id, sae.sha, {**sae.files, right.path: right}, result_row({}, {}))
    seen = state_folder("org") / FILE
    seen.write_text(registry("org", same).to_text(), encoding="utf-8")
    facts = command("info", HERE, "--json")
    assert facts["same_weights_here"] is True and facts["weights_sha256"] == right.sha256
    assert "published_l0" not in facts


def test_a_namespace_that_was_never_seen(workplace: Path) -> None:
    done = command("list", "--namespace", "other", "--published")
    assert done.stdout == "" and "what is published is not shown" in done.stderr


@pytest.mark.parametrize("columns", ["50", "400"])
def test_list_measures_the_terminal(
    workplace: Path, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", columns)
    app(["list", "--published"], standalone_mode=False)
    out, err = capsys.readouterr()
    assert all(len(line) <= int(columns) for line in out.splitlines())
    assert ("no space for:" in err) is (columns == "50")
