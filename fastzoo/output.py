"""The run's folder and, in it, one complete folder per SAE."""

from __future__ import annotations

import csv
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from fastzoo import __version__
from fastzoo.card import render_card
from fastzoo.checkpoints import FOLDER as CHECKPOINTS
from fastzoo.checkpoints import Checkpoint, differing, find_checkpoint, set_aside_newer
from fastzoo.config import EMBEDDED_DATA, EMBEDDED_MODEL, Recipe, load_recipe, recipe_settings
from fastzoo.errors import InputError, OutputError, one_line
from fastzoo.evaluate import Evaluation
from fastzoo.files import (
    claim,
    read_json,
    remove_folder,
    remove_partial,
    write_folder,
    write_json,
    write_text,
)
from fastzoo.formats import save_sae
from fastzoo.licences import notice
from fastzoo.metrics import DEFINITIONS
from fastzoo.plot import plot_training
from fastzoo.saes.base import SAE
from fastzoo.trainer import LOG_COLUMNS, Learner
from fastzoo.zoo import paper_figures

RECIPE_FILE = "recipe.yaml"
PACKAGES = ("torch", "numba", "transformers", "tokenizers", "accelerate", "datasets", "safetensors")
"""Their versions can change a result."""
INTERRUPTED_FOLDER = "interrupted"
RECORD, CARD, NOTICE = "config.json", "README.md", "NOTICE"


@dataclass(frozen=True)
class RunFacts:
    """What all SAEs of a run share, as plain data for their records and cards."""

    base_model: dict[str, Any]
    training_data: dict[str, Any]
    evaluation_data: dict[str, Any]
    special_tokens: dict[str, str]
    """Token id (as text) to token, of those that occur in the held-out dialogues."""
    recipe: Recipe


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


def save_result(
    run_folder: Path,
    learner: Learner,
    sae: SAE,
    evaluation: Evaluation,
    facts: RunFacts,
    batch_size: int,
) -> Path:
    """Write the complete folder of one trained SAE: it appears whole or not at all.

    Raises:
        OutputError: the disk refuses.
    """
    folder = run_folder / str(learner.name)
    record = _record(learner, sae, facts)
    figures = _figures(learner, evaluation, facts, batch_size)

    def fill(target: Path) -> None:
        _write_weights(target, learner, sae, facts, batch_size)
        write_json(target / RECORD, record)
        write_json(target / "metrics.json", figures)
        _write_log(target / "training_log.csv", learner.log)
        plot_training(learner.log, str(learner.name), target / "training.png")
        (target / CARD).write_text(render_card(record, figures), encoding="utf-8")
        if text := notice(facts.base_model["name"]):
            (target / NOTICE).write_text(text, encoding="utf-8")

    write_folder(folder, fill)
    return folder


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
                _write_weights(target, learner, learner.finished(), facts, batch_size)
                _write_log(target / "training_log.csv", learner.log)

            write_folder(folder / str(learner.name), fill)
        if unsaved:
            print(f"kept the state of {len(unsaved)} SAEs in {folder}", file=sys.stderr)
    except OutputError as error:
        print(f"the state in training is lost: {error}", file=sys.stderr)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_weights(
    target: Path, learner: Learner, sae: SAE, facts: RunFacts, batch_size: int
) -> None:
    data = facts.recipe.data
    save_sae(
        sae,
        target / learner.name.hook_folder,
        layer=learner.name.layer,
        metadata={
            "model_name": facts.base_model["name"],
            "model_revision": facts.base_model["sha"],
            "context_size": data.max_tokens if learner.name.method == "fast" else data.block_tokens,
            "dataset_path": facts.training_data["name"],
            "training_tokens": learner.log[-1]["tokens"] if learner.log else 0,
            "fastzoo_version": __version__,
        },
        log_sparsity=learner.log_sparsity(batch_size),
    )


def _record(learner: Learner, sae: SAE, facts: RunFacts) -> dict[str, Any]:
    name = learner.name
    return {
        "library": "fastzoo",
        "format": 1,
        "name": str(name),
        "sae": {
            "architecture": name.architecture,
            "layer": name.layer,
            "expansion": name.expansion,
            "method": name.method,
            "d_in": sae.d_in,
            "d_sae": sae.d_sae,
            "hook_folder": name.hook_folder,
            "activation_scale": learner.scale,
        },
        "base_model": facts.base_model,
        "training_data": facts.training_data,
        "evaluation_data": facts.evaluation_data,
        "special_tokens": facts.special_tokens,
        "recipe": public_recipe(facts.recipe),
        "compute": {"step": learner.step.kind, "precision": learner.step.precision},
        "versions": versions(),
    }


def _figures(
    learner: Learner, evaluation: Evaluation, facts: RunFacts, batch_size: int
) -> dict[str, Any]:
    paper = paper_figures().get(learner.name)
    last = learner.log[-1]
    return {
        "name": str(learner.name),
        "split": facts.evaluation_data,
        "definitions": DEFINITIONS,
        "metrics": evaluation.metrics,
        "special_latents": evaluation.special_latents,
        "training": {
            "steps": int(last["step"]) + 1,
            "tokens": int(last["tokens"]),
            "dead_latents": int(last["dead_latents"]),
            "dead_window_steps": facts.recipe.training.dead_window,
            "latents_below_dead_threshold": _rare(learner, facts, batch_size),
        },
        "paper": None if paper is None else vars(paper),
    }


def _rare(learner: Learner, facts: RunFacts, batch_size: int) -> int:
    """Latents whose firing frequency over the last feature-sampling window is below the threshold."""
    frequency: Tensor = 10.0 ** learner.log_sparsity(batch_size) - 1e-10
    return int((frequency < facts.recipe.training.dead_threshold).sum().item())


def _write_log(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, LOG_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe without the folders of the machine it ran on."""
    values = recipe.model_dump()
    values["output"]["folder"] = None
    for section, key in (("model", "name"), ("data", "source"), ("text", "source")):
        values[section][key] = public_name(values[section][key])
    if values["evaluation"]["source"]:
        values["evaluation"]["source"] = public_name(values["evaluation"]["source"])
    return values


def public_name(source: str) -> str:
    """A model or data source as others may see it: a local path shows its last part only."""
    if source in (EMBEDDED_MODEL, EMBEDDED_DATA):
        return source
    return Path(source).name if os.path.exists(os.path.expanduser(source)) else source


def versions() -> dict[str, str]:
    """Of Python, fastzoo and ``PACKAGES``."""
    found = {"fastzoo": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found
