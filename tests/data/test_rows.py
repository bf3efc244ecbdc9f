"""Rows of data: any place in an epoch is found again, and a Hub that fails for a while changes nothing."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl
from forked import run_python
from hub_server import LoopbackHub, Request, Response, error, hang_up

from fastzoo.config.recipe import DataSection
from fastzoo.data.rows import SHARD_NUMBERS, open_rows

ROOT = Path(__file__).parents[2]
SIZES = (3, 1, 7, 2)
HELD_OUT = 5
"""Rows: the first two files and one row of the third."""

READ = """
import json, sys
from fastzoo.config.recipe import DataSection
from fastzoo.core.exit import report_failures
from fastzoo.data.rows import open_rows

def read():
    ask = json.loads(sys.argv[1])
    section = DataSection(source="lab/chats", **ask["section"])
    rows = open_rows(section, 0)
    print(json.dumps(list(rows.held_out())), flush=True)
    for epoch in range(ask["epochs"]):
        print(json.dumps(list(rows.training(epoch, ask["held_out"]))), flush=True)
    for epoch, start in ask.get("starts", []):
        fresh = open_rows(section, 0)  # knows nothing of the files yet, as after a new start
        found = [list(r.training(epoch, ask["held_out"], start)) for r in (fresh, rows)]
        assert found[0] == found[1]
        print(json.dumps(found[0]), flush=True)

report_failures(read)
"""


def as_jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows: list[Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=2)
    return file.getvalue()


WRITERS = {"jsonl": as_jsonl, "parquet": as_parquet}


def add_files(hub: LoopbackHub, kind: str) -> dict[int, Any]:
    """Put files of SIZES on the Hub; the rows by number."""
    files, by_number = {}, {}
    for shard, size in enumerate(SIZES):
        rows = [{"text": f"row {i} of file {shard}"} for i in range(size)]
        files[f"data/train-{shard}.{kind}"] = WRITERS[kind](rows)
        by_number |= {shard * SHARD_NUMBERS + i: row for i, row in enumerate(rows)}
    hub.add("dataset", "lab/chats", files)
    return by_number


def run(hub: LoopbackHub, home: Path, **ask: Any) -> subprocess.CompletedProcess[str]:
    ask = {"epochs": 2, "held_out": HELD_OUT, "section": {"shuffle_rows": 4}, **ask}
    environment = hub.env(
        home, PYTHONPATH=str(ROOT), FASTZOO_RETRY_SECONDS="0.002", HF_HUB_DOWNLOAD_TIMEOUT="1"
    )
    done = run_python(READ, json.dumps(ask), env=environment, cwd=ROOT)
    assert "Traceback" not in done.stderr, done.stderr
    assert not hub.foreign
    return done


def rows_of(done: subprocess.CompletedProcess[str]) -> list[list[Any]]:
    """The held-out rows and those of every iteration after them."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def numbers(rows: list[Any]) -> list[int]:
    return [number for number, _ in rows]


def retries(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "trying again in" in line]


# --- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_start_gives_what_dropping_would(tmp_path: Path, kind: str, shuffle: bool) -> None:
    left = sum(SIZES) - HELD_OUT
    starts = [(epoch, start) for epoch in range(3) for start in range(left + 2)]
    with LoopbackHub() as hub:
        by_number = add_files(hub, kind)
        section = {"shuffle": shuffle, "shuffle_rows": 4}
        done = run(hub, tmp_path, epochs=3, section=section, starts=starts)
    held_out, *rest = rows_of(done)
    epochs, found = rest[:3], rest[3:]
    assert dict(held_out) == by_number
    assert numbers(held_out) == sorted(by_number)
    for epoch in epochs:
        assert sorted(numbers(epoch)) == sorted(by_number)[HELD_OUT:]
        assert all(by_number[number] == row for number, row in epoch)
    for (epoch, start), rows in zip(starts, found, strict=True):
        assert rows == epochs[epoch][start:], (epoch, start)
    if not shuffle:
        assert all(numbers(epoch) == sorted(by_number)[HELD_OUT:] for epoch in epochs)
        return
    assert len({str(epoch) for epoch in epochs}) == 3
    orders = set()
    for epoch in epochs:
        windows = [set(numbers(epoch[i : i + 4])) for i in range(0, left, 4)]
        orders |= {order for order in permutations(range(4)) if cut_into(windows, order)}
    assert len(orders) > 1


