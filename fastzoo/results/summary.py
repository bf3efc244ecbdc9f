"""The table of figures that ends a training run and ``fastzoo eval``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastzoo.core.files import read_json
from fastzoo.core.tables import fits, print_table, terminal_width
from fastzoo.results.figures import show, shown, value_of
from fastzoo.saes.names import SAEName

Results = Sequence[tuple[Any, Mapping[str, Any], float | None]]
"""Name, figures as ``Evaluation.metrics`` has them, training tokens per second if known."""


def print_results(rows: Results) -> None:
    """Print the figures: one line per SAE, or on a narrow terminal one column per SAE."""
    headings = ["SAE", *(figure.heading(subset) for figure, subset in shown("run"))]
    lines = [
        [str(name), *(show(value_of(found, figure, subset)) for figure, subset in shown("run"))]
        for name, found, _ in rows
    ]
    if any(speed is not None for _, _, speed in rows):
        headings.append("tokens/s")
        for line, (_, _, speed) in zip(lines, rows, strict=True):
            line.append("" if speed is None else f"{speed:.0f}")
    if all(found["mse"]["special"]["value"] is None for _, found, _ in rows):
        print(
            "the held-out dialogues hold no special tokens, so there are no figures for them", file=sys.stderr
        )
    if fits(headings, lines):
        print_table(headings, lines)
        return
    # Turned: as many SAEs side by side as fit, at least one.
    turned = list(zip(headings, *lines, strict=True))
    longest = max(len(line[0]) for line in lines)
    fitting = max(1, ((terminal_width() or 0) - max(map(len, headings))) // (longest + 2))
    for start in range(1, len(lines) + 1, fitting):
        first, *rest = ([row[0], *row[start : start + fitting]] for row in turned)
        print_table(first, rest)


def read_results(run_folder: Path, names: Iterable[SAEName]) -> Results:
    """The figures of a complete run, from the folders of its SAEs."""
    return [
        (name, read_json(run_folder / str(name) / "metrics.json")["metrics"], None) for name in sorted(names)
    ]
