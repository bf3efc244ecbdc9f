"""Data sets built from files: what is in them, whatever interrupts or divides the work."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl

sys.path.insert(0, str(Path(__file__).parents[1] / "dedup"))
from transcription import transcription

from fastzoo.config.data_build import HELD_OUT, DataBuild, load_build
from fastzoo.config.reading import make_section
from fastzoo.config.recipe import DataSection
from fastzoo.core.errors import DataError, InputError, OutputError
from fastzoo.data.build.manifest import BuiltSet, open_built
from fastzoo.data.build.select import sizes
from fastzoo.data.rows import open_rows
from fastzoo.results.data_set import build_data

WORDS = [f"w{i}" for i in range(60)]


def dialogues(count: int, seed: int = 0, words: int = 30) -> list[dict[str, Any]]:
    """Dialogues of which a quarter share an answer with an earlier one."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        answer = " ".join(draw.choices(WORDS, k=words))
        if number % 4 == 3:
            answer = rows[draw.randrange(len(rows))]["messages"][1]["content"]
        asked = f"question {number} of {seed}?"
        rows.append(
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        )
    return rows


def build(folder: Path, **more: Any) -> tuple[BuiltSet, list[str]]:
    said: list[str] = []
    given = {key: more.pop(key) for key in ("workers", "fresh", "memory", "skip_unavailable") if key in more}
    more = {"name": "set", "folder": str(folder / "built"), **more}
    return build_data(make_section(DataBuild, "test", **more), say=said.append, **given), said


