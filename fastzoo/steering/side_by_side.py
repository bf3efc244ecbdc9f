"""Two answers at once, without and with steering: as they are written, and what was likely at each of their tokens.

Shape suffixes: T tokens of a prompt and its answer, A those of the answer, D residual width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastzoo.data.special_tokens import TokenTexts
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.head import log_probabilities
from fastzoo.lm.packing import Pack
from fastzoo.steering.generate import Step
from fastzoo.steering.live import Live
from fastzoo.steering.positions import mask_of
from fastzoo.steering.scoring.scores import Cell, CellScores, score_cells
from fastzoo.steering.sweep import Sweep

LIKELIEST = 3
"""Tokens that are named as what could come next."""


class SideBySide:
    """The answers to the two questions of a sweep: the first unsteered, the second steered at its first alpha."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self._live = sweep, Live(sweep.pair)
        self.ids: tuple[list[int], list[int]] = ([], [])
        """Their tokens so far."""

    @property
    def cells(self) -> tuple[Cell, Cell]:
        """Both answers, once ``steps`` is through."""
        return self._live.result

    def steps(self) -> Iterator[Step]:
        """Writes both, and yields (0 or 1, token) of each step; see ``Live.steps``. Raises as ``Sweep.cells``."""
        for step in self._live.steps():
            for row, token in step:
                self.ids[row].append(token)
            yield step

    def texts(self) -> tuple[str, str]:
        """What is written so far, without special tokens and without half a character at the end."""
        decode = self.sweep.tokenizer.decode
        first, second = (decode(ids, skip_special_tokens=True).rstrip("\ufffd") for ids in self.ids)
        return first, second

    def scores(self) -> tuple[CellScores, CellScores]:
        """Of both answers, the steered one beside the unsteered one."""
        first = self.cells[0]
        sweep, unsteered = self.sweep, [first, replace(first, question=1)]
        found = score_cells(
            self.cells, unsteered, sweep.model, sweep.prompts(), sweep.ends(), sweep.tokenizer
        )
        return found[0], found[1]

    def tokens(self, reader: ResidualReader, texts: TokenTexts, vocabulary: int | None = None) -> Views:
        """What was likely at each token of both answers, and what the first latent did there.

        Costs a forward of each conversation to the end, and another one from the SAE's layer.
        """
        first, second = (
            token_views(self.sweep, reader, texts, prompt, cell, vocabulary)
            for prompt, cell in zip(self.sweep.prompts(), self.cells, strict=True)
        )
        return first, second


@dataclass(frozen=True)
class Likely:
    """The model's mind before a token, without or with steering."""

    own: float
    """Probability of the token that was written."""
    best: tuple[tuple[str, float], ...]
    """The likeliest tokens, with their probabilities."""


@dataclass(frozen=True)
class TokenView:
    """A token of an answer."""

    text: str
    activation: float
    """Of the sweep's first latent, before it is steered: a latent's layer is not reached by its own steering but
    through the tokens."""
    sink: bool
    """Whether the SAE leaves it alone as an attention sink."""
    without: Likely
    steered: Likely


Views = tuple[list[TokenView], list[TokenView]]


@torch.no_grad()
def token_views(
    sweep: Sweep,
    reader: ResidualReader,
    texts: TokenTexts,
    prompt: list[int],
    cell: Cell,
    vocabulary: int | None = None,
) -> list[TokenView]:
    """What stands behind each token of an answer that is given as it is, whatever it was steered by.

    Args:
        prompt: token ids up to where the answer begins.
        vocabulary: how many ids stand for a token.

    Raises TrainingError: the model's states hold NaN or infinity.
    """
    ids = np.array([*prompt, *cell.ids], dtype=np.int64)
    if not cell.ids:
        return []
    pack = Pack.of([sweep.chat.sequence(ids, 0)], reader.device)
    acts, plain_TD = reader.read_to_end(pack, [sweep.layer])
    x_TD = acts[sweep.layer]
    edit = sweep.edit(sweep.latents)
    mask_T = mask_of(sweep.positions)(pack.input_ids, len(prompt))[0]
    change_TD = edit.change(x_TD[None])[0].expand_as(x_TD) * mask_T[:, None].to(x_TD.dtype)
    steered_TD = reader.restarted(pack, sweep.layer, x_TD + change_TD)
    latent_1 = torch.tensor(sweep.latents[:1], device=x_TD.device)
    act_T = sweep.sae.encode_latents(x_TD.float(), latent_1)[:, 0]
    sink_T = sweep.sae.passed_through(x_TD.float())
    before, answer = slice(len(prompt) - 1, len(ids) - 1), slice(len(prompt), len(ids))
    written_A = pack.input_ids[0, answer]
    minds = []
    for states_AD in (plain_TD[before], steered_TD[before]):
        found: list[Likely] = []
        for part, (log_p_AV,) in log_probabilities(reader.model, states_AD):
            found += _likely(log_p_AV[:, :vocabulary], written_A[part], texts)
        minds.append(found)
    values = act_T[answer].masked_fill(sink_T[answer], 0).tolist()
    rows = zip(cell.ids, values, sink_T[answer].tolist(), *minds, strict=True)
    return [TokenView(texts(token), act, sink, *mind) for token, act, sink, *mind in rows]


def _likely(log_p_AV: Tensor, written_A: Tensor, texts: TokenTexts) -> list[Likely]:
    own_A = log_p_AV.gather(1, written_A[:, None])[:, 0].exp().tolist()
    best_AK, ids_AK = log_p_AV.exp().topk(min(LIKELIEST, log_p_AV.shape[1]))
    rows: Any = zip(own_A, best_AK.tolist(), ids_AK.tolist(), strict=True)
    return [
        Likely(own, tuple((texts(k), p) for k, p in zip(ids, best, strict=True))) for own, best, ids in rows
    ]
