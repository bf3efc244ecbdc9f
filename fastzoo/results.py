"""The table on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fastzoo.card import show

NO_FIRST = "without_position_0"

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("L0", "l0", "all"),
    ("MSE", "mse", "all"),
    ("log2 MSE", "log2_mse", "all"),
    ("MSE special", "mse", "special"),
    ("MSE no pos. 0", "mse", NO_FIRST),
    ("FVU", "fvu", "all"),
    ("FVU no pos. 0", "fvu", NO_FIRST),
    ("CE recovered", "ce_recovered", "all"),
    ("Delta Loss", "delta_loss", "all"),
    ("KL", "kl", "all"),
    ("dead", "dead_latents", "all"),
)
"""Heading, metric, subset."""


def print_results(rows: Sequence[tuple[Any, Mapping[str, Any], float | None]]) -> None:
    """Print one row per SAE: its name, figures, and training tokens per second if known."""
    from rich.console import Console
    from rich.table import Table

    # A table that is piped or too wide for the terminal keeps its rows whole.
    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("SAE", no_wrap=True)
    headings = [c[0] for c in COLUMNS]
    if any(speed is not None for _, _, speed in rows):
        headings.append("tokens/s")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, figures, speed in rows:
        cells = [show(figures[metric][subset]["value"]) for _, metric, subset in COLUMNS]
        if speed is not None:
            cells.append(f"{speed:.0f}")
        table.add_row(str(name), *cells)
    console.print(table)
