"""The table on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastzoo.core.tables import _console, _print, fits
from fastzoo.results.figures import show
from fastzoo.saes.names import SAEName

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

Results = Sequence[tuple[Any, Mapping[str, Any], float | None]]
"""Name, figures as ``Evaluation.metrics`` has them, training tokens per second if known."""


def print_results(rows: Results) -> None:
    """Print the figures: one line per SAE, or on a narrow terminal one column per SAE."""
    console = _console()
    headings = ["SAE", *(heading for heading, _, _ in COLUMNS)]
    lines = [
        [str(name), *(show(figures[metric][subset]["value"]) for _, metric, subset in COLUMNS)]
        for name, figures, _ in rows
    ]
    if any(speed is not None for _, _, speed in rows):
        headings.append("tokens/s")
        for line, (_, _, speed) in zip(lines, rows, strict=True):
            line.append("" if speed is None else f"{speed:.0f}")
    if all(figures["mse"]["special"]["value"] is None for _, figures, _ in rows):
        print("the held-out dialogues hold no special tokens: no figure of them", file=sys.stderr)
    if fits(headings, lines):
        _print(console, headings, lines)
        return
    # Turned: as many SAEs side by side as fit, at least one.
    turned = list(zip(headings, *lines, strict=True))
    longest = max(len(line[0]) for line in lines)
    fitting = max(1, (console.width - max(map(len, headings))) // (longest + 2))
    for start in range(1, len(lines) + 1, fitting):
        columns = [[row[0], *row[start : start + fitting]] for row in turned]
        _print(console, columns[0], columns[1:])


def read_results(run_folder: Path, names: Iterable[SAEName]) -> Results:
    """The figures of a complete run, as its folders have them."""
    rows = []
    for name in sorted(names):
        text = (run_folder / str(name) / "metrics.json").read_text(encoding="utf-8")
        rows.append((name, json.loads(text)["metrics"], None))
    return rows
