"""The picture of a training log (``training.png``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

PANELS = (
    ("fvu", "FVU on training batches", "log"),
    ("l0", "L0 (active latents per token)", "log"),
    ("dead_latents", "dead latents", "linear"),
    ("lr", "learning rate", "linear"),
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
    for axes, (column, label, scale) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        values = [row[column] for row in log]
        axes.plot(tokens, values, color="#2f5d8a", linewidth=1.6, marker="." if len(log) < 3 else "")
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
