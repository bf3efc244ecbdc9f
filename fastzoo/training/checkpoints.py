"""Checkpoints of a run in training: complete, verified, the same for any number of processes.

    checkpoints/step-00001234/
      manifest.json                          settings and state of the run; sha256 of every file
      <SAE>/weights.safetensors              and exp_avg, exp_avg_sq, counters
      <SAE>/state.json                       its log and numbers
      buffer/order.safetensors               the mixing buffer: order, generator
      buffer/<column>-<k>.safetensors        rows still to be served, in that order
      buffer/<column>-pending.safetensors    rows that did not fit into the buffer yet

SAEs and columns have files of their own, so that other processes can read them than wrote them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from fastzoo.config.recipe import CheckpointSection
from fastzoo.core.errors import OutputError
from fastzoo.core.files import (
    REFUSALS,
    partial_of,
    publish,
    refused,
    remove_folder,
    sha256_of,
    sync,
    write_json,
)
from fastzoo.core.processes import Stopped, asked_to_stop, board
from fastzoo.data.sequences import Position
from fastzoo.lm.activations import Columns, ResidualReader
from fastzoo.saes.names import SAEName
from fastzoo.training.buffer import BufferState, MixingBuffer
from fastzoo.training.trainer import Trainer

FORMAT = 1

FOLDER = "checkpoints"

MANIFEST = "manifest.json"

SHARE = 0.02
"""Of the time, what checkpoints may take where ``checkpoint.minutes`` is not given."""

ASSUMED_RATE = 200e6
"""Bytes per second that a disk takes, until it was seen what it takes."""


# --- reading -------------------------------------------------------------------------------------


class Damaged(Exception):
    """A checkpoint is not what was written; says what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """How many steps it is after."""
        return int(self.manifest["trainer"]["step"])

    @property
    def position(self) -> Position:
        """Where the token stream goes on."""
        return Position.of(self.manifest["buffer"]["position"])

    def restore(self, trainer: Trainer, buffer: MixingBuffer, reader: ResidualReader) -> None:
        """Make new ones what they were: the SAEs that the trainer has, and the columns of these."""
        reader.restore(self.manifest["reader"])
        trainer.restore(self.manifest["trainer"])
        for learner in trainer.learners:
            name = str(learner.name)
            plain = json.loads((self.path / name / "state.json").read_text(encoding="utf-8"))
            learner.restore(plain, partial(self._group, name))
        columns = ["position", "special"]
        columns += sorted({f"L{learner.name.layer}" for learner in trainer.learners})
        pending: Columns = {}
        for name in columns:
            if self._has(file := f"buffer/{name}-pending"):
                pending |= self._tensors(file)
        order, plain = self._tensors("buffer/order"), self.manifest["buffer"]
        state = BufferState(**{**plain, **order, "pending": pending, "position": self.position})
        buffer.restore(state, trainer.device)
        for name in columns:
            buffer.put_back(name, self._pieces(name))

    def _group(self, name: str, group: str) -> dict[str, Tensor]:
        return self._tensors(f"{name}/{group}")

    def _pieces(self, name: str) -> Iterator[Tensor]:
        piece = 0
        while self._has(file := f"buffer/{name}-{piece}"):
            yield self._tensors(file)["rows"]
            piece += 1

    def _has(self, name: str) -> bool:
        return f"{name}.safetensors" in self.manifest["files"]

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.path / f"{name}.safetensors")


