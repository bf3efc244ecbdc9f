"""Where a single latent fires: its strongest contexts, and the tokens it fires on."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastzoo.data.sequences import TokenSequence
from fastzoo.data.special_tokens import TurnTexts

AROUND = 10
"""Tokens that are shown on each side of a maximum."""


@dataclass
class Firing:
    """What is gathered about one latent. Sinks are counted apart, as in ``LatentStatistics``."""

    top: int
    """How many contexts, and how many tokens, are reported."""
    _best: list[tuple[float, int, int, TokenSequence, np.ndarray]] = field(default_factory=list)
    _dialogues: int = 0
    _sinks: int = 0
    _sinks_sum: float = 0.0
    _sinks_fired: int = 0
    _sum: Counter[int] = field(default_factory=Counter)
    _fired: Counter[int] = field(default_factory=Counter)

    def add(self, sequence: TokenSequence, acts_T: np.ndarray, sink_T: np.ndarray) -> None:
        """Add a dialogue with the latent's activations (T,), none of them negative, and with which of its
        tokens are sinks (T,)."""
        self._dialogues += 1
        self._sinks += int(sink_T.sum())
        self._sinks_sum += float(acts_T[sink_T].sum())
        self._sinks_fired += int((acts_T[sink_T] > 0).sum())
        counted_T = np.where(sink_T, 0, acts_T)
        fired = np.flatnonzero(counted_T > 0)
        if not len(fired):
            return
        for number, value in zip(sequence.ids[fired].tolist(), acts_T[fired].tolist(), strict=True):
            self._sum[number] += value
            self._fired[number] += 1
        place = int(counted_T.argmax())
        # Of equal maxima the one in the earlier dialogue stays: its negative number is larger.
        entry = (float(acts_T[place]), -self._dialogues, place, sequence, acts_T)
        heapq.heappush(self._best, entry)
        if len(self._best) > self.top:
            heapq.heappop(self._best)

    def report(self, texts: TurnTexts, occurrences: Counter[int]) -> dict[str, Any]:
        """Contexts (at most one per dialogue), tokens and sinks, as plain data; ``occurrences`` says how
        often each token id is no sink."""
        total = sum(self._sum.values())
        by_share = sorted(self._sum, key=lambda number: (-self._sum[number], number))
        return {
            "contexts": [self._context(texts, *entry) for entry in sorted(self._best)[::-1]],
            "tokens": [
                {
                    "token_id": number,
                    "token": texts(number),
                    "occurrences": occurrences[number],
                    "fired": self._fired[number],
                    "mean": self._sum[number] / occurrences[number],
                    "share": self._sum[number] / total,
                }
                for number in by_share[: self.top]
            ],
            "sinks": {
                "tokens": self._sinks,
                "fired": self._sinks_fired,
                "mean": self._sinks_sum / max(self._sinks, 1),
            },
        }

    @staticmethod
    def _context(
        texts: TurnTexts, value: float, _: int, place: int, sequence: TokenSequence, acts_T: np.ndarray
    ) -> dict[str, Any]:
        start, stop = max(0, place - AROUND), min(len(sequence), place + AROUND + 1)
        return {
            "row": int(sequence.dialogue[place]),
            "position": place,
            "activation": value,
            "role": texts.role(sequence, place),
            "token": place - start,
            "tokens": [
                {"token": texts(number), "activation": float(act)}
                for number, act in zip(sequence.ids[start:stop].tolist(), acts_T[start:stop], strict=True)
            ],
        }
