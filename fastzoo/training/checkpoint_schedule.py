"""When a run writes checkpoints, and after which step it stops: agreed among its processes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastzoo.config.recipe import CheckpointSection
from fastzoo.core.files import REFUSALS, partial_of, put_in_place, refused, remove_folder
from fastzoo.core.processes import asked_to_stop, board
from fastzoo.core.signals import Stopped
from fastzoo.saes.names import SAEName
from fastzoo.training.checkpoints import (
    CHECKPOINT_FOLDER,
    InTraining,
    checkpoint_bytes,
    write_files,
    write_manifest,
)

SHARE = 0.02
"""Of the time, what checkpoints may take where ``checkpoint.minutes`` is not given."""

ASSUMED_RATE = 200e6
"""Bytes per second that a disk takes, until one checkpoint was timed."""


class CheckpointSchedule:
    """Writes a run's checkpoints when they are due, and the last one when the run is to stop.

    Every process of the run has one, and calls ``after_step`` after every step. ``owners`` are the SAEs
    of every rank; a run that goes on must have ``settings`` in common with this one, and should have
    ``machine``.
    """

    def __init__(
        self,
        run_folder: Path,
        section: CheckpointSection,
        settings: Mapping[str, Any],
        machine: Mapping[str, Any],
        owners: Sequence[Sequence[SAEName]],
        rank: int,
    ) -> None:
        self.folder, self.section = run_folder / CHECKPOINT_FOLDER, section
        self.settings, self.machine, self.owners, self.rank = settings, machine, owners, rank
        self.written, self.seconds = 0, 0.0
        """How many were written, and how long that took."""
        self._parts: InTraining | None = None
        self._cost: float | None = None
        self._refills = 0
        self._stop_after: int | None = None

    def watch(self, parts: InTraining) -> None:
        """From now on these are in training, from the last checkpoint on if there is one."""
        self._parts = parts
        self._step_written = self.step
        self._last = time.monotonic()

    @property
    def parts(self) -> InTraining:
        assert self._parts is not None
        return self._parts

    @property
    def step(self) -> int:
        return self.parts.trainer.step_number

    def after_step(self) -> None:
        """Write a checkpoint if one is due.

        Raises Stopped if the run was asked to stop, once the checkpoint of this step is written;
        OutputError if the disk refuses (checkpoints before are kept); PeerEnded if another process ended.
        """
        if self.parts.buffer.half_served and self._due():
            self._write()
        self._stop_if_agreed()

    def at_end(self) -> None:
        """Write the checkpoint that the last step leaves; raises as ``after_step`` does."""
        # Another process that is asked to stop may not have come as far as this.
        board().write(f"stop after/{self.rank}", str(self.step))
        self._write()

    def idle(self) -> None:
        """Called while something is waited for or refilled: stop, if that was asked for."""
        if self._parts is not None and self.step:
            self._stop_if_agreed()
        elif number := asked_to_stop():
            raise Stopped(number, " before the first step")

    def summary(self, seconds: float) -> str:
        """One line: how many, and what share of so many seconds of training they took."""
        share = self.seconds / seconds if seconds else 0.0
        return f"checkpoints: {self.written} in {self.seconds:.1f} s, {share:.1%} of training"

    def _due(self) -> bool:
        """Rank 0's clock decides for all."""
        self._refills += 1
        key = f"due/{self._refills}"
        if self.rank == 0:
            cost = self._cost if self._cost is not None else self._size() / ASSUMED_RATE
            between = cost / SHARE if self.section.minutes is None else 60 * self.section.minutes
            due = time.monotonic() - self._last >= between
            board().write(key, "yes" if due else "no")
        return board().read(key, self._answer) == "yes"

    def _size(self) -> int:
        reader, names = self.parts.reader, [name for own in self.owners for name in own]
        width = reader.model.config.get_text_config().hidden_size
        return checkpoint_bytes(names, width, self.parts.buffer.half, reader.dtype.itemsize)

    def _answer(self) -> None:
        """If the run is asked to stop, tell the others once after which step this process can."""
        if self._stop_after is None and asked_to_stop():
            self._stop_after = self.step
            board().write(f"stop after/{self.rank}", str(self.step))

    def _stop_if_agreed(self) -> None:
        """Once asked to stop, go on to the step of the process that is furthest, and stop there."""
        self._answer()
        if self._stop_after is None:
            return
        notes = [board().read(f"stop after/{rank}") for rank in range(len(self.owners))]
        self._stop_after = max(map(int, notes))
        if self.step >= self._stop_after:
            self._write()
            number = asked_to_stop()
            assert number is not None
            raise Stopped(number, f" after step {self.step}")

    def _write(self) -> None:
        """All processes write their files; rank 0 makes them a checkpoint once all are complete."""
        if self.step == self._step_written:
            return
        began = time.monotonic()
        self.written += 1
        note = f"checkpoint {self.written}"
        final = self.folder / f"step-{self.step:08d}"
        temporary = partial_of(final)
        main = self.rank == 0
        try:
            if main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                board().write(f"{note} begun")
            board().read(f"{note} begun", self._answer)
            own = write_files(temporary, self.parts, self._columns(), order=main)
            board().write(f"{note}/{self.rank}", json.dumps(own))
            if main:
                files: dict[str, Any] = {}
                for rank in range(len(self.owners)):
                    files |= json.loads(board().read(f"{note}/{rank}", self._answer))
                write_manifest(temporary, self.parts, self.settings, self.machine, files)
                put_in_place(temporary, final)
                for old in sorted(self.folder.glob("step-*"))[: -self.section.keep_last]:
                    remove_folder(old)
                board().write(f"{note} complete")
            board().read(f"{note} complete", self._answer)
        except REFUSALS as error:
            raise refused(final, error) from None
        finally:
            if main:
                shutil.rmtree(temporary, ignore_errors=True)
                with suppress(OSError):  # not empty, as a rule
                    self.folder.rmdir()
        self._step_written = self.step
        self._last = time.monotonic()
        self._cost = self._last - began
        self.seconds += self._cost

    def _columns(self) -> list[str]:
        """The buffer's columns that this rank writes: the first rank that has a column does."""
        layers = [{name.layer for name in own} for own in self.owners]
        before = set().union(*layers[: self.rank])
        columns = [f"L{layer}" for layer in sorted(layers[self.rank] - before)]
        return ["position", "special", *columns] if self.rank == 0 else columns
