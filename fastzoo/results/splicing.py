"""What a model predicts with something else in the residual stream after a layer: cross-entropy and KL.

Shape suffixes: T tokens of a pack, R those that predict one of their own dialogue, D residual width,
P passes, S subsets, N dialogues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.head import losses
from fastzoo.lm.packing import Pack
from fastzoo.results.figures import LOSS
from fastzoo.results.metrics import DialogueSums, Tokens

STATES_ELEMENTS = 1 << 28
"""Final states that wait for the head together (passes x tokens x width)."""


@dataclass
class _Waiting:
    """Final states whose predictions are not scored yet, and where the scores go."""

    states: list[Tensor]
    tokens: Tokens
    ce: DialogueSums
    kl: DialogueSums | None


class SplicedPasses:
    """The passes of one pack. They wait for each other, so that the head computes many at once and the
    model's own predictions, from which KL is measured, only once."""

    def __init__(self, reader: ResidualReader, pack: Pack, final_TD: Tensor) -> None:
        """``final_TD``: final states of the undisturbed model."""
        self._reader, self._pack = reader, pack
        ids_T = pack.input_ids[0]
        # The last token of a dialogue predicts nothing: what follows it is another dialogue.
        predicts_T = torch.ones(len(ids_T), dtype=torch.bool)
        predicts_T[torch.tensor(pack.lengths).cumsum(0) - 1] = False
        self._predicts_T = predicts_T.to(ids_T.device)
        self._rows = predicts_T.nonzero().squeeze(1).to(ids_T.device)
        self._targets_R = ids_T[self._rows + 1]
        self._own_RD = final_TD[self._rows]
        self._own_ce_R = torch.zeros(0)
        self._waiting: list[_Waiting] = []

    def add(
        self,
        layer: int,
        streams: Sequence[Tensor],
        tokens: Tokens,
        ce: DialogueSums,
        kl: DialogueSums | None = None,
    ) -> None:
        """Run the model on from ``layer``.

        Args:
            streams: the residual stream (T, D) after that layer: changed everywhere and, if that is
                something else, changed everywhere but at sinks, for the subsets without these.
            ce, kl: what the sums per dialogue are added to, in the order of the calls.
        """
        states = [self._reader.restarted(self._pack, layer, x_TD)[self._rows] for x_TD in streams]
        self._waiting.append(_Waiting(states, tokens, ce, kl))
        if sum(len(each.states) for each in self._waiting) * self._own_RD.numel() >= STATES_ELEMENTS:
            self._score()

    def finish(self) -> None:
        """Score what is still waiting."""
        if self._waiting or not len(self._own_ce_R):
            self._score()

    def add_own(self, tokens: Tokens, ce: DialogueSums, count: DialogueSums) -> None:
        """After ``finish``: add the model's own cross-entropies, and how many tokens are predicted."""
        ce.add(self._sums(tokens, self._own_ce_R[None]))
        count.add(self._sums(tokens, torch.ones_like(self._own_ce_R)[None]))

    def _score(self) -> None:
        states = [state for each in self._waiting for state in each.states]
        model = self._reader.model
        own_R, ce_PR, kl_PR = losses(model, self._own_RD, states, self._targets_R)
        self._own_ce_R = own_R
        done = 0
        for each in self._waiting:
            part = slice(done, done := done + len(each.states))
            each.ce.add(self._sums(each.tokens, ce_PR[part]))
            if each.kl is not None:
                each.kl.add(self._sums(each.tokens, kl_PR[part]))
        self._waiting = []

    def _sums(self, tokens: Tokens, values_PR: Tensor) -> Tensor:
        """(S, N) float64 from values of one pass or two, the second of which spares sinks."""
        values_ST = values_PR.new_zeros(len(LOSS), len(self._predicts_T))
        for index, subset in enumerate(LOSS):
            values_ST[index, self._rows] = values_PR[-1 if subset.endswith("without_sinks") else 0]
        return tokens.per_dialogue(tokens.weight_ST[: len(LOSS)] * values_ST)
