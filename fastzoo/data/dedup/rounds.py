"""Deduplication on many machines, in rounds: the same kept set as one machine's, by datatrove's executors.

What Algorithm 1 keeps is the lexicographically first maximal independent set of the graph whose edges join samples that
share an n-gram. So the order is needed only among neighbours: in each round, all samples are kept at once that no
undecided earlier one shares an n-gram with, and all are dropped that share one with a kept sample. Few rounds suffice on
average: O(log² of the samples) where their order is random (Blelloch, Fineman and Shun, "Greedy sequential maximal
independent set and matching are parallel on average", 2012). A chain, in which each sample waits for the one before it,
takes as many rounds as it is long; therefore the last undecided samples are finished in order, here.

Tasks (``fastzoo.data.dedup.tasks``) do what grows with the n-grams; this process adds up their votes, a byte per sample.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastzoo.core.errors import InputError, OutputError
from fastzoo.core.files import read_json, write_json
from fastzoo.core.text import one_line
from fastzoo.data.dedup.tasks import (
    DROPPED,
    KEPT,
    UNDECIDED,
    Group,
    HashPart,
    Vote,
    load,
    load_groups,
    load_set,
    save,
    save_set,
)

logger = logging.getLogger(__name__)

MakeExecutor = Callable[[list[Any], int, str], Any]
"""Makes a datatrove executor of a pipeline, a number of tasks and a folder for its logs."""

POLL_SECONDS = 10.0
"""How often unfinished tasks are asked after where an executor only queues them, as Slurm's does."""


@dataclass(frozen=True)
class Round:
    """One round of group-bys."""

    undecided: int
    """Samples before it."""
    kept: int
    dropped: int
    shuffled: int
    """Bytes that tasks sent to others: hashes in the first round, then verdicts to every partition; and votes."""


@dataclass(frozen=True)
class RoundsReport:
    """What was done; ``report.json`` in the folder has the same."""

    samples: int
    kept: int
    ngrams: int
    """The same one counted as often as it occurs."""
    rounds: tuple[Round, ...]
    finished: int
    """Samples that were decided in order, on this machine, after the rounds."""

    @property
    def shuffled(self) -> int:
        return sum(each.shuffled for each in self.rounds)


