"""The folder of a run: begun, gone on with, completed, or kept after a failure."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fastzoo.config.reading import load_recipe
from fastzoo.config.recipe import Recipe, recipe_settings
from fastzoo.core.errors import InputError, OutputError
from fastzoo.core.files import read_json, remove_folder, remove_partial, write_folder, write_text
from fastzoo.core.lock import INSIDE, folder_lock
from fastzoo.core.text import one_line
from fastzoo.hub.verified_files import in_words
from fastzoo.results.folder import CARD, LIBRARIES, RECORD, RunFacts, write_log, write_weights
from fastzoo.training.checkpoints import (
    CHECKPOINT_FOLDER,
    Checkpoint,
    checkpoint_bytes,
    differing,
    find_checkpoint,
    sae_bytes,
    set_aside_newer,
)
from fastzoo.training.learner import Learner
from fastzoo.training.run_record import machine, model_settings

RECIPE_FILE = "recipe.yaml"

INTERRUPTED_FOLDER = "interrupted"


@dataclass(frozen=True)
class Start:
    """Where a run begins, as its folder says."""

    checkpoint: Checkpoint | None = None
    """What training goes on from; None: it begins."""
    complete: bool = False
    """Whether all is done already."""


def lock_run(folder: Path, say: Callable[[str], None]) -> ExitStack:
    """Make the folder of a run, and keep others from using it until the returned ``with`` block ends.

    Raises OutputError if it cannot be written, or another process uses it.
    """
    try:
        return folder_lock(folder, say)
    except OSError as error:
        raise _unwritable(folder, error) from None


def start_run(
    recipe: Recipe, settings: Mapping[str, Any], *, fresh: bool, say: Callable[[str], None]
) -> Start:
    """Begin a run in its folder, or find there how far the same run came before.

    Args:
        settings: what a run must have in common with the one that it goes on with.
        fresh: move an older run aside and start over.
        say: told in one line if this is not simply a new run.

    Raises OutputError if the folder holds something else or a run with other settings, or cannot be
    written.
    """
    folder = recipe.folder
    try:
        if fresh and (folder / RECIPE_FILE).exists():
            names = (folder.with_name(f"{folder.name}.old-{n}") for n in count(1))
            aside = next(path for path in names if not path.exists())
            folder.rename(aside)
            folder.mkdir(exist_ok=True)
            say(f"the run that was in {folder} is now in {aside}")
        remove_partial(folder)
        remove_partial(folder / CHECKPOINT_FOLDER)
        if _names_in(folder):
            return _go_on(recipe, settings, say)
        write_text(folder / RECIPE_FILE, recipe.to_yaml())
    except OSError as error:
        raise _unwritable(folder, error) from None
    return Start()


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"output.folder: '{folder}' cannot be written: {one_line(error.strerror or error)}")


def _names_in(folder: Path) -> set[str]:
    return set(os.listdir(folder)) - {INSIDE}


def _go_on(recipe: Recipe, settings: Mapping[str, Any], say: Callable[[str], None]) -> Start:
    """Where to begin in a folder that is not empty."""
    folder, where = recipe.folder, f"output.folder: '{recipe.folder}'"
    if not (folder / RECIPE_FILE).exists():
        raise OutputError(
            f"{where} already holds other files; give another with output.folder=... or move it away"
        )
    checkpoint = find_checkpoint(folder, say)
    if checkpoint:
        before = checkpoint.manifest["settings"]
    else:  # where there is no result yet, no revision matters so far
        before = {**settings, **_settings_of(folder / RECIPE_FILE), **_revisions(recipe)}
    if differences := differing(before, settings):
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise OutputError(
            f"{where} holds another run ({one_line('; '.join(differences[:3]), 600)}{more}); go on with "
            "its settings, give another folder with output.folder=..., or --fresh, which moves it aside"
        )
    if checkpoint:
        set_aside_newer(checkpoint)
        say(f"going on after step {checkpoint.step} of {recipe.training.steps}")
        for difference in differing(checkpoint.manifest["machine"], machine()):
            bits = "" if difference.partition(":")[0] in LIBRARIES else "the last bits of "
            say(f"{bits}the result may differ from an undisturbed run's: {difference}")
    complete = not checkpoint and all((folder / str(n) / CARD).exists() for n in recipe.names())
    return Start(checkpoint, complete)


def _settings_of(path: Path) -> dict[str, Any]:
    try:
        return recipe_settings(load_recipe(path))
    except InputError as error:
        more = "give another folder with output.folder=..., or --fresh, which moves this aside"
        raise OutputError(f"{error}; {more}") from None


def _revisions(recipe: Recipe) -> dict[str, Any]:
    """The revisions that the first of a run's results was made from, if there is a result."""
    try:
        record = read_json(recipe.folder / str(recipe.names()[0]) / RECORD)
        return {
            **model_settings(record["base_model"]),
            "data.revision": record["training_data"]["revision"],
            "evaluation.revision": record["evaluation_data"]["revision"],
        }
    except (InputError, KeyError, TypeError):
        return {}


