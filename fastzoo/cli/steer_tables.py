"""A sweep on the terminal: answers while they are written, then answers, scores and the window."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from fastzoo.core.progress import Progress
from fastzoo.core.text import one_line
from fastzoo.steering.outcome import Outcome
from fastzoo.steering.report import means, short
from fastzoo.steering.rows import LATENT, PROMPT
from fastzoo.steering.sweep import Sweep

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

RATINGS = (
    ("concept", "judged_concept"),
    ("instruction", "judged_instruction"),
    ("fluency", "judged_fluency"),
    ("overall", "judged_overall"),
    ("unrated", "unrated"),
)


class LiveAnswers:
    """Shows on stderr how far a sweep is; on a terminal also the answers to the first question while they
    are written."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        arms = 2 if sweep.control and sweep.mode == "add" else 1
        prompted = len(sweep.questions) if sweep.wish is not None else 0
        self._rows = arms * len(sweep.questions) * len(sweep.alphas) + prompted
        # The latent's answers to the first question are the first rows.
        self._texts: dict[int, list[int]] = {row: [] for row in range(len(sweep.alphas))}
        self._lengths: dict[int, int] = {}
        self._written = 0
        self._live: Any = None
        self._width = 80
        self._progress = Progress("steering", self._rows, shown=not sys.stderr.isatty())

    def __enter__(self) -> Callable[[list[tuple[int, int]]], None]:
        """What to tell of each new token."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            # Drawn a few times a second, however fast the tokens come.
            console = Console(stderr=True)
            self._width = console.width
            self._live = Live(
                console=console,
                transient=True,
                refresh_per_second=8,
                get_renderable=self._lines,
            )
            self._live.start()
        return self._told

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def _told(self, step: list[tuple[int, int]]) -> None:
        for row, token in step:
            self._lengths[row] = self._lengths.get(row, 0) + 1
            if row in self._texts:
                self._texts[row].append(token)
        # Rows that are no longer told of have ended; the others may go on to the last token.
        going = sum(self._lengths[row] for row, _ in step) / self._sweep.settings.max_new_tokens
        written = int(len(self._lengths) - len(step) + going)
        if written > self._written:
            self._progress.advance(written - self._written, self._note(written))
            self._written = written

    def _note(self, written: int) -> str:
        return f"{written} of {self._rows} answers"

    def _lines(self) -> Any:
        from rich.text import Text

        lines = []
        for row, alpha in enumerate(self._sweep.alphas):
            said = self._sweep.tokenizer.decode(self._texts[row], skip_special_tokens=True)
            lines.append(f"{alpha:>8g}  {one_line(said, len(said) + 1)[10 - self._width :]}")
        return Text(
            "\n".join([*lines, self._note(self._written)]), no_wrap=True, overflow="ellipsis"
        )


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
    rows = means(outcome)
    _print_table(console, rows, [c for c in COLUMNS if any(row[c[1]] is not None for row in rows)])
    if outcome.verdicts is not None:
        console.print(f"rated 0 to 2 by {one_line(outcome.about['judge'], 120)}:")
        _print_table(console, rows, RATINGS)


def _print_table(
    console: Any, rows: list[dict[str, Any]], columns: Sequence[tuple[str, str]]
) -> None:
    from rich.table import Table

    # One blank between the columns: all of them fit into 80.
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for title in ("arm", "alpha", *(title for title, _ in columns)):
        table.add_column(title, justify="left" if title == "arm" else "right", no_wrap=True)
    for row in rows:
        alpha = "" if row["arm"] == PROMPT else f"{row['alpha']:g}"
        table.add_row(row["arm"], alpha, *(short(row[key]) for _, key in columns))
    console.print(table)


def summary(outcome: Outcome) -> str:
    """The window in one line."""
    spot = outcome.spot
    latents = ", ".join(map(str, outcome.about["latents"]))
    for tokens in outcome.about["special_tokens"].values():
        latents += f" (of {', '.join(one_line(token, 40) for token in tokens)})"
    if spot is None:
        return f"latent {latents}: no window, which only alphas that are added have"
    if not spot.found:
        return f"latent {latents}: no window: {spot.reason}"
    line = f"latent {latents}: window alpha {spot.low:g} to {spot.high:g}, best {spot.best:g}"
    if spot.low == spot.high:
        line = f"latent {latents}: window alpha {spot.low:g} alone"
    if (best := spot.at_best) is not None:
        line += (
            f"; on the other questions effect {best.effect.value:.2f} ({best.effect.low:.2f} to "
            f"{best.effect.high:.2f}), quality {best.quality.value:.2f} ({best.quality.low:.2f} to "
            f"{best.quality.high:.2f})"
        )
    return line if spot.holds else f"{line}; it does not hold: {spot.reason}"
