"""The one table of the figures that are measured: keys, labels, definitions, and where each is shown.

A new figure is computed in ``fastzoo.results.metrics`` (or ``evaluate``) and gets an entry in
``FIGURES``; nothing else lists figures. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    "all": Subset("all tokens", "all"),
    "special_without_sinks": Subset(
        "special tokens without sinks", "special", "; over special tokens that are no attention sinks"
    ),
    "special": Subset("special tokens", "all special", "; over special tokens only"),
    "without_position_0": Subset(
        "without position 0", "no pos. 0", "; without the first token of each dialogue"
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
        return self.label if subset == "all" else f"{self.label} ({SUBSETS[subset].title})"


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


def show(value: float | int | None) -> str:
    """A figure with four significant digits; an em dash where there is none."""
    if value is None:
        return "—"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def count(value: int | None) -> str:
    """A number of things with commas between thousands; an em dash where it is not known."""
    return "—" if value is None else f"{value:,}"