def complete_run(folder: Path) -> None:
    """Remove what only an unfinished run needs."""
    for name in (CHECKPOINT_FOLDER, INTERRUPTED_FOLDER):
        if (folder / name).exists():
            remove_folder(folder / name)


def withdraw_run(folder: Path) -> None:
    """Remove the folder of a run that failed before it produced anything."""
    if _names_in(folder) == {RECIPE_FILE}:
        (folder / RECIPE_FILE).unlink()
        with suppress(OSError):
            folder.rmdir()


def check_space(recipe: Recipe, start: Start, width: int, dtype: str, say: Callable[[str], None]) -> None:
    """Look whether the disk has room for what a run will write into its folder, which is there.

    Args:
        dtype: of the activations.
        say: told in one line where there is room for one more checkpoint, and not for as many as are kept.

    Raises OutputError: there is not even room for one checkpoint and the results; a new run is withdrawn.
    """
    if start.complete:
        return
    folder, names = recipe.folder, recipe.names()
    results = sum(sae_bytes(name, width) for name in names if not (folder / str(name)).exists())
    itemsize = 4 if dtype == "float32" else 2
    one = checkpoint_bytes(names, width, recipe.training.buffer_tokens // 2, itemsize)
    if start.checkpoint and start.checkpoint.step >= recipe.training.steps:
        one = 0  # the last is written
    there = sum(p.stat().st_size for p in (folder / CHECKPOINT_FOLDER).rglob("*") if p.is_file())
    free = shutil.disk_usage(folder).free
    if results + one > free:
        withdraw_run(folder)
        needed = f"this run needs {in_words(one)} for a checkpoint and {in_words(results)} for its results"
        raise OutputError(
            f"output.folder: {in_words(free)} are free at '{folder}', and {needed}; give another folder, or "
            "free some space"
        )
    most = recipe.checkpoint.keep_last + 1  # while the newest is written
    if one and results + most * one - there > free:
        needed = f"{in_words(free)} are free, {most} checkpoints take {in_words(most * one)}, results {in_words(results)}"
        say(f"'{folder}' may become full: {needed}; checkpoint.keep_last=1 takes least")


def keep_interrupted(learners: Sequence[Learner], facts: RunFacts) -> None:
    """Save the SAEs that have no folder yet as they are: weights and log, no figures. Says so.

    A disk that refuses this too is reported and not raised: the run ends for another reason.
    """
    recipe = facts.recipe
    folder = recipe.folder / INTERRUPTED_FOLDER
    unsaved = [x for x in learners if not (recipe.folder / str(x.name)).exists()]
    try:
        for learner in unsaved:

            def fill(target: Path, learner: Learner = learner) -> None:
                sparsity = learner.log_sparsity(recipe.training.batch_size)
                write_weights(target, learner, learner.finished(), facts, sparsity)
                write_log(target / "training_log.csv", learner.log)

            write_folder(folder / str(learner.name), fill)
        if unsaved:
            print(f"kept the state of {len(unsaved)} SAEs in {folder}", file=sys.stderr)
    except OutputError as error:
        print(f"the state in training is lost: {error}", file=sys.stderr)
        with suppress(OSError):  # missing, or not empty
            folder.rmdir()
