"""The complete folder of one SAE: weights, record, figures, training log and card."""

from __future__ import annotations

import csv
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fastzoo.config.recipe import Recipe
from fastzoo.config.run_recipe import public_name
from fastzoo.core.files import write_folder, write_json
from fastzoo.core.version import __version__
from fastzoo.results.card import render_card
from fastzoo.results.evaluate import Evaluation
from fastzoo.results.figures import DEFINITIONS
from fastzoo.results.licences import notice
from fastzoo.results.plot import plot_training
from fastzoo.saes.base import SAE
from fastzoo.saes.formats import save_sae
from fastzoo.saes.names import SAEName
from fastzoo.saes.paper import paper_figures

LIBRARIES = ("transformers", "tokenizers", "jinja2", "numpy", "datasets", "fastzoo")
"""Another version of one may compute something else: a model, ids, a dialogue's text, an order of rows."""

PACKAGES = ("torch", "numba", "accelerate", "safetensors", *LIBRARIES[:-1])
"""Another version of the others may change last bits."""

RECORD, CARD = "config.json", "README.md"

LOG_COLUMNS = (
    *("step", "tokens", "lr", "sparsity_coefficient"),
    *("loss", "squared_error", "penalty", "l0", "fvu", "l0_without_sinks", "fvu_without_sinks"),
    *("l0_held_out", "grad_norm", "dead_latents", "seconds", "tokens_per_second"),
)
"""Columns of training_log.csv; from loss to grad_norm means since the row before, in the scaled units that
training sees, but for l0_held_out: as last counted, for ``training.l0``, on tokens that are not trained on."""


class Learner(Protocol):
    """A trained SAE, as far as its folder needs it."""

    name: SAEName
    scale: float
    step: Any
    log: list[dict[str, float]]

    def log_sparsity(self, batch_size: int) -> Tensor: ...


@dataclass(frozen=True)
class RunFacts:
    """What all SAEs of a run share, as plain data for their records and cards."""

    base_model: dict[str, Any]
    training_data: dict[str, Any]
    evaluation_data: dict[str, Any]
    special_tokens: dict[str, str]
    """Token id (as text) to token, of those that occur in the held-out dialogues."""
    recipe: Recipe


def save_result(
    run_folder: Path, learner: Learner, sae: SAE, evaluation: Evaluation, facts: RunFacts, batch_size: int
) -> None:
    """Write the complete folder of one trained SAE: it appears whole or not at all.

    Raises OutputError: the disk refuses.
    """
    record, figures = _record(learner, sae, facts), _figures(learner, evaluation, facts, batch_size)

    def fill(target: Path) -> None:
        write_weights(target, learner, sae, facts, evaluation.log_sparsity())
        write_json(target / RECORD, record)
        write_json(target / "metrics.json", figures)
        write_log(target / "training_log.csv", learner.log)
        plot_training(learner.log, str(learner.name), target / "training.png")
        (target / CARD).write_text(render_card(record, figures), encoding="utf-8")
        if text := notice(facts.base_model["name"]):
            (target / "NOTICE").write_text(text, encoding="utf-8")

    write_folder(run_folder / str(learner.name), fill)


def write_weights(target: Path, learner: Learner, sae: SAE, facts: RunFacts, log_sparsity: Tensor) -> None:
    """Write the SAE in SAELens' format into the folder that is named after its hook.

    ``log_sparsity``: (d_sae,) log10 of each latent's firing frequency.
    """
    data = facts.recipe.data
    save_sae(
        sae,
        target / learner.name.hook_folder,
        layer=learner.name.layer,
        metadata={
            "model_name": facts.base_model["name"],
            "model_revision": facts.base_model["sha"],
            # Without it sae-lens loads the model in the type that its own files have.
            "model_from_pretrained_kwargs": {"dtype": facts.base_model["dtype"]},
            "context_size": data.max_tokens if learner.name.method == "fast" else data.block_tokens,
            "dataset_path": facts.training_data["name"],
            "training_tokens": learner.log[-1]["tokens"] if learner.log else 0,
            "fastzoo_version": __version__,
        },
        log_sparsity=log_sparsity,
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
            "sinks": vars(sae.sinks) if sae.sinks else None,
        },
        "base_model": facts.base_model,
        "training_data": facts.training_data,
        "evaluation_data": facts.evaluation_data,
        "special_tokens": facts.special_tokens,
        "recipe": public_recipe(facts.recipe),
        "compute": {"step": learner.step.kind, "precision": learner.step.precision},
        "versions": versions(),
    }


def _figures(learner: Learner, evaluation: Evaluation, facts: RunFacts, batch_size: int) -> dict[str, Any]:
    paper = paper_figures().get(learner.name)
    last = learner.log[-1]
    # Over the last window of training in which firing was counted.
    rare_F = 10.0 ** learner.log_sparsity(batch_size) - 1e-10 < facts.recipe.training.dead_threshold
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
            "latents_below_dead_threshold": int(rare_F.sum().item()),
        },
        "paper": None if paper is None else vars(paper),
    }


def write_log(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write training_log.csv."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, LOG_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe without the folders of the machine it ran on."""
    values = recipe.model_dump()
    values["output"]["folder"] = None
    for section, key in (("model", "name"), ("data", "source"), ("text", "source"), ("evaluation", "source")):
        if values[section][key]:
            values[section][key] = public_name(values[section][key])
    return values


def versions() -> dict[str, str]:
    """The versions of Python, fastzoo and ``PACKAGES``."""
    found = {"fastzoo": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
