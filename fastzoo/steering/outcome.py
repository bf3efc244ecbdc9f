"""What one run of ``fastzoo steer`` found, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastzoo.core.errors import FastzooError
from fastzoo.steering.questions import Question
from fastzoo.steering.scoring.judge import Verdict
from fastzoo.steering.scoring.scores import CONCEPT_SHARE, Cell, CellScores
from fastzoo.steering.sweet_spot import CLOSE_NATS, LEAST_EFFECT, LEAST_QUALITY, SweetSpot

SWEEP_DEFINITIONS = {
    "effect": "1 - share of the unsteered answer kept (ROUGE-L of tokens); with a language, what the "
    "share of the words in its sentences gained; with a concept, what the share of its words gained, "
    f"{CONCEPT_SHARE:g} counting as 1",
    "quality": "share of answers that are not degenerate and whose mean negative log-likelihood is at "
    f"most {CLOSE_NATS:g} nats above the unsteered answer's",
    "window": f"alphas with an effect of {LEAST_EFFECT:g} and {LEAST_QUALITY:.0%} of the "
    "unsteered quality around the one with the best harmonic mean; chosen on the questions of even "
    "index, reported on the others with 95% bootstrap intervals",
}

JUDGE_DEFINITION = (
    "how much of the concept is in the answer, whether it does what was asked, and how it reads, each "
    "0, 1 or 2; overall is their harmonic mean; null where the judge gave no usable reply"
)


@dataclass
class Outcome:
    """Answers, their scores, and what follows from them."""

    about: dict[str, Any]
    questions: list[Question]
    cells: list[Cell]
    scores: list[CellScores]
    """One for each cell, in order."""
    verdicts: list[Verdict] | None
    tokenizer: Any
    spot: SweetSpot | None
    """None where nothing is added, or only at alpha 0."""
    candidates: list[dict[str, Any]]
    """What ``--auto`` tried, the best first."""
    judge_failure: FastzooError | KeyboardInterrupt | None = None
    """Why the judge did not rate all answers; to be raised once everything else is saved."""

    def judged_cells(self) -> Iterator[tuple[Cell, CellScores, Verdict | None]]:
        """Each cell with its scores and its verdict, if there is a judge."""
        verdicts: Sequence[Verdict | None] = self.verdicts or [None] * len(self.cells)
        return zip(self.cells, self.scores, verdicts, strict=True)

    def rows(self, arm: str) -> list[tuple[Cell, CellScores]]:
        """The cells of an arm with their scores."""
        return [(cell, score) for cell, score, _ in self.judged_cells() if cell.arm == arm]

    def to_value(self) -> dict[str, Any]:
        cells = []
        for cell, score, verdict in self.judged_cells():
            cells.append(asdict(cell) | {"scores": asdict(score) | {"degenerate": score.degenerate}})
            if verdict:
                cells[-1]["judge"] = asdict(verdict) | {"overall": verdict.overall}
        return {
            **self.about,
            "questions": [question.text for question in self.questions],
            "sweet_spot": None if self.spot is None else asdict(self.spot),
            "candidates": self.candidates,
            "cells": cells,
        }
