"""The one table of the figures that are measured: keys, labels, definitions, and where each is shown.

Those without attention sinks lead everywhere, and their headings need not say so. A new figure is computed in ``fastzoo.results.metrics`` (or ``evaluate``) and gets an entry in
``FIGURES``; nothing else lists figures. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Subset:
    """Tokens that a figure is about; ``short`` goes into headings, ``about`` into definitions."""

    title: str
    short: str = ""
    about: str = ""


SUBSETS = {
    "without_sinks": Subset("without sinks", "", "; without attention sinks"),
    "all": Subset("all tokens", "with sinks", "; over all tokens, attention sinks too"),
    "special_without_sinks": Subset(
        "special tokens without sinks", "special", "; over special tokens that are no attention sinks"
    ),
    "special": Subset("special tokens", "special with sinks", "; over special tokens only"),
    "without_position_0": Subset(
        "without position 0", "without pos. 0", "; without the first token of each dialogue"
    ),
}
"""By their keys in ``metrics.json``; what leads comes first. A sink is a token whose activation at the SAE's layer has
a norm far above the median (``sinks`` of the SAE). Cross-entropy figures: for special tokens, those predicted from one;
without sinks, the activations of sinks are left as they were and predictions from them are not counted."""

LEAD = ("without_sinks",)
BOTH = ("without_sinks", "all")
SPECIAL = ("without_sinks", "special_without_sinks")
LOSS = ("without_sinks", "all", "special_without_sinks", "special")
"""What cross-entropy figures are measured for."""
EVERY = tuple(SUBSETS)

WITH_SINKS = {"without_sinks": "all", "special_without_sinks": "special"}
"""The subsets of records of older versions, which did not tell sinks apart."""

MARK, MARKED = "*", "* with attention sinks: measured by an older version of fastzoo"
"""Behind a figure that stands in for one without sinks, and what that says."""


@dataclass(frozen=True)
class Figure:
    """A figure, its key in ``metrics.json``, and the subsets for which each place shows it."""

    key: str
    label: str
    definition: str
    digits: str = ".4f"
    """Its format in ``fastzoo list``; ``d`` for a count."""
    subsets: tuple[str, ...] = EVERY
    """What it is measured for; cards and the results dataset show all of it."""
    run: tuple[str, ...] = ()
    """In the table that training and ``fastzoo eval`` print."""
    page: tuple[str, ...] = ()
    """In the table of the zoo's Space."""
    listed: Mapping[str, int] = field(default_factory=dict)
    """In ``fastzoo list`` and the notes of the collection; by rank: where the terminal is too narrow
    for the list, columns with high ranks are left out first, of equal ones that to the right."""
    short: str = ""
    """Its label in tables on the terminal, if not ``label``."""

    @property
    def counts(self) -> bool:
        """Whether it is a number of things rather than a mean or ratio."""
        return self.digits == "d"

    def column(self, subset: str) -> str:
        """Its column in the results table, in the registry and in ``list --json``."""
        return self.key if subset == "all" else f"{self.key}_{subset}"

    def heading(self, subset: str) -> str:
        """Its heading in a table on the terminal."""
        return f"{self.short or self.label} {SUBSETS[subset].short}".strip()

    def name(self, subset: str) -> str:
        """Its name outside of tables."""
        return f"{self.label} ({SUBSETS[subset].title})"


SAMPLED = "; over so many dialogues, spread evenly over the split, with an interval of 95% (bootstrap over dialogues)"
"""What is so of all cross-entropy figures."""

