"""The names and definitions of what is measured; ``fastzoo.results.metrics`` measures it. Loads no torch."""

from __future__ import annotations

ROWS = (
    ("l0", "L0"),
    ("mse", "MSE"),
    ("log2_mse", "log2 MSE"),
    ("fvu", "FVU"),
    ("ce_model", "CE of the model"),
    ("ce_reconstruction", "CE with the reconstruction"),
    ("ce_zero", "CE with zeros"),
    ("ce_recovered", "CE recovered"),
    ("delta_loss", "Delta Loss"),
    ("kl", "KL"),
)
"""Metrics of the card's table, in its order."""


def show(value: float | int | None) -> str:
    """A figure with four significant digits; an em dash where there is none."""
    if value is None:
        return "—"
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}"


def count(value: int | None) -> str:
    """A number of things with commas between thousands; an em dash where it is not known."""
    return "—" if value is None else f"{value:,}"


SUBSETS = ("all", "special", "without_position_0")
"""Tokens a figure is about: all, special tokens only, all but the first of each dialogue."""

DEFINITIONS = {
    "mse": "squared error averaged over the tokens of each dialogue, then over dialogues, divided by "
    "the residual width (arXiv 2506.07691)",
    "log2_mse": "base-2 logarithm of mse; what the paper's tables print",
    "l0": "mean number of active latents per token",
    "fvu": "fraction of variance unexplained: summed squared error over summed squared distance from "
    "the mean activation of the same tokens",
    "ce_model": "the model's own cross-entropy in nats per predicted token",
    "ce_reconstruction": "cross-entropy with the reconstruction spliced in at the SAE's layer",
    "ce_zero": "cross-entropy with zeros spliced in at the SAE's layer",
    "ce_recovered": "(ce_zero - ce_reconstruction) / (ce_zero - ce_model)",
    "delta_loss": "(ce_reconstruction - ce_model) / ce_model",
    "kl": "mean KL divergence in nats from the model's next-token distribution to the one with the "
    "reconstruction spliced in",
    "dead_latents": "latents that fire on no token of the split",
}
"""Cross-entropy figures: for ``special``, tokens predicted from a special token; for
``without_position_0``, the activation at position 0 is left as it was and predictions from it are
not counted."""
