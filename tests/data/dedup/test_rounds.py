"""Deduplication in rounds keeps what one machine keeps, also where it is interrupted; what it moves is said."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from transcription import adversarial, chain, dialogues, transcription

from fastzoo.core.errors import DataError, InputError, OutputError
from fastzoo.data.dedup.group_kernels import finish
from fastzoo.data.dedup.rounds import RoundsReport, dedup_in_rounds
from fastzoo.data.dedup.tasks import HashPart

datatrove = pytest.importorskip("datatrove")

from datatrove.executor import LocalPipelineExecutor  # noqa: E402


class InThisProcess:
    """An executor that runs its tasks one after another, at once; ``broken``: a task that fails once."""

    broken: str | None = None

    def __init__(self, pipeline: list, tasks: int, logs: str) -> None:
        self.pipeline, self.tasks, self.logs = pipeline, tasks, Path(logs)

    def run(self) -> None:
        for rank in self.get_incomplete_ranks(skip_completed=True):
            if InThisProcess.broken == f"{self.logs.name}/{rank}":
                InThisProcess.broken = None
                raise KeyboardInterrupt
            for step in self.pipeline:
                step(None, rank, self.tasks)
            self.logs.mkdir(parents=True, exist_ok=True)
            (self.logs / str(rank)).touch()

    def get_incomplete_ranks(self, skip_completed: bool) -> list[int]:
        return [rank for rank in range(self.tasks) if not (self.logs / str(rank)).exists()]


def write_parts(
    samples: list[list[str]], folder: Path, cuts: tuple[int, ...] = (), batch: int = 50
) -> list[Path]:
    """Samples as Arrow files, cut at ``cuts``."""
    folder.mkdir(parents=True, exist_ok=True)
    places = [0, *sorted(cut for cut in cuts if cut < len(samples)), len(samples)]
    paths = []
    for k, (start, stop) in enumerate(pairwise(places)):
        paths.append(folder / f"part-{k:03d}.arrow")
        table = pa.table({"turns": pa.array(samples[start:stop], pa.list_(pa.string()))})
        with pa.OSFile(str(paths[-1]), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table, max_chunksize=batch)
    return paths


def masks(folder: Path) -> list[bool]:
    return [bool(one) for path in sorted((folder / "kept").glob("*.npy")) for one in np.load(path)]


def without_surrogates(samples: list[list[str]]) -> list[list[str]]:
    """Arrow's strings are UTF-8."""
    return [[turn.encode("utf-8", "replace").decode() for turn in turns] for turns in samples]


def run(samples: list[list[str]], place: Path, cuts: tuple[int, ...] = (), **options: object) -> RoundsReport:
    parts = write_parts(samples, place / "parts", cuts)
    options = {"executor": InThisProcess, "partitions": 3, **options}
    report = dedup_in_rounds(parts[::-1], place / "work", **options)  # type: ignore[arg-type]
    kept = masks(place / "work")
    assert (report.samples, report.kept) == (len(samples), sum(kept))
    assert report.samples == report.kept + sum(r.dropped for r in report.rounds) or report.finished
    return report


