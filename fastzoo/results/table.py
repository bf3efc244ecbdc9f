"""The results table: one row per SAE, our figures and the paper's in columns of their own.

The results dataset holds it, ``fastzoo list`` prints some of its columns, the zoo's Space shows them.
Loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastzoo.core.errors import InputError
from fastzoo.core.files import read_json
from fastzoo.core.values import number_at, text_at, value_at
from fastzoo.hub.registry import Registry
from fastzoo.results.figures import FIGURES, SHOWN, SUBSETS, Figure
from fastzoo.saes.names import SAEName, zoo_names
from fastzoo.saes.paper import paper_figures

Cell = str | int | float | None

ResultRow = dict[str, Cell]


@dataclass(frozen=True)
class Column:
    """A column of the table; with a ``rank`` it is one of ``fastzoo list``, too."""

    name: str
    kind: type[str] | type[int] | type[float]
    definition: str
    place: str = ""
    """Of a measured one: the file that holds it (``config`` or ``metrics``) and the keys in it."""
    rank: int | None = None
    """On a narrow terminal the highest is left out first, and 0 never is."""
    heading: str = ""
    """On the terminal, if not ``name``."""
    digits: str = ""
    """Format of its numbers; empty for text."""


def _column(figure: Figure, subset: str) -> Column:
    return Column(
        figure.column(subset),
        int if figure.counts else float,
        figure.definition + SUBSETS[subset].about,
        f"metrics.metrics.{figure.key}.{subset}.value",
        figure.listed.get(subset),
        figure.heading(subset),
        figure.digits,
    )


IDENTITY = (
    Column("name", str, "name of the SAE, of its repository and of its folder", rank=0),
    Column("status", str, "published, or paper: in the paper's grid and not published", rank=0),
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
    Column("base_model", str, "the language model", "config.base_model.name"),
    Column("base_model_sha", str, "its commit", "config.base_model.sha"),
    Column("d_in", int, "width of the residual stream", "config.sae.d_in"),
    Column("d_sae", int, "number of latents", "config.sae.d_sae"),
    *(_column(figure, subset) for figure in FIGURES for subset in figure.subsets),
    Column("evaluation_tokens", int, "tokens of the held-out split", "metrics.split.tokens"),
    Column(
        "evaluation_tokens_special", int, "special tokens among them", "metrics.metrics.mse.special.tokens"
    ),
    Column(
        "evaluation_tokens_without_sinks",
        int,
        "tokens that are no attention sinks",
        "metrics.metrics.mse.without_sinks.tokens",
    ),
    Column(
        "evaluation_tokens_without_position_0",
        int,
        "tokens without the first of each dialogue",
        "metrics.metrics.mse.without_position_0.tokens",
    ),
    Column("evaluation_dialogues", int, "dialogues of the split", "metrics.split.used"),
    Column("evaluation_data", str, "where they are from", "metrics.split.name"),
    Column("evaluation_revision", str, "commit or hash of it", "metrics.split.revision"),
    Column("training_data", str, "where training's text is from", "config.training_data.name"),
    Column("training_revision", str, "commit or hash of it", "config.training_data.revision"),
    Column("training_tokens", int, "tokens trained on", "metrics.training.tokens"),
    Column("preset", str, "preset of the recipe", "config.recipe.preset"),
    Column("sinks", str, "attention sinks in training: train or skip", "config.recipe.training.sinks"),
    Column("fastzoo_version", str, "version that trained and measured", "config.versions.fastzoo"),
)
"""What ``result_row`` gives; empty where nothing is published."""

_REPORTED = "base-2 logarithm of the MSE that the paper reports"

PAPER = (
    Column("paper_log2_mse", float, _REPORTED, "", 3, "paper: log2 MSE", ".3f"),
    Column(
        "paper_log2_mse_special", float, f"{_REPORTED} over special tokens", "", 4, "paper: special", ".3f"
    ),
)

COLUMNS = (*IDENTITY, *MEASURED, *PAPER)
"""In the order of the results dataset."""

_LISTED_FIGURES = (_column(figure, subset) for figure in SHOWN for subset in figure.listed)

LISTED = (*(c for c in IDENTITY if c.rank is not None), *_LISTED_FIGURES, *PAPER)
"""What ``fastzoo list`` shows, in its order."""


def result_row(record: Mapping[str, Any], figures: Mapping[str, Any]) -> ResultRow:
    """The measured columns of one SAE from its ``config.json`` and ``metrics.json``; None for what those lack."""
    files = {"config": record, "metrics": figures}
    return {c.name: _cell(c.kind, value_at(files, *c.place.split("."))) for c in MEASURED}


def local_row(folder: Path) -> ResultRow:
    """The measured columns of an SAE in a folder; a file that cannot be read counts as empty."""
    files: dict[str, Any] = {"config.json": {}, "metrics.json": {}}
    for file in files:
        with suppress(InputError):
            files[file] = read_json(folder / file)
    return result_row(*files.values())


def measured(figures: Mapping[str, Any]) -> ResultRow:
    """The measured columns of a registry's figures, of the right types; None where there is none."""
    return {c.name: _cell(c.kind, figures.get(c.name)) for c in MEASURED}


def paper_cells(name: SAEName) -> ResultRow:
    """The paper's columns."""
    paper = paper_figures().get(name)
    figures = (paper.log2_mse, paper.log2_mse_special) if paper else (None, None)
    return {column.name: value for column, value in zip(PAPER, figures, strict=True)}


def with_grid(names: Iterable[SAEName]) -> list[SAEName]:
    """The names of the paper's grid in its order, then the others among ``names``, sorted."""
    return [*zoo_names(), *sorted(set(names) - set(zoo_names()))]


def result_rows(registry: Registry) -> list[ResultRow]:
    """The whole table."""
    rows = []
    for name in with_grid(registry.saes):
        sae = registry.saes.get(name)
        row: ResultRow = {
            "name": str(name),
            "status": "published" if sae else "paper",
            "repo_id": sae.repo_id if sae else None,
            "revision": sae.sha if sae else None,
            "weights_sha256": sae.weights_sha256 if sae else None,
            **vars(name),
        }
        rows.append(row | measured(sae.figures if sae else {}) | paper_cells(name))
    return rows


def _cell(kind: type, value: Any) -> Cell:
    if kind is str:
        return text_at(value)
    number = number_at(value)
    if number is None:
        return None
    if kind is float:
        return float(number)
    return int(number) if number == int(number) and abs(number) < 1 << 63 else None