# One entry after the other, as a table.
# fmt: off
FIGURES = (
    Figure("mse", "MSE",
           "squared error averaged over the tokens of each dialogue, then over dialogues, divided by "
           "the residual width (arXiv 2506.07691)",
           run=SPECIAL, page=SPECIAL),
    Figure("log2_mse", "log2 MSE",
           "base-2 logarithm of mse; what the paper's tables print",
           ".3f", page=SPECIAL, listed={"without_sinks": 1, "special_without_sinks": 5}),
    Figure("l0", "L0",
           "mean number of active latents per token",
           ".1f", run=LEAD, page=LEAD, listed={"without_sinks": 2}),
    Figure("fvu", "FVU",
           "fraction of variance unexplained: summed squared error over summed squared distance from "
           "the mean activation of the same tokens",
           run=BOTH, page=BOTH, listed={"without_sinks": 6}),
    Figure("ce_model", "CE of the model",
           "the model's own cross-entropy in nats per predicted token" + SAMPLED, subsets=LOSS),
    Figure("ce_reconstruction", "CE with the reconstruction",
           "cross-entropy with the reconstruction spliced in at the SAE's layer" + SAMPLED, subsets=LOSS),
    Figure("ce_zero", "CE with zeros",
           "cross-entropy with zeros spliced in at the SAE's layer" + SAMPLED, subsets=LOSS),
    Figure("ce_recovered", "CE recovered",
           "(ce_zero - ce_reconstruction) / (ce_zero - ce_model)" + SAMPLED,
           subsets=LOSS, run=LEAD, page=LEAD, listed={"without_sinks": 7}),
    Figure("delta_loss", "Delta Loss",
           "(ce_reconstruction - ce_model) / ce_model" + SAMPLED,
           subsets=LOSS, run=LEAD),
    Figure("kl", "KL",
           "mean KL divergence in nats from the model's next-token distribution to the one with the "
           "reconstruction spliced in" + SAMPLED,
           subsets=LOSS, run=LEAD),
    Figure("dead_latents", "dead latents",
           "latents that fire on no token of the split",
           "d", subsets=BOTH, run=LEAD, page=LEAD, listed={"without_sinks": 8}, short="dead"),
)
# fmt: on
"""In the order of ``metrics.json`` and of the results dataset."""

DEFINITIONS = {figure.key: figure.definition for figure in FIGURES}
"""As ``metrics.json`` has them."""

LEADING = "l0"
"""Comes first wherever figures are shown: an error means little without it."""

SHOWN = tuple(sorted(FIGURES, key=lambda figure: figure.key != LEADING))
"""In the order in which people see them."""

ROWS = tuple((figure.key, figure.label) for figure in SHOWN if not figure.counts)
"""Keys and labels of the card's table, which has one column per subset."""


def shown(place: Literal["subsets", "run", "page", "listed"]) -> list[tuple[Figure, str]]:
    """The figures, each with a subset, that a place shows, in its order."""
    return [(figure, subset) for figure in SHOWN for subset in getattr(figure, place)]


def value_of(metrics: Mapping[str, Any], figure: Figure, subset: str) -> Any:
    """A figure in the ``metrics`` of a ``metrics.json``; None where an older one does not have it."""
    return metrics.get(figure.key, {}).get(subset, {}).get("value")


def flat(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The ``metrics`` of a ``metrics.json`` as a row: values by column, None where an older one has none."""
    return {f.column(s): value_of(metrics, f, s) for f in FIGURES for s in f.subsets}


_INSTEAD = {f.column(s): f.column(WITH_SINKS[s]) for f in FIGURES for s in f.subsets if s in WITH_SINKS}


def is_older(row: Mapping[str, Any]) -> bool:
    """Whether a row of columns is of a version that did not tell sinks apart: it has an L0, but none without."""
    return row.get("l0_without_sinks") is None and row.get("l0") is not None


def leading_subset(row: Mapping[str, Any]) -> str:
    """The subset that a row of columns leads with."""
    return "all" if is_older(row) else "without_sinks"


def column_shown(row: Mapping[str, Any], column: str) -> str:
    """The column of a row that tables show under a column's heading: that, or the one with sinks in rows of
    older versions."""
    return _INSTEAD.get(column, column) if is_older(row) else column


def cell_shown(row: Mapping[str, Any], column: str, text: Callable[[Any], str]) -> str:
    """A cell of a table, written by ``text``, and marked where it stands in for a figure without sinks."""
    there = column_shown(row, column)
    mark = MARK if there != column and row.get(there) is not None else ""
    return text(row.get(there)) + mark


def show(value: float | int | None) -> str:
    """A figure with four significant digits; an em dash where there is none."""
    if value is None:
        return "—"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def count(value: int | None) -> str:
    """A number of things with commas between thousands; an em dash where it is not known."""
    return "—" if value is None else f"{value:,}"