def dedup_in_rounds(
    parts: Sequence[Path],
    folder: Path,
    *,
    executor: MakeExecutor | None = None,
    workers: int | None = None,
    partitions: int = 64,
    column: str = "turns",
    n: int = 20,
    unit: str = "words",
    bits: int = 64,
    short: str = "keep",
    tail: int = 100_000,
) -> RoundsReport:
    """Decide which samples Algorithm 1 keeps; write ``folder/kept/<part>.npy``, (rows,) bool, for each part.

    Started again with the same arguments, it goes on where it was interrupted.

    Args:
        parts: Arrow IPC files with a column of lists of strings, the turns. Their order by name is that of the samples.
        folder: for all that tasks exchange, and the result; every machine must see it by this path.
        executor: for instance ``lambda pipeline, tasks, logs: SlurmPipelineExecutor(pipeline, tasks=tasks,
            logging_dir=logs, time="02:00:00", partition="cpu", mem_per_cpu_gb=4)``; None: processes on this machine.
        workers: how many of these at once; None: one for each core.
        partitions: tasks that n-grams are divided among. One holds about 40 bytes for each n-gram that it gets, or 60.
        n, unit, bits, short: as of ``Deduplicator``.
        tail: so many undecided samples are finished without further rounds; 0: rounds to the end.

    Raises InputError: datatrove is missing, parts that cannot be, a folder of other settings. DataError: parts that
    cannot be read. OutputError: tasks that failed on other machines.
    """
    parts = tuple(sorted((Path(part).resolve() for part in parts), key=lambda part: part.name))
    names = [part.stem for part in parts]
    if len(set(names)) < len(names):
        raise InputError("parts of one name: their order and their results could not be told apart")
    if partitions < 1 or tail < 0:
        raise InputError(
            f"partitions: {partitions}, tail: {tail}; there is at least one partition, and no tail below 0"
        )
    run = _Run(Path(folder).resolve(), partitions, executor or _here(workers))
    settings: dict[str, Any] = dict(  # noqa: C408
        partitions=partitions, tail=tail, column=column, n=n, unit=unit, bits=bits, short=short
    )
    settings["parts"] = [[part.name, part.stat().st_size] for part in parts]
    if done := run.begin(settings):
        return done
    run.stage("hash", HashPart(run.folder, parts, partitions, column, n, unit, bits, short), len(parts))
    rows = np.array([load(run.folder / "hashed" / f"{k:05d}.rows.npy") for k in range(len(parts))])
    rows = rows.reshape(-1, 2)
    first = np.concatenate([[0], np.cumsum(rows[:, 0])]).astype(np.int64)
    save(run.folder / "first.npy", first)
    status, rounds = run.decide(int(first[-1]), int(rows[:, 1].sum()) * (bits // 8 + 4), bits, tail)
    finished = int((status == UNDECIDED).sum())
    if finished:
        run.finish(status, len(rounds))
    for name, begin, end in zip(names, first, first[1:], strict=False):
        save(run.folder / "kept" / f"{name}.npy", status[begin:end] == KEPT)
    report = RoundsReport(
        len(status), int((status == KEPT).sum()), int(rows[:, 1].sum()), tuple(rounds), finished
    )
    run.end(report)
    return report


@dataclass(frozen=True)
class _Run:
    folder: Path
    partitions: int
    executor: MakeExecutor

    def begin(self, settings: dict[str, Any]) -> RoundsReport | None:
        """Take the folder; what was done in it before, if all was. Raises InputError."""
        path = self.folder / "settings.json"
        if path.exists():
            if read_json(path) != settings:
                raise InputError(
                    f"'{self.folder}' is of other parts or settings; remove it, or give another folder"
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, settings)
        if not (self.folder / "report.json").exists():
            return None
        found = read_json(self.folder / "report.json")
        return RoundsReport(**{**found, "rounds": tuple(Round(**each) for each in found["rounds"])})

    def stage(self, name: str, step: Callable[..., None], tasks: int) -> None:
        """Run a step's tasks, but those that an earlier run has done, and wait for them."""
        if tasks == 0:
            return
        executor = self.executor([step], tasks, str(self.folder / "logs" / name))
        executor.run()
        while left := executor.get_incomplete_ranks(skip_completed=True):
            if not _is_queued(executor):
                raise OutputError(
                    f"{len(left)} of {tasks} tasks of stage '{name}' failed, the first is {left[0]}; "
                    f"their logs are in '{self.folder / 'logs' / name}', and the same call runs them again"
                )
            time.sleep(POLL_SECONDS)

    def decide(self, samples: int, hashed: int, bits: int, tail: int) -> tuple[np.ndarray, list[Round]]:
        """Rounds until all, or all but ``tail``, are decided: (S,) uint8 what each is."""
        status = np.zeros(samples, np.uint8)
        rounds: list[Round] = []
        undecided = samples
        while undecided and (undecided > tail or not rounds):
            number = len(rounds) + 1
            step = Vote(self.folder, number) if rounds else Group(self.folder, bits)
            self.stage(f"round-{number}", step, self.partitions)
            self._forget("groups", number - 1) if rounds else self._forget_hashes()
            blocked, dropped, voted = self._votes(number, samples)
            still = status == UNDECIDED
            keep, drop = still & ~blocked & ~dropped, still & dropped
            status[keep], status[drop] = KEPT, DROPPED
            sent = self._verdicts(number - 1) if rounds else hashed
            save_set(self.folder / "verdicts" / f"{number}.kept.npy", keep)
            save_set(self.folder / "verdicts" / f"{number}.dropped.npy", drop)
            rounds.append(Round(undecided, int(keep.sum()), int(drop.sum()), sent + voted))
            undecided = int((status == UNDECIDED).sum())
            last = rounds[-1]
            logger.info(
                f"round {number}: {last.kept} kept, {last.dropped} dropped, {undecided} undecided; "
                f"{last.shuffled / 1e6:.1f} MB shuffled"
            )
        return status, rounds

    def finish(self, status: np.ndarray, number: int) -> None:
        """Decide what is left in order, by the groups that are left."""
        from fastzoo.data.dedup.group_kernels import finish

        samples, groups, count = [np.zeros(0, np.uint32)], [np.zeros(0, np.int64)], 0
        for rank in range(self.partitions):
            starts, members = load_groups(self.folder, number, rank)
            samples.append(members)
            groups.append(np.repeat(np.arange(count, count + len(starts) - 1), np.diff(starts)))
            count += len(starts) - 1
        sample, group = np.concatenate(samples), np.concatenate(groups)
        order = np.argsort(sample, kind="stable")
        logger.info(f"{int((status == UNDECIDED).sum())} samples are finished in order")
        finish(sample[order], group[order], np.zeros(count, bool), status)

    def end(self, report: RoundsReport) -> None:
        write_json(self.folder / "report.json", asdict(report))
        for number in range(1, len(report.rounds) + 1):
            self._forget("groups", number)
        logger.info(
            f"{report.kept} of {report.samples} samples kept after {len(report.rounds)} rounds, {report.finished} "
            f"decided in order; {report.shuffled / 1e6:.1f} MB shuffled"
        )

    def _votes(self, number: int, samples: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Who waits, who is dropped, and the bytes that said so."""
        blocked, dropped, read = np.zeros(samples, bool), np.zeros(samples, bool), 0
        for rank in range(self.partitions):
            for which, into in (("blocked", blocked), ("dropped", dropped)):
                path = self.folder / "votes" / str(number) / f"{rank:05d}.{which}.npy"
                into |= load_set(path, samples)
                read += path.stat().st_size
        return blocked, dropped, read

    def _verdicts(self, number: int) -> int:
        """Bytes of a round's verdicts, which every partition reads."""
        paths = [self.folder / "verdicts" / f"{number}.{verdict}.npy" for verdict in ("kept", "dropped")]
        return self.partitions * sum(path.stat().st_size for path in paths)

    def _forget(self, what: str, number: int) -> None:
        shutil.rmtree(self.folder / what / str(number), ignore_errors=True)

    def _forget_hashes(self) -> None:
        for what in ("low", "high", "row"):
            for path in (self.folder / "hashed").glob(f"*.{what}.npy"):
                path.unlink()


def _here(workers: int | None) -> MakeExecutor:
    """Processes on this machine. Raises InputError: datatrove is missing."""
    try:
        from datatrove.executor import LocalPipelineExecutor
    except ImportError as error:
        raise InputError(
            f"deduplication in rounds needs datatrove ({one_line(error, 120)}): pip install 'fastzoo[cluster]'"
        ) from None

    def make(pipeline: list[Any], tasks: int, logs: str) -> Any:
        at_once = min(tasks, workers or os.cpu_count() or 1)
        return LocalPipelineExecutor(pipeline, tasks=tasks, workers=at_once, logging_dir=logs)

    return make


def _is_queued(executor: Any) -> bool:
    """Whether Slurm still has an executor's job; other executors are done when they return."""
    job = getattr(executor, "job_id", None)
    if job in (None, -1, "-1"):
        return False
    squeue = shutil.which("squeue")
    if squeue is None:
        return False
    found = subprocess.run([squeue, "-h", "-j", str(job)], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip())
