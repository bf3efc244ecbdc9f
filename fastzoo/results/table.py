"""The table of results: one row per SAE, our figures and the paper's in columns of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastzoo.core.values import number_at, text_at
from fastzoo.hub.registry import Registry
from fastzoo.results.figures import DEFINITIONS, SUBSETS
from fastzoo.saes.names import SAEName, zoo_names
from fastzoo.saes.paper import paper_figures

Cell = str | int | float | None

Row = dict[str, Cell]

ABOUT = {
    "all": "",
    "special": "; over special tokens only",
    "without_position_0": "; without the first token of each dialogue",
}


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    name: str
    kind: type[str] | type[int] | type[float]
    definition: str
    file: str = ""
    """Of a measured one: the file of the SAE that holds it (``config`` or ``metrics``)."""
    keys: tuple[str, ...] = ()
    """And where in that file."""


def _metric_columns() -> Iterable[Column]:
    for metric, definition in DEFINITIONS.items():
        counted = metric == "dead_latents"
        for subset in SUBSETS[:1] if counted else SUBSETS:
            yield Column(
                metric if subset == "all" else f"{metric}_{subset}",
                int if counted else float,
                definition + ABOUT[subset],
                "metrics",
                ("metrics", metric, subset, "value"),
            )


IDENTITY = (
    Column("name", str, "name of the SAE, of its repository and of its folder"),
    Column("status", str, "published, or paper: in the paper's grid and not published"),
    Column("repo_id", str, "repository on the Hub"),
    Column("revision", str, "commit that was published"),
    Column("weights_sha256", str, "sha256 of sae_weights.safetensors"),
    Column("model", str, "the language model's part of the name"),
    Column("layer", int, "layer of the language model, counted from 0; the SAE sits after it"),
    Column("expansion", int, "d_sae divided by d_in"),
    Column("architecture", str, "activation function of the SAE"),
    Column("method", str, "fast: dialogues one by one; bt-f: blocks of chat; bt-p: of plain text"),
)

MEASURED = (
    Column("base_model", str, "the language model", "config", ("base_model", "name")),
    Column("base_model_sha", str, "its commit", "config", ("base_model", "sha")),
    Column("d_in", int, "width of the residual stream", "config", ("sae", "d_in")),
    Column("d_sae", int, "number of latents", "config", ("sae", "d_sae")),
    *_metric_columns(),
    Column(
        "evaluation_tokens", int, "tokens of the held-out split", "metrics", ("split", "tokens")
    ),
    Column(
        "evaluation_tokens_special",
        int,
        "special tokens among them",
        "metrics",
        ("metrics", "mse", "special", "tokens"),
    ),
    Column(
        "evaluation_tokens_without_position_0",
        int,
        "tokens without the first of each dialogue",
        "metrics",
        ("metrics", "mse", "without_position_0", "tokens"),
    ),
    Column("evaluation_dialogues", int, "dialogues of the split", "metrics", ("split", "used")),
    Column("evaluation_data", str, "where they are from", "metrics", ("split", "name")),
    Column("evaluation_revision", str, "commit or hash of it", "metrics", ("split", "revision")),
    Column(
        "training_data", str, "where training's text is from", "config", ("training_data", "name")
    ),
    Column(
        "training_revision", str, "commit or hash of it", "config", ("training_data", "revision")
    ),
    Column("training_tokens", int, "tokens trained on", "metrics", ("training", "tokens")),
    Column("preset", str, "preset of the recipe", "config", ("recipe", "preset")),
    Column(
        "fastzoo_version",
        str,
        "version that trained and measured",
        "config",
        ("versions", "fastzoo"),
    ),
)
"""What ``result_row`` gives; empty where nothing is published."""

PAPER = (
    Column("paper_log2_mse", float, "base-2 logarithm of the MSE that the paper reports"),
    Column(
        "paper_log2_mse_special",
        float,
        "base-2 logarithm of the MSE that the paper reports over special tokens",
    ),
)

COLUMNS = (*IDENTITY, *MEASURED, *PAPER)


def result_row(record: Mapping[str, Any], figures: Mapping[str, Any]) -> Row:
    """The measured columns of one SAE from its ``config.json`` and ``metrics.json``.

    What those lack, or have in another shape, is None.
    """
    files = {"config": record, "metrics": figures}
    return {c.name: _cell(c.kind, files[c.file], *c.keys) for c in MEASURED}


def measured(figures: Mapping[str, Any]) -> Row:
    """The measured columns of a registry's figures, of the right types; None where there is none."""
    return {c.name: _cell(c.kind, figures, c.name) for c in MEASURED}


def paper_cells(name: SAEName) -> Row:
    """The paper's columns."""
    paper = paper_figures().get(name)
    return {
        "paper_log2_mse": paper.log2_mse if paper else None,
        "paper_log2_mse_special": paper.log2_mse_special if paper else None,
    }


def with_grid(names: Iterable[SAEName]) -> list[SAEName]:
    """The names of the paper's grid in its order, then the others among ``names`` in theirs."""
    return [*zoo_names(), *sorted(set(names) - set(zoo_names()))]


def result_rows(registry: Registry) -> list[Row]:
    """The whole table."""
    rows = []
    for name in with_grid(registry.saes):
        sae = registry.saes.get(name)
        identity: Row = {
            "name": str(name),
            "status": "published" if sae else "paper",
            "repo_id": sae.repo_id if sae else None,
            "revision": sae.sha if sae else None,
            "weights_sha256": sae.weights_sha256 if sae else None,
            **vars(name),
        }
        rows.append({**identity, **measured(sae.figures if sae else {}), **paper_cells(name)})
    return rows


def _cell(kind: type, value: Any, *keys: str) -> Cell:
    if kind is str:
        return text_at(value, *keys)
    found = number_at(value, *keys)
    if found is None or kind is float:
        return None if found is None else float(found)
    return int(found) if found == int(found) and abs(found) < 1 << 63 else None
