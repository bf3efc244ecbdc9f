"""What a checkpoint of a run in training holds, how it is written, verified and read again.

    checkpoints/step-00001234/
      manifest.json                          settings and state of the run; sha256 of every file
      <SAE>/weights.safetensors              and exp_avg, exp_avg_sq, counters
      <SAE>/state.json                       its log and numbers
      buffer/order.safetensors               the mixing buffer: order, generator
      buffer/<column>-<k>.safetensors        rows still to be served, in that order
      buffer/<column>-pending.safetensors    rows that did not fit into the buffer yet

SAEs and columns have files of their own, so that any number of processes can read what any other
number wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from fastzoo.core.errors import OutputError
from fastzoo.core.files import remove_folder, sha256_of, sync, write_json
from fastzoo.data.sequences import ResumePoint
from fastzoo.lm.activations import Columns, ResidualReader
from fastzoo.saes.names import SAEName
from fastzoo.training.buffer import BufferState, MixingBuffer
from fastzoo.training.trainer import Trainer

FORMAT = 5

CHECKPOINT_FOLDER = "checkpoints"

MANIFEST = "manifest.json"


def sae_bytes(name: SAEName, width: int) -> int:
    """About how many bytes an SAE's weights have."""
    return 4 * 2 * width * width * name.expansion


def checkpoint_bytes(names: Sequence[SAEName], width: int, rows: int, itemsize: int) -> int:
    """About how many bytes a checkpoint has: weights and two moments, and ``rows`` of each layer's activations."""
    return (
        sum(3 * sae_bytes(name, width) for name in names)
        + len({n.layer for n in names}) * rows * width * itemsize
    )


class Damaged(Exception):
    """A checkpoint is not as it was written; says what is wrong with it."""


@dataclass(frozen=True)
class InTraining:
    """The parts of a run whose state a checkpoint holds."""

    trainer: Trainer
    buffer: MixingBuffer
    reader: ResidualReader


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
    def position(self) -> ResumePoint:
        """Where the token stream goes on."""
        return ResumePoint.of(self.manifest["buffer"]["position"])

    def restore(self, parts: InTraining) -> None:
        """Bring new parts into the saved state: the trainer's SAEs, and the columns that they need."""
        trainer, buffer = parts.trainer, parts.buffer
        parts.reader.restore(self.manifest["reader"])
        trainer.restore(self.manifest["trainer"])
        for learner in trainer.learners:
            name = str(learner.name)
            plain = json.loads((self.path / name / "state.json").read_text(encoding="utf-8"))
            learner.restore(plain, partial(self._tensors, name))
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

    def _pieces(self, name: str) -> Iterator[Tensor]:
        piece = 0
        while self._has(file := f"buffer/{name}-{piece}"):
            yield self._tensors(file)["rows"]
            piece += 1

    def _has(self, name: str) -> bool:
        return f"{name}.safetensors" in self.manifest["files"]

    def _tensors(self, *name: str) -> dict[str, Tensor]:
        return load_file(self.path / f"{'/'.join(name)}.safetensors")


def find_checkpoint(run_folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest undamaged checkpoint of a run, if it has any; ``say`` is told which newer ones are damaged.

    Raises OutputError if all are damaged, or the newest is of another version of fastzoo.
    """
    folder, problems = run_folder / CHECKPOINT_FOLDER, []
    for path in sorted(folder.glob("step-*"), reverse=True):
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
            f"'{folder}' holds no checkpoint that can be used: {'; '.join(problems)}; --fresh starts over"
        )
    return None


def set_aside_newer(checkpoint: Checkpoint) -> None:
    """Rename newer checkpoints, which are damaged, so that new ones can have their names."""
    for path in checkpoint.path.parent.glob("step-*"):
        if path.name > checkpoint.path.name:
            aside = path.with_name(f"damaged-{path.name}")
            if aside.exists():
                remove_folder(aside)
            path.rename(aside)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a manifest and compare every file with it.

    Raises Damaged if a file is missing, cut or changed, even by a single bit, and OutputError if it was
    written by a version of fastzoo with another format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("sha256") != digest_of(manifest):
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


def digest_of(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest without its own."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which settings differ, each as ``key: then, now``; of a digest, its beginning."""

    def show(values: Mapping[str, Any], key: str) -> str:
        shown = json.dumps(values[key], ensure_ascii=False) if key in values else "not there"
        return re.sub("([0-9a-f]{12})[0-9a-f]{28,}", r"\1...", shown)

    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [f"{key}: {show(before, key)} then, {show(now, key)} now" for key in keys]


def write_files(folder: Path, parts: InTraining, columns: Sequence[str], *, order: bool) -> dict[str, Any]:
    """Write one process's files of a checkpoint: its SAEs, some ``columns`` of the buffer, maybe its ``order``.

    One after the other: none needs a copy of more than an SAE's weights. Returns size and sha256 by
    file, for the manifest.
    """
    written: dict[str, Any] = {}

    def note(name: str) -> None:
        sync(folder / name)
        written[name] = {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}

    def save(name: str, tensors: Mapping[str, Tensor]) -> None:
        name = f"{name}.safetensors"
        (folder / name).parent.mkdir(exist_ok=True)
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, folder / name)
        note(name)

    for learner in parts.trainer.learners:
        for group, tensors in learner.tensors():
            save(f"{learner.name}/{group}", tensors)
        write_json(folder / str(learner.name) / "state.json", learner.plain_state())
        note(f"{learner.name}/state.json")
    state = parts.buffer.state()
    for column in columns:
        for piece, rows in enumerate(parts.buffer.unserved(column)):
            save(f"buffer/{column}-{piece}", {"rows": rows})
        if column in state.pending:
            save(f"buffer/{column}-pending", {column: state.pending[column]})
    if order:
        save("buffer/order", {"order": state.order, "generator": state.generator})
    return written


def write_manifest(
    folder: Path,
    parts: InTraining,
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
    files: Mapping[str, Any],
) -> None:
    """Complete a checkpoint in which every process has written its files."""
    state = parts.buffer.state()
    manifest = {
        "format": FORMAT,
        "settings": settings,
        "machine": machine,
        "trainer": parts.trainer.plain_state(),
        "buffer": {"served": state.served, "ending": state.ending, "position": state.position.as_dict()},
        "reader": parts.reader.state(),
        "files": files,
    }
    # As it will be read: JSON has no tuples, and only texts as keys.
    manifest = json.loads(json.dumps(manifest))
    write_json(folder / MANIFEST, {**manifest, "sha256": digest_of(manifest)})
    for path in folder.rglob("*"):
        if path.is_dir() or path.name == MANIFEST:
            sync(path)