def find_checkpoint(run_folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint of a run whose files are all as they were written, if it has any.

    Args:
        say: told, in one line each, which newer ones are damaged.

    Raises:
        OutputError: there are only damaged ones, or the newest is of another version of fastzoo.
    """
    problems: list[str] = []
    for path in sorted((run_folder / FOLDER).glob("step-*"), reverse=True):
        try:
            checkpoint = open_checkpoint(path)
        except Damaged as damage:
            problems.append(f"{path.name} is damaged ({damage})")
            continue
        for problem in problems:
            say(f"{problem}; the one before is used: {path.name}")
        return checkpoint
    if problems:
        raise OutputError(
            f"'{run_folder / FOLDER}' holds no checkpoint that can be used: {'; '.join(problems)}; "
            "--fresh starts over"
        )
    return None


def set_aside_newer(checkpoint: Checkpoint) -> None:
    """Take newer ones, which are damaged, out of the way of those that will be written."""
    for path in checkpoint.path.parent.glob("step-*"):
        if path.name > checkpoint.path.name:
            aside = path.with_name(f"damaged-{path.name}")
            if aside.exists():
                remove_folder(aside)
            path.rename(aside)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a manifest and compare every file with it.

    Raises:
        Damaged: a file is missing, cut or changed, be it by a single bit.
        OutputError: it was written by a version of fastzoo whose checkpoints are different.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("sha256") != _digest(manifest):
            raise Damaged(f"{MANIFEST} was changed")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise Damaged(f"{MANIFEST} is missing or was changed") from None
    if manifest["format"] != FORMAT:
        raise OutputError(
            f"'{path}' has format {manifest['format']}, this version of fastzoo has {FORMAT}; finish "
            f"the run with fastzoo {manifest['machine']['fastzoo']}, or start over with --fresh"
        )
    for name, entry in manifest["files"].items():
        try:
            if (path / name).stat().st_size != entry["size"]:
                raise Damaged(f"{name} is not complete")
            if sha256_of(path / name) != entry["sha256"]:
                raise Damaged(f"{name} was changed")
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror}") from None
    return Checkpoint(path, manifest)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


# --- writing -------------------------------------------------------------------------------------


class Checkpoints:
    """Writes a run's checkpoints when they are due, and the last one when it is to stop.

    Every process of the run has one, and calls ``after_step`` after every step.

    Args:
        settings: what a run that goes on must have in common with this one; plain data.
        machine: what it should have in common with it; plain data.
        owners: the SAEs of every rank.
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
        self.folder, self.section = run_folder / FOLDER, section
        self.settings, self.machine = settings, machine
        self.owners, self.rank = owners, rank
        self.written, self.seconds = 0, 0.0
        """How many were written, and how long that took."""
        self._parts: tuple[Trainer, MixingBuffer, ResidualReader] | None = None
        self._last = time.monotonic()
        self._cost: float | None = None
        self._refills = 0
        self._stop_after: int | None = None
        self._step_written = 0

    def watch(self, trainer: Trainer, buffer: MixingBuffer, reader: ResidualReader) -> None:
        """From now on this is what is in training; where it goes on, from the last checkpoint."""
        self._parts = trainer, buffer, reader
        self._step_written = self.step
        self._last = time.monotonic()

    @property
    def step(self) -> int:
        assert self._parts is not None
        return self._parts[0].step_number

    def after_step(self) -> None:
        """Write a checkpoint if one is due.

        Raises:
            Stopped: the run was asked to stop, and the checkpoint of this step is written.
            OutputError: the disk refuses; the checkpoints before are kept.
            PeerEnded: another process ended.
        """
        assert self._parts is not None
        due = self._parts[1].half_served and self._due()
        if due or self._is_last_step():
            self._write()
        self._leave_if_asked()

    def at_end(self) -> None:
        """Write the checkpoint that the last step leaves; raises as ``after_step`` does."""
        # Others may be asked to stop who have not come as far as this.
        board().write(f"stop after/{self.rank}", str(self.step))
        self._write()

    def idle(self) -> None:
        """While something is waited for or refilled: stop, if that was asked for."""
        if self._parts is None or not self._parts[0].step_number:
            if number := asked_to_stop():
                raise Stopped(number, " before the first step")
            return
        if self._is_last_step():
            self._write()
        self._leave_if_asked()

    def summary(self, seconds: float) -> str:
        """One line: how many, and what share of so many seconds of training they took."""
        share = self.seconds / seconds if seconds else 0.0
        return f"checkpoints: {self.written} in {self.seconds:.1f} s, {share:.1%} of training"

    # --- when ---

    def _due(self) -> bool:
        """Rank 0's clock says so for all."""
        self._refills += 1
        key = f"due/{self._refills}"
        if self.rank == 0:
            if self.section.minutes is not None:
                between = 60 * self.section.minutes
            else:
                cost = self._cost if self._cost is not None else self._size() / ASSUMED_RATE
                between = cost / SHARE
            due = time.monotonic() - self._last >= between
            board().write(key, "yes" if due else "no")
        return board().read(key, self._answer) == "yes"

    def _size(self) -> float:
        """Bytes of a checkpoint, about."""
        assert self._parts is not None
        _, buffer, reader = self._parts
        names = [name for own in self.owners for name in own]
        width = reader.model.config.get_text_config().hidden_size
        saes = sum(3 * 4 * 2 * width * width * name.expansion for name in names)
        return saes + len({n.layer for n in names}) * buffer.half * width * reader.dtype.itemsize

    def _answer(self) -> None:
        """Once it is asked for, tell the others after which step this process can stop."""
        if self._stop_after is None and asked_to_stop():
            self._stop_after = self.step
            board().write(f"stop after/{self.rank}", str(self.step))

    def _is_last_step(self) -> bool:
        """Whether all were asked to stop, and none of them has gone further than this."""
        self._answer()
        if self._stop_after is None:
            return False
        notes = [board().read(f"stop after/{rank}") for rank in range(len(self.owners))]
        self._stop_after = max(map(int, notes))
        return self.step >= self._stop_after

    def _leave_if_asked(self) -> None:
        if self._is_last_step():
            number = asked_to_stop()
            assert number is not None
            raise Stopped(number, f" after step {self.step}")

    # --- what ---

    def _write(self) -> None:
        """All processes write their files; rank 0 makes them a checkpoint once all are complete."""
        if self.step == self._step_written:
            return
        began = time.monotonic()
        self.written += 1
        note = f"checkpoint {self.written}"
        final = self.folder / f"step-{self.step:08d}"
        temporary = partial_of(final)
        try:
            if self.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                board().write(f"{note} begun")
            board().read(f"{note} begun", self._answer)
            own = {name: _entry(temporary, name) for name in self._write_own(temporary)}
            board().write(f"{note}/{self.rank}", json.dumps(own))
            if self.rank == 0:
                self._publish(temporary, final, note)
                board().write(f"{note} complete")
            board().read(f"{note} complete", self._answer)
        except REFUSALS as error:
            raise refused(final, error) from None
        finally:
            if self.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                with suppress(OSError):  # not empty, as a rule
                    self.folder.rmdir()
        self._step_written = self.step
        self._last = time.monotonic()
        self._cost = self._last - began
        self.seconds += self._cost

    def _publish(self, temporary: Path, final: Path, note: str) -> None:
        files: dict[str, Any] = {}
        for rank in range(len(self.owners)):
            files |= json.loads(board().read(f"{note}/{rank}", self._answer))
        assert self._parts is not None
        trainer, buffer, reader = self._parts
        state = buffer.state()
        manifest = {
            "format": FORMAT,
            "settings": self.settings,
            "machine": self.machine,
            "trainer": trainer.plain_state(),
            "buffer": {
                "served": state.served,
                "ending": state.ending,
                "position": state.position.as_dict(),
            },
            "reader": reader.state(),
            "files": files,
        }
        # As it will be read: JSON has no tuples, and only texts as keys.
        manifest = json.loads(json.dumps(manifest))
        write_json(temporary / MANIFEST, {**manifest, "sha256": _digest(manifest)})
        for path in temporary.rglob("*"):
            if path.is_dir() or path.name == MANIFEST:
                sync(path)
        publish(temporary, final)
        for old in sorted(self.folder.glob("step-*"))[: -self.section.keep_last]:
            remove_folder(old)

    def _write_own(self, folder: Path) -> Iterator[str]:
        """This rank's files, one after the other: none needs a copy of more than an SAE's weights."""
        assert self._parts is not None
        trainer, buffer, _ = self._parts

        def save(name: str, tensors: Mapping[str, Tensor]) -> str:
            path = folder / f"{name}.safetensors"
            path.parent.mkdir(exist_ok=True)
            save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path)
            return f"{name}.safetensors"

        for learner in trainer.learners:
            for group, tensors in learner.tensors():
                yield save(f"{learner.name}/{group}", tensors)
            name = f"{learner.name}/state.json"
            write_json(folder / name, learner.plain_state())
            yield name
        state = buffer.state()
        for column in self._columns():
            for piece, rows in enumerate(buffer.unserved(column)):
                yield save(f"buffer/{column}-{piece}", {"rows": rows})
            if column in state.pending:
                yield save(f"buffer/{column}-pending", {column: state.pending[column]})
        if self.rank == 0:
            yield save("buffer/order", {"order": state.order, "generator": state.generator})

    def _columns(self) -> list[str]:
        """The columns that this rank writes: of several that have one, the first does."""
        layers = [{name.layer for name in own} for own in self.owners]
        before = set().union(*layers[: self.rank])
        columns = [f"L{layer}" for layer in sorted(layers[self.rank] - before)]
        return ["position", "special", *columns] if self.rank == 0 else columns


def _entry(folder: Path, name: str) -> dict[str, Any]:
    sync(folder / name)
    return {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which settings differ, each as ``key: then, now``."""

    def show(values: Mapping[str, Any], key: str) -> str:
        return json.dumps(values[key], ensure_ascii=False) if key in values else "not there"

    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [f"{key}: {show(before, key)} then, {show(now, key)} now" for key in keys]