def cut_into(windows: list[set[int]], order: tuple[int, ...]) -> bool:
    """Whether the windows are cut from the files' rows in this order, less the held-out ones."""
    rows = [s * SHARD_NUMBERS + i for s in range(len(SIZES)) for i in range(SIZES[s])][HELD_OUT:]
    rows.sort(key=lambda number: (order.index(number // SHARD_NUMBERS), number))
    return windows == [set(rows[i : i + 4]) for i in range(0, len(rows), 4)]


def test_windows_are_shuffled_too(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add("dataset", "lab/chats", {"train.jsonl": as_jsonl([{"n": i} for i in range(200)])})
        done = run(hub, tmp_path, section={"shuffle_rows": 50}, held_out=0)
    _, first, second = rows_of(done)
    for epoch in (first, second):
        for i in range(0, 200, 50):
            window = numbers(epoch[i : i + 50])
            assert sorted(window) == list(range(i, i + 50))
            assert window != sorted(window)
            assert [n - i for n in window] != numbers(epoch[:50]) or i == 0
    assert first != second


def test_parquet_files_passed_by_are_not_read(tmp_path: Path) -> None:
    """Of a Parquet file that is skipped only the end is asked for."""
    rng = random.Random(0)
    rows = [{"text": rng.randbytes(50_000).hex()} for _ in range(8)]
    with LoopbackHub() as hub:
        files = {f"data/train-{i}.parquet": as_parquet(rows) for i in range(3)}
        hub.add("dataset", "lab/chats", files)
        done = run(hub, tmp_path, epochs=0, held_out=1, section={"shuffle": False}, starts=[(0, 20)])
        assert numbers(rows_of(done)[1]) == [2 * SHARD_NUMBERS + i for i in range(5, 8)]
        # held_out() of the first rows and the two starts read the last file; only held_out() the others
        pieces = [
            (request.query["path"][0], request.headers["range"])
            for request in hub.requests
            if request.path.startswith("/objects/")
        ]
    size = len(files["data/train-0.parquet"])
    for name in files:
        assert sum(_bytes(r) > size // 2 for path, r in pieces if path == name) <= (
            3 if name.endswith("2.parquet") else 1
        ), pieces


def _bytes(header: str) -> int:
    first, last = header.removeprefix("bytes=").split("-")
    return int(last) - int(first) + 1


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_start_of_a_file(tmp_path: Path, shuffle: bool) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"n": i} for i in range(23)])
    rows = open_rows(DataSection(source=str(path), shuffle=shuffle), 0)
    for epoch in range(3):
        whole = list(rows.training(epoch, 4))
        assert len(whole) == 19
        for start in range(21):
            assert list(rows.training(epoch, 4, start)) == whole[start:]


# --- failures that pass --------------------------------------------------------------------------


def busy(request: Request) -> Response:
    return Response(503, b"come back later")


def stall(request: Request) -> Response:
    """Longer than the client waits."""
    time.sleep(1.5)
    return Response(503)


def too_many(request: Request) -> Response:
    return Response(429, b"", {"Retry-After": "1"})


def too_many_by_the_hub(request: Request) -> Response:
    return Response(429, b"", {"RateLimit": '"resolvers";r=0;t=1'})


FAULTS: list[tuple[Any, int, str]] = [
    ("cut", 8, "peer closed connection"),
    ("short", 2, "bytes came"),
    (hang_up, 8, "disconnected"),
    (busy, 8, "the server answered 503"),
    (stall, 1, "timed out"),
    (too_many, 1, "the server answered 429; trying again in 1 s"),
    (too_many_by_the_hub, 1, "the server answered 429; trying again in 1 s"),
]


@pytest.mark.alone
@pytest.mark.parametrize("kind", WRITERS)
def test_what_failed_for_a_while_changes_no_row(tmp_path: Path, kind: str) -> None:
    def short(request: Request) -> Response:
        """An answer that is whole, but not what was asked for."""
        answer = hub.undisturbed(request)
        return replace(answer, body=answer.body[1:])

    # Parquet files are redirected; what comes after that is the file.
    pattern = "/objects/" if kind == "parquet" else r"/train-\d"
    with LoopbackHub() as hub:
        add_files(hub, kind)
        undisturbed = rows_of(run(hub, tmp_path))
        ways = {"cut": hub.cut, "short": short}
        for how, times, said in FAULTS:
            hub.faults.clear()
            met = hub.fail(pattern, ways.get(how, how), after=4, times=times)
            done = run(hub, tmp_path)
            assert rows_of(done) == undisturbed
            assert len(met) == len(retries(done)) == times
            assert said in done.stderr
            # nothing but the lines of the retries
            assert done.stderr.splitlines() == retries(done)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_goes_on_in_its_middle(tmp_path: Path, kind: str) -> None:
    """Files of several pieces, one of which fails for longer than pieces are asked for again."""
    rng = random.Random(1)
    # Pieces are 15 MB of JSONL and 32 MB of Parquet.
    rows = [{"n": i, "text": rng.randbytes(2_000_000).hex()} for i in range(12)]
    code = (
        "import hashlib, json\n"
        "from fastzoo.config.recipe import DataSection\n"
        "from fastzoo.data.rows import open_rows\n"
        "rows = open_rows(DataSection(source='lab/chats', shuffle_rows=5), 0)\n"
        "for number, row in rows.training(0, 1):\n"
        "    print(number, row['n'], hashlib.sha256(row['text'].encode()).hexdigest())\n"
    )
    with LoopbackHub() as hub:
        hub.add("dataset", "lab/chats", {f"train.{kind}": WRITERS[kind](rows)})

        def later_piece(request: Request) -> Response | None:
            first = request.headers.get("range", "bytes=0-").removeprefix("bytes=").split("-")[0]
            if 20_000_000 < int(first) < 47_000_000 and len(failed) < 5:
                failed.append(request)
                return hang_up(request)
            return None

        failed: list[Request] = []
        outputs = []
        for faults in ([], [later_piece]):
            hub.faults = list(faults)
            environment = hub.env(tmp_path, PYTHONPATH=str(ROOT), FASTZOO_RETRY_SECONDS="0.002")
            done = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr
            outputs.append(done.stdout)
    assert outputs[0] == outputs[1] and len(outputs[0].splitlines()) == 11
    assert len(failed) == len(retries(done)) == 5
    assert re.search(r"from row [1-9]\d* on", done.stderr), done.stderr


def test_opening_is_tried_again_too(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        add_files(hub, "jsonl")
        undisturbed = rows_of(run(hub, tmp_path / "0"))
        for number, pattern in enumerate((r"/api/datasets/lab/chats$", r"/revision/")):
            hub.faults.clear()
            met = hub.fail(pattern, hang_up, times=3)
            done = run(hub, tmp_path / f"{number + 1}")
            assert rows_of(done) == undisturbed
            assert len(met) == 3
            assert retries(done)


# --- failures that stay --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_a_hub_that_never_comes_back_is_one_line(tmp_path: Path, kind: str) -> None:
    with LoopbackHub() as hub:
        add_files(hub, kind)
        hub.fail("train-2", hang_up, after=1)
        begin = time.monotonic()
        done = run(hub, tmp_path)
        assert time.monotonic() - begin < 60
    assert done.returncode == 5
    *before, last = done.stderr.splitlines()
    assert before == retries(done)
    assert last == (
        f"error: Hub dataset lab/chats, data/train-2.{kind}, from row 1 on: Server disconnected "
        "without sending a response, after 12 tries; the same command goes on from the last "
        "checkpoint when run again"
    )
    seconds = [float(s) for s in re.findall(r"row 1 on: .* in ([\d.e-]+) s \(\d+ of 11", done.stderr)]
    expected = [min(0.002 * 2**i, 0.12) for i in range(11)]
    assert seconds == pytest.approx(expected, rel=1e-3)


def test_a_hub_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.fail("", hang_up)
        done = run(hub, tmp_path)
    assert done.returncode == 5
    *before, last = done.stderr.splitlines()
    assert before == retries(done) and len(before) == 11
    assert last.startswith("error: cannot reach ") and "lab/chats" in last


@pytest.mark.parametrize(
    ("status", "code"), [(404, "EntryNotFound"), (401, "RepoNotFound"), (403, "GatedRepo")]
)
def test_a_file_that_vanishes_ends_the_run_at_once(tmp_path: Path, status: int, code: str) -> None:
    for kind in WRITERS:
        with LoopbackHub() as hub:
            add_files(hub, kind)
            hub.fail("train-2", lambda request: error(status, code, "gone"), after=1)
            done = run(hub, tmp_path)
        assert done.returncode == (3 if status == 404 else 4)
        assert done.stderr == (
            f"error: Hub dataset lab/chats, data/train-2.{kind}, from row 1 on: no longer "
            f"available (the server answered {status})\n"
        )


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    for kind in WRITERS:
        with LoopbackHub() as hub:
            good = WRITERS[kind]([{"text": "a"}] * 3)
            broken = good[:8] + b"\xff{{" + good[8:20]
            hub.add("dataset", "lab/chats", {f"train-0.{kind}": good, f"train-1.{kind}": broken})
            done = run(hub, tmp_path)
        assert done.returncode == 8
        assert done.stderr.startswith(
            f"error: Hub dataset lab/chats, train-1.{kind}, from row 0 on: cannot be read ("
        )
        assert done.stderr.count("\n") == 1


def test_what_is_not_on_the_hub_is_said_at_once(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        done = run(hub, tmp_path)
        assert done.returncode == 3
        assert done.stderr.startswith("error: no dataset repository lab/chats on ")
        add_files(hub, "jsonl")
        done = run(hub, tmp_path, section={"split": "test"})
        assert done.returncode == 8
        assert done.stderr.startswith("error: Hub dataset lab/chats: ") and "test" in done.stderr
        assert not retries(done)
