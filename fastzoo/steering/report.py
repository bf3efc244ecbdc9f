"""A sweep as one HTML page that needs nothing else: curves, sweet spot, answers side by side."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import astuple
from itertools import groupby
from typing import Any

import numpy as np

from fastzoo.results.figures import show
from fastzoo.steering.outcome import Outcome
from fastzoo.steering.scoring.repeats import repeated_mask
from fastzoo.steering.scoring.scores import Cell
from fastzoo.steering.sweep_rows import ARMS, LATENT, PROMPT, RANDOM

MARKED = 4
"""Tokens of a span that is marked as said before."""

TITLES = {LATENT: "the latent", RANDOM: "a random direction", PROMPT: "said in the system prompt"}

SCORES = ("concept", "degenerate", "nll", "distinct_2", "repeated", "switched", "ended", "tokens")
RATINGS = ("concept", "instruction", "fluency", "overall")


def render_report(outcome: Outcome) -> str:
    """The page's text; whatever models say in it is shown as it is, and none of it is markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fastzoo", "steering"), undefined=StrictUndefined, autoescape=True
    )
    environment.filters |= {"figure": show, "short": short, "visible": control_pictures}
    return environment.get_template("report.html.j2").render(
        vars(outcome),
        arms=[(arm, TITLES[arm], answers(outcome, arm)) for arm in ARMS if outcome.rows(arm)],
        means=means(outcome),
        curves=draw_curves(outcome),
        titles=TITLES,
        zip=zip,
    )


def means(outcome: Outcome) -> list[dict[str, Any]]:
    """Per arm and alpha, the mean scores over all questions."""
    found: list[dict[str, Any]] = []
    cells = list(outcome.judged_cells())
    for arm in ARMS:
        for alpha in dict.fromkeys(cell.alpha for cell, _, _ in cells if cell.arm == arm):
            part = [row for row in cells if (row[0].arm, row[0].alpha) == (arm, alpha)]
            row: dict[str, Any] = {
                "arm": arm,
                "alpha": alpha,
                "changed": mean(1 - score.kept for _, score, _ in part),
            }
            row |= {name: mean(getattr(score, name) for _, score, _ in part) for name in SCORES}
            if outcome.verdicts is not None:
                row |= {f"judged_{name}": mean(getattr(v, name) for _, _, v in part) for name in RATINGS}
                row["unrated"] = mean(v is None or v.overall is None for _, _, v in part)
            found.append(row)
    return found


def short(value: float | None) -> str:
    """A mean with two decimals; a dash if it is unknown."""
    return "–" if value is None else f"{value:.2f}"


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; None if none is known."""
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def answers(outcome: Outcome, arm: str) -> list[list[dict[str, Any]]]:
    """For each question the answers by alpha."""
    table: list[list[dict[str, Any]]] = [[] for _ in outcome.questions]
    for cell, score, verdict in outcome.judged_cells():
        if cell.arm == arm:
            pieces = parts(cell, outcome.tokenizer)
            table[cell.question].append({"cell": cell, "score": score, "parts": pieces, "verdict": verdict})
    return table


def parts(cell: Cell, tokenizer: Any) -> list[tuple[str, bool]]:
    """The answer's text in pieces, and of each whether it was said before."""
    found: list[tuple[str, bool]] = []
    stop = shown = 0
    for marked, run in groupby(repeated_mask(cell.ids, MARKED).tolist()):
        stop += len(list(run))
        # From the beginning each time: by themselves the tokens may lose a blank, or half a character.
        text = tokenizer.decode(list(cell.ids[:stop]), skip_special_tokens=True)
        if stop < len(cell.ids):
            text = text.rstrip("\ufffd")
        if text[shown:]:
            found.append((control_pictures(text[shown:]), marked))
        shown = max(shown, len(text))
    return found


def control_pictures(text: str) -> str:
    """Text with pictures of its control characters, which a page would swallow."""
    return "".join(chr(0x2400 + ord(c)) if c < " " and c not in "\t\n" else c for c in text)


def draw_curves(outcome: Outcome, window: tuple[float, float] | None = None) -> str:
    """Effect, quality and their harmonic mean over alpha, as SVG; with the sweep's own window, or else one that was
    measured before."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    spot = outcome.spot
    if spot is None or not spot.chosen_on:
        return ""
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(1, 2 if spot.reported else 1, squeeze=False)
    chose = "chosen on these questions" if spot.reported else "on this question"
    halves = ((chose, spot.chosen_on), ("reported on these", spot.reported))
    colours = {"effect": "#d1495b", "quality": "#2a6f97", "score": "#333333"}
    for axis, (title, curve) in zip(axes[0], halves, strict=False):
        own = None if spot.low is None or spot.high is None else (spot.low, spot.high)
        if shaded := own or window:
            axis.axvspan(*shaded, color="#a8d5a8", alpha=0.6, linewidth=4)
        for key, colour in colours.items():
            middle, low, high = zip(*(astuple(getattr(rates, key)) for rates in curve), strict=True)
            axis.plot(spot.alphas, middle, "o-", color=colour, label=key, markersize=4)
            axis.fill_between(spot.alphas, low, high, color=colour, alpha=0.1, linewidth=0)
        axis.set(ylim=(-0.03, 1.03), xlabel=f"alpha ({outcome.about['units']})", title=title)
        axis.grid(alpha=0.3)
    axes[0][0].legend(loc="center left", frameon=False)
    text = io.StringIO()
    # A fixed salt: the same sweep gives the same page.
    with rc_context({"svg.hashsalt": "fastzoo", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
