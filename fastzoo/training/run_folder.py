"""The folder of a run: begun, gone on with, completed, or kept after a failure."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fastzoo.config.reading import load_recipe
from fastzoo.config.recipe import Recipe, recipe_settings
from fastzoo.core.errors import InputError, OutputError
from fastzoo.core.files import (
    read_json,
    remove_folder,
    remove_partial,
    write_folder,
    write_text,
)
from fastzoo.core.lock import claim
from fastzoo.core.text import one_line
from fastzoo.data.sequences import described
from fastzoo.data.split import Data
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.load import ModelSource
from fastzoo.results.folder import (
    CARD,
    RECORD,
    RunFacts,
    public_name,
    versions,
    write_log,
    write_weights,
)
from fastzoo.training.checkpoints import FOLDER as CHECKPOINTS
from fastzoo.training.checkpoints import Checkpoint, differing, find_checkpoint, set_aside_newer
from fastzoo.training.learner import Learner

RECIPE_FILE = "recipe.yaml"

INTERRUPTED_FOLDER = "interrupted"


@dataclass(frozen=True)
class Start:
    """What a run's folder says about where to begin."""

    checkpoint: Checkpoint | None = None
    """Where training goes on; None: it begins."""
    complete: bool = False
    """Whether all is done already."""
    made: tuple[Path, ...] = ()
    """The folders around the run's own that were made for it, innermost first."""


def start_run(
    recipe: Recipe, settings: Mapping[str, Any], *, fresh: bool, say: Callable[[str], None]
) -> Start:
    """Make the run's folder, or find in it how far the same run came before.

    Args:
        settings: what a run must have in common with the one that it goes on with.
        fresh: move an older run aside and start over.
        say: told in one line what else than a new run this is.

    Raises:
        OutputError: the folder holds something else, or the run of another recipe, model or data;
            is in use by another process; cannot be written.
    """
    folder = recipe.folder
    made: tuple[Path, ...] = ()
    try:
        made = tuple(path for path in folder.parents if not path.exists())
        claim(folder, say)
        if fresh and (folder / RECIPE_FILE).exists():
            aside = next(
                path
                for n in count(1)
                if not (path := folder.with_name(f"{folder.name}.old-{n}")).exists()
            )
            folder.rename(aside)
            say(f"the run that was in {folder} is now in {aside}")
            claim(folder, say)
        remove_partial(folder)
        remove_partial(folder / CHECKPOINTS)
        if any(folder.iterdir()):
            return _go_on(recipe, settings, say)
        write_text(folder / RECIPE_FILE, recipe.to_yaml())
    except OSError as error:
        _remove_empty(made)
        raise OutputError(
            f"output.folder: '{folder}' cannot be written: {one_line(error.strerror or error)}"
        ) from None
    return Start(made=made)


def _go_on(recipe: Recipe, settings: Mapping[str, Any], say: Callable[[str], None]) -> Start:
    """What a folder that is not empty says."""
    folder = recipe.folder
    where = f"output.folder: '{folder}'"
    if not (folder / RECIPE_FILE).exists():
        raise OutputError(
            f"{where} already holds other files; give another with output.folder=... or move it away"
        )
    checkpoint = find_checkpoint(folder, say)
    if checkpoint:
        before = checkpoint.manifest["settings"]
    else:
        # Where there is no result yet nothing was made of a revision that is still needed.
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
            say(f"the last bits of the result may differ from an undisturbed run's: {difference}")
    complete = not checkpoint and all((folder / str(n) / CARD).exists() for n in recipe.names())
    return Start(checkpoint, complete)


def _settings_of(path: Path) -> dict[str, Any]:
    try:
        return recipe_settings(load_recipe(path))
    except InputError as error:
        raise OutputError(
            f"{error}; give another folder with output.folder=..., or --fresh, which moves this aside"
        ) from None


def _revisions(recipe: Recipe) -> dict[str, Any]:
    """What the first of a run's results was made of, if there is one."""
    try:
        record = read_json(recipe.folder / str(recipe.names()[0]) / RECORD)
        return {
            "model.revision": record["base_model"]["sha"],
            "data.revision": record["training_data"]["revision"],
            "evaluation.revision": record["evaluation_data"]["revision"],
        }
    except (InputError, KeyError, TypeError):
        return {}


def machine() -> dict[str, Any]:
    """What the last bits of a run's weights depend on besides its settings."""
    import torch

    # Libraries choose their loops by what a CPU can do.
    device = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {**versions(), "device": device, "threads": torch.get_num_threads()}


def complete_run(folder: Path) -> None:
    """Remove what only a run that is not complete needs."""
    for name in (CHECKPOINTS, INTERRUPTED_FOLDER):
        if (folder / name).exists():
            remove_folder(folder / name)


def withdraw_run(folder: Path, start: Start) -> None:
    """Remove the folder of a run that failed before it produced anything."""
    if os.listdir(folder) == [RECIPE_FILE]:
        (folder / RECIPE_FILE).unlink()
        _remove_empty([folder, *start.made])


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, innermost first, up to one that is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def keep_interrupted(
    run_folder: Path, learners: Sequence[Learner], facts: RunFacts, batch_size: int
) -> None:
    """Keep the SAEs that have no folder yet as they are: weights and log, no figures. Says so.

    A disk that refuses this too is reported and not raised: the run ends for another reason.
    """
    folder = run_folder / INTERRUPTED_FOLDER
    unsaved = [x for x in learners if not (run_folder / str(x.name)).exists()]
    try:
        for learner in unsaved:

            def fill(target: Path, learner: Learner = learner) -> None:
                write_weights(target, learner, learner.finished(), facts, batch_size)
                write_log(target / "training_log.csv", learner.log)

            write_folder(folder / str(learner.name), fill)
        if unsaved:
            print(f"kept the state of {len(unsaved)} SAEs in {folder}", file=sys.stderr)
    except OutputError as error:
        print(f"the state in training is lost: {error}", file=sys.stderr)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def run_settings(data: Data, recipe: Recipe, source: ModelSource) -> dict[str, Any]:
    """What runs with the same results have in common: recipe, model and data, on any machine."""
    return {
        **recipe_settings(recipe),
        "model.revision": source.sha,
        "data.revision": data.stream.rows.info.revision,
        "evaluation.revision": data.held_out_info.revision,
    }


def run_facts(data: Data, recipe: Recipe, source: ModelSource, reader: ResidualReader) -> RunFacts:
    """What all records of the run share."""
    seen = {int(i) for s in data.held_out for i in s.ids[s.special]}
    ids = sorted(seen)  # a tokenizer may reserve hundreds that no dialogue has
    tokens = data.chat.tokenizer.convert_ids_to_tokens(ids)
    return RunFacts(
        base_model={
            "name": public_name(source.name),
            "sha": source.sha,
            "class": type(reader.model).__name__,
            "dtype": str(reader.dtype).removeprefix("torch."),
        },
        training_data=described(data.stream.rows.info, data.stream.counts),
        evaluation_data=described(data.held_out_info, data.held_out_counts),
        special_tokens={str(i): token for i, token in zip(ids, tokens, strict=True)},
        recipe=recipe,
    )