def rows_of(built: BuiltSet, split: str) -> list[dict[str, Any]]:
    return [row for path in built.files(split) for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def files(tmp_path: Path) -> list[dict[str, Any]]:
    for number in range(3):
        write_jsonl(tmp_path / f"{number}.jsonl", dialogues(120, seed=number))
    return [{"source": str(tmp_path / f"{number}.jsonl")} for number in range(3)]


def test_what_is_kept_is_what_algorithm_1_keeps(tmp_path: Path, files: list[dict[str, Any]]) -> None:
    built, _ = build(tmp_path, sources=files, shard_rows=50)
    rows = [(f"{n}.jsonl", str(i), row) for n in range(3) for i, row in enumerate(dialogues(120, seed=n))]
    kept = transcription([m["content"] for m in row["messages"]] for *_, row in rows)
    wanted = {(name, number) for (name, number, _), keep in zip(rows, kept, strict=True) if keep}
    assert len(wanted) == 270
    by_split = {split: rows_of(built, split) for split in built.splits()}
    found = [(row["source"], row["row"]) for split in by_split.values() for row in split]
    assert Counter(found) == Counter(wanted)  # each once: splits are disjoint
    found_out = built.manifest["deduplication"]
    assert 0 < found_out.pop("expected_false_drops") < 1e-12
    counted = {"in": 360, "kept": 270, "dropped": 90, "without_ngram": 0, "ngrams": 270 * 11}
    assert found_out == {"n": 20, "unit": "words", "bits": 64, "short": "keep"} | counted
    # A tenth is held out, in the paper's shares; files of about as many rows as asked for.
    sizes_found = {split: len(rows) for split, rows in by_split.items()}
    wanted_sizes = {
        "train": 244,
        "reconstruction": 8,
        "interpretability": 16,
        "steering": 1,
        "steering_trial": 1,
    }
    assert sizes_found == wanted_sizes
    assert [file["rows"] for file in built.manifest["splits"]["train"]["files"]] == [50, 50, 50, 50, 44]
    texts = {
        f"{n}.jsonl {i}": row["messages"] for n in range(3) for i, row in enumerate(dialogues(120, seed=n))
    }
    assert all(row["messages"] == texts[f"{row['source']} {row['row']}"] for row in by_split["train"])
    # Shuffled: no run of one source.
    assert len({row["source"] for row in by_split["train"][:20]}) == 3
    for split in built.splits():
        built.check(split)


def test_the_same_whoever_reads_and_in_how_many_files(tmp_path: Path, files: list[dict[str, Any]]) -> None:
    one, _ = build(tmp_path / "one", sources=files)
    two, _ = build(tmp_path / "two", sources=files, workers=2)
    small, _ = build(tmp_path / "small", sources=files, shard_rows=7)
    other, _ = build(tmp_path / "other", sources=files, seed=43)
    assert one.manifest == two.manifest
    assert one.hash == small.hash != other.hash
    assert len(small.files("train")) == 35 and rows_of(small, "train") == rows_of(one, "train")


def test_unshuffled_rows_stand_in_their_sources_order(tmp_path: Path, files: list[dict[str, Any]]) -> None:
    built, _ = build(tmp_path, sources=files, shuffle=False, splits=None, deduplication=None, shard_rows=100)
    found = [(row["source"], int(row["row"])) for row in rows_of(built, "train")]
    assert found == [(f"{n}.jsonl", i) for n in range(3) for i in range(120)]
    assert built.splits() == ["train"] and built.manifest["deduplication"] is None


def test_copies_of_short_dialogues(tmp_path: Path) -> None:
    short = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
    path = write_jsonl(tmp_path / "a.jsonl", [*dialogues(40), *([short] * 30)])
    kept, _ = build(tmp_path / "kept", sources=[{"source": str(path)}], splits=None)
    unique, _ = build(
        tmp_path / "unique", sources=[{"source": str(path)}], splits=None, deduplication={"short": "unique"}
    )
    assert kept.manifest["deduplication"]["kept"] == 60 and unique.manifest["deduplication"]["kept"] == 31
    # Whatever is held out, no copy of it is trained on.
    for seed in range(8):
        built, _ = build(tmp_path / str(seed), sources=[{"source": str(path)}], seed=seed)
        held = [
            json.dumps(row["messages"])
            for name in built.splits()
            if name != "train"
            for row in rows_of(built, name)
        ]
        trained = {json.dumps(row["messages"]) for row in rows_of(built, "train")}
        assert len(set(held)) == len(held) and not trained & set(held)
        total = len(rows_of(built, "train")) + len(held) + built.manifest["kept_apart"]["identical"]
        assert total == 60


def test_held_out_dialogues_share_no_ngram_with_training(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", dialogues(200))
    built, _ = build(tmp_path, sources=[{"source": str(path)}], deduplication=None, shuffle=False)
    held = [row for name in HELD_OUT if name in built.splits() for row in rows_of(built, name)]
    answers = {row["messages"][1]["content"] for row in held}
    assert not answers & {row["messages"][1]["content"] for row in rows_of(built, "train")}
    assert built.manifest["kept_apart"]["sharing"] == 200 - len(held) - len(rows_of(built, "train")) > 0


def test_a_dialogue_is_held_out_whatever_stands_beside_it(tmp_path: Path) -> None:
    few = write_jsonl(tmp_path / "few.jsonl", dialogues(200))
    more = write_jsonl(tmp_path / "more.jsonl", [*dialogues(200), *dialogues(20, seed=9)])
    ids = []
    for path in (few, more):
        built, _ = build(tmp_path / path.stem, sources=[{"source": str(path)}])
        ids.append({row["row"] for name in built.splits() if name != "train" for row in rows_of(built, name)})
    assert len(ids[0] & ids[1]) >= len(ids[0]) - 3


def test_sizes_of_held_out_sets() -> None:
    whole = make_section(DataBuild, "", name="x", sources=[{"source": "embedded"}]).splits
    assert whole is not None
    assert sizes(whole, 4_758_226) == {
        "reconstruction": 5000,
        "interpretability": 10000,
        "steering": 1000,
        "steering_trial": 10,
    }
    assert sum(sizes(whole, 1000).values()) <= 101 and min(sizes(whole, 1000).values()) == 1


def test_limit_and_sample(tmp_path: Path, files: list[dict[str, Any]]) -> None:
    plain: dict[str, Any] = {"sources": files, "splits": None, "deduplication": None, "shuffle": False}
    first, _ = build(tmp_path / "first", **plain, limit=5)
    assert [(r["source"], r["row"]) for r in rows_of(first, "train")] == [
        (f"{n}.jsonl", str(i)) for n in range(3) for i in range(5)
    ]
    drawn = [build(tmp_path / f"{seed}", **plain, sample=12, seed=seed)[0] for seed in (1, 2)]
    rows = [[(r["source"], int(r["row"])) for r in rows_of(built, "train")] for built in drawn]
    assert rows[0] != rows[1] and all(
        Counter(n for n, _ in r) == dict.fromkeys(["0.jsonl", "1.jsonl", "2.jsonl"], 12) for r in rows
    )
    assert all(r == sorted(r) for r in rows)
    everything, _ = build(tmp_path / "all", **plain, sample=500)
    assert len(rows_of(everything, "train")) == 360


def test_where_and_columns(tmp_path: Path) -> None:
    rows = [
        {
            "conversation": row["messages"],
            "toxic": n % 2 == 0,
            "language": "English" if n % 3 else None,
            "conversation_hash": f"h{n}",
        }
        for n, row in enumerate(dialogues(12, words=19))
    ]
    path = write_jsonl(tmp_path / "wild.jsonl", rows)
    section = {"source": str(path), "adapter": "wildchat", "where": {"toxic": False}}
    built, _ = build(tmp_path, sources=[section], splits=None, shuffle=False)
    (source,) = built.manifest["sources"]
    assert source["skipped"] == {"left out by where: toxic": 6} and source["licence"] == "odc-by"
    found = rows_of(built, "train")
    assert [row["row"] for row in found] == [f"h{n}" for n in range(1, 12, 2)]
    assert [row["language"] for row in found] == [None if n % 3 == 0 else "English" for n in range(1, 12, 2)]
    assert built.manifest["languages"] == {"English": 4, "unknown": 2}


def test_text(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "text.jsonl", [{"text": "one two"}, {"text": ""}, {"body": "x"}, {"text": "ü" * 9}]
    )
    built, _ = build(tmp_path, kind="text", sources=[{"source": str(path)}], shuffle=False)
    assert [row["text"] for row in rows_of(built, "train")] == ["one two", "ü" * 9]
    assert built.manifest["sources"][0]["skipped"] == {"empty": 1, "malformed: no text in column text": 1}


def test_the_same_command_again(tmp_path: Path, files: list[dict[str, Any]]) -> None:
    built, _ = build(tmp_path, sources=files)
    before = {path: path.stat().st_mtime_ns for path in built.folder.rglob("*")}
    again, _ = build(tmp_path, sources=files)
    assert again.manifest == built.manifest
    assert before == {path: path.stat().st_mtime_ns for path in built.folder.rglob("*")}
    with pytest.raises(OutputError, match=r"another configuration.*--fresh"):
        build(tmp_path, sources=files, seed=1)
    write_jsonl(Path(files[0]["source"]), dialogues(10))
    with pytest.raises(OutputError, match="sources that have changed"):
        build(tmp_path, sources=files)
    fresh, said = build(tmp_path, sources=files, fresh=True)
    assert fresh.hash != built.hash and open_built(tmp_path / "built.old-1").hash == built.hash
    assert "is now in" in said[0]


@pytest.mark.parametrize("moment", [0.0, 0.35, 0.7, 0.85, 1.0])
def test_a_killed_build_goes_on(tmp_path: Path, moment: float) -> None:
    """Killed after a share of the files that a build writes, and run again: the same data set."""
    for number in range(4):
        write_jsonl(tmp_path / f"{number}.jsonl", dialogues(300, seed=number))
    config = tmp_path / "set.yaml"
    sources = [{"source": f"{n}.jsonl"} for n in range(4)]
    config.write_text(json.dumps({"sources": sources, "shard_rows": 100, "folder": "out"}))
    whole, _ = build(
        tmp_path / "whole", sources=[{"source": str(tmp_path / s["source"])} for s in sources], shard_rows=100
    )
    command = [sys.executable, "-m", "fastzoo.cli.main", "data", "build", "set.yaml"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    work, until = tmp_path / ".out.building", time.monotonic() + 60
    wanted = int(moment * 30)
    while process.poll() is None and time.monotonic() < until:
        written = sum(1 for _ in work.rglob("*.arrow")) + sum(1 for _ in work.rglob("*.parquet"))
        if work.exists() and written >= wanted:
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert open_built(tmp_path / "out").manifest["hash"] == whole.hash
    assert not work.exists() and not list(tmp_path.glob(".out.*"))


def test_too_little_memory_ends_in_one_line_and_loses_nothing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", dialogues(3000, words=200))
    with pytest.raises(DataError, match=r"n-grams in .* MB and needs .* MB more"):
        build(tmp_path, sources=[{"source": str(path)}], memory=1_000_000)
    built, _ = build(tmp_path, sources=[{"source": str(path)}], memory=100_000_000)
    assert built.manifest["deduplication"]["kept"] == 2250


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": []}, "sources: got"),
        (
            {"sources": [{"source": "x.jsonl", "adaptor": "y"}]},
            r"unknown key 'sources.adaptor'.*Did you mean adapter",
        ),
        ({"sources": [{"source": "embedded", "adapter": "wildchta"}]}, "Did you mean wildchat"),
        ({"name": "a/b"}, "a name holds letters"),
        ({"limit": 1, "sample": 1}, "exclude each other"),
        ({"kind": "text", "splits": {"reconstruction": 1}}, "held-out splits are of dialogues"),
        ({"deduplication": {"bits": 32}}, "deduplication.bits"),
        ({"sources": [{"source": "gone.jsonl"}]}, "is not there"),
    ],
)
def test_a_wrong_configuration_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        json.dumps({"sources": [{"source": "embedded"}], "folder": str(tmp_path / "out")} | change)
    )
    with pytest.raises((InputError, DataError), match=said) as caught:
        build_data(load_build(path), say=lambda text: None)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_what_comes_with_fastzoo_is_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paper = load_build(Path("fast"), ["limit=3"])
    assert [section.source.partition("/")[0] for section in paper.sources] == [
        "allenai",
        "BAAI",
        "allenai",
        "mlabonne",
        "lmsys",
    ]
    assert load_build(Path("pile.yaml")).kind == "text" and paper.limit == 3
    with pytest.raises(InputError, match=r"no recipe file 'fats'.*fast.yaml, mine.yaml, pile.yaml"):
        load_build(Path("fats"))
    with pytest.raises(DataError, match=r"is no folder of a data set.*no manifest\.json"):
        open_built(tmp_path)