@settings(max_examples=60)
@given(
    samples=dialogues(),
    n=st.integers(1, 4),
    unit=st.sampled_from(("words", "characters")),
    bits=st.sampled_from((64, 128)),
    short=st.sampled_from(("keep", "unique")),
    cuts=st.lists(st.integers(0, 14), max_size=3).map(tuple),
    tail=st.sampled_from((0, 3, 100)),
)
def test_keeps_what_the_transcription_keeps(
    samples: list[list[str]],
    n: int,
    unit: str,
    bits: int,
    short: str,
    cuts: tuple[int, ...],
    tail: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    samples = without_surrogates(samples)
    place = tmp_path_factory.mktemp("rounds")
    run(samples, place, cuts, n=n, unit=unit, bits=bits, short=short, tail=tail)
    assert masks(place / "work") == transcription(samples, n, unit, short)


@pytest.mark.parametrize("tail", [0, 50])
def test_adversarial_samples(tail: int, tmp_path: Path) -> None:
    samples = without_surrogates(list(islice(adversarial(4, seed=tail), 800)))
    report = run(samples, tmp_path, (100, 101, 500), n=4, tail=tail, partitions=7)
    wanted = transcription(samples, 4)
    assert 200 < sum(wanted) < 750
    assert masks(tmp_path / "work") == wanted
    assert len(report.rounds) > 1 and all(each.shuffled > 0 for each in report.rounds)
    assert (report.finished > 0) == (tail > 0)


def test_a_chain_takes_many_rounds_and_a_tail_ends_it(tmp_path: Path) -> None:
    samples = chain(61, 3)
    every_second = [k % 2 == 0 for k in range(61)]
    pure = run(samples, tmp_path / "a", (20, 40), n=3, tail=0)
    assert masks(tmp_path / "a/work") == every_second
    assert 20 <= len(pure.rounds) <= 62 and pure.finished == 0
    short = run(samples, tmp_path / "b", (20, 40), n=3)
    assert masks(tmp_path / "b/work") == every_second
    assert len(short.rounds) == 1 and short.finished == 60
    assert short.rounds[0].kept == 1 and short.shuffled < pure.shuffled


def test_only_shared_ngrams_move_after_the_first_round(tmp_path: Path) -> None:
    words = [f"w{k}" for k in range(40)]
    samples = [[" ".join(f"{word}.{k}" for word in words)] for k in range(300)] + chain(6, 5)
    report = run(samples, tmp_path, n=5, tail=0)
    first, *later = report.rounds
    assert first.kept == 301 and first.shuffled > 300 * 36 * 12
    assert all(each.shuffled < 3000 for each in later)
    left = [path for path in (tmp_path / "work").rglob("*") if path.is_file() and "logs" not in path.parts]
    assert sum(path.stat().st_size for path in left) < 30_000  # hashes and groups are gone


@pytest.mark.parametrize("broken", ["hash/1", "round-1/2", "round-3/0"])
def test_goes_on_where_it_was_interrupted(broken: str, tmp_path: Path) -> None:
    samples = chain(12, 3)
    InThisProcess.broken = broken
    with pytest.raises(KeyboardInterrupt):
        run(samples, tmp_path, (5,), n=3, tail=0)
    again = run(samples, tmp_path, (5,), n=3, tail=0)
    assert masks(tmp_path / "work") == [k % 2 == 0 for k in range(12)]
    undisturbed = run(samples, tmp_path / "other", (5,), n=3, tail=0)
    assert again == undisturbed
    assert run(samples, tmp_path, (5,), n=3, tail=0) == again  # and when all is done
    with pytest.raises(InputError, match="other parts or settings"):
        run(samples, tmp_path, (5,), n=4, tail=0)


def test_by_datatrove_in_processes(tmp_path: Path) -> None:
    """A script of its own: its executor starts processes that import what is run."""
    samples = without_surrogates(list(islice(adversarial(4, seed=5), 300)))
    parts = write_parts(samples, tmp_path / "parts", (100, 200))
    script = (
        "import sys\nfrom pathlib import Path\nfrom fastzoo.data.dedup.rounds import dedup_in_rounds\n"
        "if __name__ == '__main__':\n"
        "    dedup_in_rounds([*map(Path, sys.argv[2:])], Path(sys.argv[1]), workers=2, partitions=2, n=4, tail=20)\n"
    )
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "work"), *map(str, parts)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert masks(tmp_path / "work") == transcription(samples, 4)
    report = json.loads((tmp_path / "work/report.json").read_text())
    assert report["samples"] == 300 and report["rounds"][0]["shuffled"] > 0
    assert not list((tmp_path / "work").rglob("*.pkl"))


def test_failed_tasks_are_one_line(tmp_path: Path) -> None:
    class Queued(InThisProcess):
        def run(self) -> None:
            pass

    with pytest.raises(OutputError, match="2 of 2 tasks of stage 'hash' failed"):
        run(chain(3, 3), tmp_path, (1,), executor=Queued)


def test_parts_that_cannot_be(tmp_path: Path) -> None:
    parts = write_parts(chain(3, 3), tmp_path)
    with pytest.raises(DataError, match="no column 'texts'"):
        dedup_in_rounds(parts, tmp_path / "a", executor=InThisProcess, column="texts")
    (tmp_path / "part-001.arrow").write_bytes(b"ARROW1 or not")
    with pytest.raises(DataError, match="cannot be read as an Arrow file"):
        dedup_in_rounds([tmp_path / "part-001.arrow"], tmp_path / "b", executor=InThisProcess)
    with pytest.raises(InputError, match="of one name"):
        dedup_in_rounds([parts[0], tmp_path / "x" / parts[0].name], tmp_path / "c", executor=InThisProcess)


def test_without_datatrove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datatrove.executor", None)
    with pytest.raises(InputError, match=r"pip install 'fastzoo\[cluster\]'"):
        dedup_in_rounds(write_parts(chain(3, 3), tmp_path), tmp_path / "work")


def test_the_tail_respects_what_rounds_decided() -> None:
    sample, group = np.array([0, 1, 1, 2, 3, 3], np.uint32), np.array([0, 0, 1, 1, 1, 2])
    status = np.array([1, 0, 0, 0], np.uint8)
    finish(sample, group, np.zeros(3, bool), status)
    assert status.tolist() == [1, 2, 1, 2]


def test_steps_run_by_datatrove_in_this_process(tmp_path: Path) -> None:
    parts = write_parts(chain(4, 3), tmp_path / "parts", (2,))
    step = HashPart(tmp_path, tuple(parts), 2, "turns", 3, "words", 64, "keep")
    LocalPipelineExecutor([step], tasks=2, workers=1, logging_dir=str(tmp_path / "logs")).run()
    assert sum(int(np.load(tmp_path / f"hashed/{k:05d}.rows.npy")[1]) for k in range(2)) == 8
