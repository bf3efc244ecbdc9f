"""The table of figures that ends a training run and ``fastzoo eval``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastzoo.core.files import read_json
from fastzoo.core.tables import fits, print_table, terminal_width
from fastzoo.core.values import value_at
from fastzoo.results.figures import MARKED, cell_shown, flat, is_older, show, shown
from fastzoo.results.warnings import warnings_of
from fastzoo.saes.names import SAEName

Results = Sequence[tuple[Any, Mapping[str, Any], float | None, bool]]
"""Name, figures as ``Evaluation.metrics`` has them, training tokens per second if known, and whether the
SAE passes attention sinks through."""


def print_results(rows: Results, wanted_l0: float | None = None) -> None:
    """Print the figures: one line per SAE, or on a narrow terminal one column per SAE; warnings to stderr.

    ``wanted_l0`` is the ``training.l0`` of the run that ends.
    """
    headings = ["SAE", *(figure.heading(subset) for figure, subset in shown("run"))]
    cells = [flat(found) for _, found, *_ in rows]
    columns = [figure.column(subset) for figure, subset in shown("run")]
    lines = [
        [str(name), *(cell_shown(row, column, show) for column in columns)]
        for (name, *_), row in zip(rows, cells, strict=True)
    ]
    if any(speed is not None for _, _, speed, _ in rows):
        headings.append("tokens/s")
        for line, (_, _, speed, _) in zip(lines, rows, strict=True):
            line.append("" if speed is None else f"{speed:.0f}")
    _print_lines(headings, lines)
    if all(row["mse_special"] is None for row in cells):
        print(
            "the held-out dialogues hold no special tokens, so there are no figures for them", file=sys.stderr
        )
    if any(map(is_older, cells)):
        print(MARKED, file=sys.stderr)
    print_warnings(rows, wanted_l0)


def print_warnings(rows: Results, wanted_l0: float | None = None) -> None:
    """Print, to stderr, what the figures of each SAE warn of."""
    for name, found, _, skips_sinks in rows:
        for warning in warnings_of(found, skips_sinks=skips_sinks, wanted_l0=wanted_l0):
            print(f"warning: {name}: {warning}", file=sys.stderr)


def _print_lines(headings: list[str], lines: list[list[str]]) -> None:
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
    found = []
    for name in sorted(names):
        record, figures = (read_json(run_folder / str(name) / x) for x in ("config.json", "metrics.json"))
        skips_sinks = value_at(record, "sae", "sinks", "skipped") is True
        found.append((name, figures["metrics"], None, skips_sinks))
    return found