def test_no_usable_row_says_what_the_first_one_was(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    with pytest.raises(DataError, match=r"no usable row among 1 \(no assistant turn: 1\); the first: row 0"):
        build(tmp_path, sources=[{"source": str(path)}])
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m | {"format": 2}, "format 2 is not read"),
        (lambda m: m | {"hash": "0" * 64}, "its hash is not that of its splits"),
        (lambda m: m | {"splits": {"train": {"rows": 1, "hash": "x", "files": []}}}, "broken entry"),
        (lambda m: {"splits": {}}, "is not the manifest of a data set"),
        (lambda m: [m], "is not the manifest of a data set"),
    ],
)
def test_a_changed_manifest_is_refused(
    tmp_path: Path, files: list[dict[str, Any]], change: Any, said: str
) -> None:
    built, _ = build(tmp_path, sources=files)
    path = built.folder / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=said):
        open_built(built.folder)


def test_one_split_of_a_folder(tmp_path: Path, files: list[dict[str, Any]]) -> None:
    built, _ = build(tmp_path, sources=files)
    rows = open_rows(DataSection(source=str(built.folder), split="interpretability", shuffle=False), 0)
    assert [row["row"] for _, row in rows.held_out()] == [
        row["row"] for row in rows_of(built, "interpretability")
    ]
    with pytest.raises(DataError, match="has no split 'test'; it has train, reconstruction"):
        open_rows(DataSection(source=str(built.folder), split="test"), 0)


def test_a_changed_file_is_refused(tmp_path: Path, files: list[dict[str, Any]]) -> None:
    built, _ = build(tmp_path, sources=files)
    (path,) = built.files("train")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"is not what manifest\.json says"):
        built.check("train")
