"""The picture of a training log (``training.png``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

PANELS = (
    (("fvu_without_sinks", "fvu"), "FVU on training batches", "log"),
    (("l0_without_sinks", "l0", "l0_held_out"), "L0 (active latents per token)", "log"),
    (("dead_latents",), "dead latents", "linear"),
    (("lr",), "learning rate", "linear"),
)
"""Columns, what leads first; the others are drawn, with a legend, where they are there and differ."""

SAME = 1e-3
"""Relative difference up to which two curves are one."""

STYLES = (
    {"color": "#2f5d8a", "linewidth": 1.6, "label": "without attention sinks", "zorder": 3},
    {"color": "#b9b9b9", "linewidth": 1.2, "label": "with them"},
    {"color": "#c0672b", "linewidth": 1.2, "label": "the same on held-out dialogues", "zorder": 4},
)


def plot_training(log: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Write a PNG with the curves of FVU, L0, dead latents and learning rate over tokens."""
    # The object interface: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(9, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    tokens = [row["tokens"] for row in log]
    for axes, (columns, label, scale) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        curves = [[row.get(column, math.nan) for row in log] for column in columns]
        drawn = [c for c in curves[1:] if not _same(curves[0], c)]
        for curve, style in zip(curves, STYLES, strict=False):
            if curve is curves[0] or curve in drawn:
                axes.plot(tokens, curve, marker="." if len(log) < 3 else "", **style)
        if drawn:
            axes.legend(fontsize=8)
        values = [value for curve in curves for value in curve if not math.isnan(value)]
        if scale == "log" and all(value > 0 for value in values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(0, 1.05 * max(values) or 1)
        axes.set_title(label, fontsize=10)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("training tokens", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3, which="both")
        axes.margins(x=0.01)
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    # Fixed metadata: the same log gives the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": "fastzoo"})


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(math.isnan(b) or math.isclose(a, b, rel_tol=SAME) for a, b in zip(one, other, strict=True))
