"""A sweep on the terminal: answers while they are written, then answers, scores and the window."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from fastzoo.card import show
from fastzoo.errors import one_line
from fastzoo.steer_report import TITLES, means
from fastzoo.steer_run import Outcome
from fastzoo.sweep import LATENT, Sweep

SHOWN = 3
"""Questions whose answers are printed; of more, only the first one's."""

COLUMNS = (
    ("changed", "changed"),
    ("concept", "concept"),
    ("degenerate", "degenerate"),
    ("NLL", "nll"),
    ("distinct-2", "distinct_2"),
    ("switched", "switched"),
    ("ended", "ended"),
    ("tokens", "tokens"),
)


class LiveAnswers:
    """Shows the answers to the first question on stderr while they are written, if it is a terminal."""

    def __init__(self) -> None:
        self._live: Any = None

    def watch(self, sweep: Sweep) -> Callable[[list[tuple[int, int]]], None] | None:
        """What to tell of each new token; None where nobody looks."""
        if not sys.stderr.isatty():
            return None
        from rich.console import Console
        from rich.live import Live

        # The latent's answers to the first question are the first rows.
        texts: dict[int, list[int]] = {row: [] for row in range(len(sweep.alphas))}
        self._live = Live(console=Console(stderr=True), transient=True, refresh_per_second=8)
        self._live.start()

        def told(step: list[tuple[int, int]]) -> None:
            for row, token in step:
                if row in texts:
                    texts[row].append(token)
            lines = [
                f"{alpha:>8g}  {one_line(sweep.tokenizer.decode(texts[row]), 200)}"
                for row, alpha in enumerate(sweep.alphas)
            ]
            self._live.update("\n".join(lines).replace("[", r"\["))

        return told

    def __enter__(self) -> LiveAnswers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def print_outcome(outcome: Outcome) -> None:
    """Answers, mean scores and window."""
    from rich.console import Console

    console = Console(
        width=None if sys.stdout.isatty() else 1000, markup=False, emoji=False, highlight=False
    )
    questions = outcome.questions if len(outcome.questions) <= SHOWN else outcome.questions[:1]
    for number, question in enumerate(questions):
        console.print(f"> {one_line(question.text, 1000)}")
        for cell, score in outcome.rows(LATENT):
            if cell.question == number:
                note = f"  ({score.fault})" if score.fault else ""
                console.print(f"{cell.alpha:>8g}  {one_line(cell.text, 2000)}{note}")
        console.print()
    if len(questions) < len(outcome.questions):
        more = len(outcome.questions) - len(questions)
        print(f"answers to {more} more questions: --html FILE or --json", file=sys.stderr)
    _print_means(console, outcome)
    console.print(summary(outcome))


def _print_means(console: Any, outcome: Outcome) -> None:
    from rich.table import Table

    rows = means(outcome)
    shown = [(title, key) for title, key in COLUMNS if any(row[key] is not None for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("steered by", "alpha", *(title for title, _ in shown)):
        table.add_column(title, justify="left" if title == "steered by" else "right", no_wrap=True)
    for row in rows:
        cells = [show(row[key]) for _, key in shown]
        table.add_row(TITLES[row["arm"]], f"{row['alpha']:g}", *cells)
    console.print(table)


def summary(outcome: Outcome) -> str:
    """The window in one line."""
    spot = outcome.spot
    latents = ", ".join(map(str, outcome.about["latents"]))
    if spot is None:
        return f"latent {latents}: no window, which only alphas that are added have"
    if not spot.found:
        return f"latent {latents}: no window: {spot.reason}"
    line = f"latent {latents}: window alpha {spot.low:g} to {spot.high:g}, best {spot.best:g}"
    if (best := spot.at_best) is not None:
        line += (
            f"; on the other questions effect {best.effect.value:.2f} ({best.effect.low:.2f} to "
            f"{best.effect.high:.2f}), quality {best.quality.value:.2f} ({best.quality.low:.2f} to "
            f"{best.quality.high:.2f})"
        )
    return line if spot.holds else f"{line}; it does not hold: {spot.reason}"
