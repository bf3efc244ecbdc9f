"""A sweep on the terminal: answers while they are written, then answers, scores and the sweet spot."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastzoo.core.progress import Progress
from fastzoo.core.tables import print_table
from fastzoo.core.text import one_line
from fastzoo.steering.generate import Step
from fastzoo.steering.outcome import Outcome
from fastzoo.steering.report import means, short
from fastzoo.steering.sweep import Sweep, Watch
from fastzoo.steering.sweep_rows import LATENT, PROMPT

SHOWN = 3
"""Questions whose answers are printed; if there are more, only the first one's are."""

SCORES = ("changed", "concept", "degenerate", "nll", "distinct_2", "switched", "ended", "tokens")
RATINGS = ("judged_concept", "judged_instruction", "judged_fluency", "judged_overall", "unrated")

HEADINGS = {"nll": "NLL", "distinct_2": "distinct-2"}
"""Of the keys of ``means`` that are not headings themselves."""


class LiveAnswers:
    """Shows on stderr how far a sweep is; on a terminal also the answers to the first question as they are written."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        arms = 2 if sweep.control and sweep.mode == "add" else 1
        prompted = len(sweep.questions) if sweep.wish is not None else 0
        self._rows = arms * len(sweep.questions) * len(sweep.alphas) + prompted
        # The latent's answers to the first question are the first rows.
        self._texts: dict[int, list[int]] = {row: [] for row in range(len(sweep.alphas))}
        self._lengths = Counter[int]()
        self._written = 0
        self._live: Any = None
        self._progress = Progress("steering", self._rows, shown=not sys.stderr.isatty())

    def __enter__(self) -> Watch:
        """What to tell of each new token."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            # Drawn a few times a second, however fast the tokens come.
            console = Console(stderr=True)
            self._live = Live(
                console=console, transient=True, refresh_per_second=8, get_renderable=self._lines
            )
            self._live.start()
        return self._told

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def _told(self, step: Step) -> None:
        for row, token in step:
            self._lengths[row] += 1
            if row in self._texts:
                self._texts[row].append(token)
        # Rows that are no longer told of have ended; the others may go on to the last token.
        going = sum(self._lengths[row] for row, _ in step) / self._sweep.settings.max_new_tokens
        written = int(len(self._lengths) - len(step) + going)
        if written > self._written:
            self._progress.advance(written - self._written, f"{written} of {self._rows} answers")
            self._written = written

    def _lines(self) -> Any:
        from rich.text import Text

        lines = []
        for row, alpha in enumerate(self._sweep.alphas):
            said = self._sweep.tokenizer.decode(self._texts[row], skip_special_tokens=True)
            lines.append(f"{alpha:>8g}  {one_line(said, len(said) + 1)[10 - self._live.console.width :]}")
        lines.append(f"{self._written} of {self._rows} answers")
        return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


def print_outcome(outcome: Outcome) -> None:
    """Answers, mean scores and sweet spot."""
    questions = outcome.questions if len(outcome.questions) <= SHOWN else outcome.questions[:1]
    for number, question in enumerate(questions):
        print(f"> {one_line(question.text, 1000)}")
        for cell, score in outcome.rows(LATENT):
            if cell.question == number:
                note = f"  ({score.fault})" if score.fault else ""
                print(f"{cell.alpha:>8g}  {one_line(cell.text, 2000)}{note}")
        print()
    if more := len(outcome.questions) - len(questions):
        print(f"answers to {more} more questions: --html FILE or --json", file=sys.stderr)
    rows = means(outcome)
    present = {key for row in rows for key, value in row.items() if value is not None}
    _print_means(rows, [key for key in SCORES if key in present])
    if outcome.verdicts is not None:
        print(f"rated 0 to 2 by {one_line(outcome.about['judge'], 120)}:")
        _print_means(rows, RATINGS)
    print(summary(outcome))


def _print_means(rows: list[dict[str, Any]], keys: Sequence[str]) -> None:
    lines = []
    for row in rows:
        alpha = "" if row["arm"] == PROMPT else f"{row['alpha']:g}"
        lines.append([row["arm"], alpha, *(short(row[key]) for key in keys)])
    # One blank between the columns: all of them fit into 80.
    titles = [HEADINGS.get(key, key.removeprefix("judged_")) for key in keys]
    print_table(["arm", "alpha", *titles], lines, gap=1)


def summary(outcome: Outcome) -> str:
    """The sweet spot in one line."""
    spot = outcome.spot
    start = f"latent {', '.join(map(str, outcome.about['latents']))}"
    for tokens in outcome.about["special_tokens"].values():
        start += f" (of {', '.join(one_line(token, 40) for token in tokens)})"
    if spot is None:
        return f"{start}: no window, which only alphas that are added have"
    if spot.best is None:
        return f"{start}: no window: {spot.reason}"
    line = f"{start}: window alpha {spot.low:g} to {spot.high:g}, best {spot.best:g}"
    if spot.low == spot.high:
        line = f"{start}: window alpha {spot.low:g} alone"
    if best := spot.at_best:
        effect, quality = (
            f"{e.value:.2f} ({e.low:.2f} to {e.high:.2f})" for e in (best.effect, best.quality)
        )
        line += f"; on the other questions effect {effect}, quality {quality}"
    return line if spot.holds else f"{line}; it does not hold: {spot.reason}"
