"""The arithmetic of the figures that ``fastzoo.results.figures`` defines; sums in float64.

Shape suffixes: S subsets, N dialogues, T tokens of a pack, D residual width, F latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastzoo.results.figures import BOTH, LOSS, SUBSETS

Figures = dict[str, dict[str, dict[str, Any]]]
"""``{figure: {subset: {"value", "tokens", ...}}}``, as ``metrics.json`` has them."""

RESAMPLES = 1000
"""Of the bootstrap behind intervals."""


class Tokens:
    """Tokens of whole dialogues laid end to end, and which of the subsets each is in."""

    def __init__(self, lengths: Sequence[int], position_T: Tensor, special_T: Tensor, sink_T: Tensor) -> None:
        usual_T = ~sink_T
        masks = {
            "without_sinks": usual_T,
            "all": torch.ones_like(usual_T),
            "special_without_sinks": special_T & usual_T,
            "special": special_T,
            "without_position_0": position_T > 0,
        }
        self.weight_ST = torch.stack([masks[subset] for subset in SUBSETS]).double()
        self.dialogues = len(lengths)
        dialogue_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        self.dialogue_T = dialogue_T.to(sink_T.device)
        self.count_SN = self.per_dialogue(self.weight_ST)

    def per_dialogue(self, values_ST: Tensor) -> Tensor:
        """Sums (S, N) of values (S, T) over the tokens of each dialogue."""
        sums_SN = values_ST.new_zeros(len(values_ST), self.dialogues)
        return sums_SN.index_add_(1, self.dialogue_T, values_ST)


class Activations:
    """Sums over the activations at a place, which all SAEs there share."""

    def __init__(self, d_in: int, device: torch.device) -> None:
        zeros_S = torch.zeros(len(SUBSETS), dtype=torch.float64, device=device)
        self._tokens_S, self._dialogues_S, self._squared_S = zeros_S, zeros_S.clone(), zeros_S.clone()
        self._x_SD = zeros_S.new_zeros(len(SUBSETS), d_in)

    def add(self, x_TD: Tensor, tokens: Tokens) -> None:
        """Add activations, in float64."""
        self._tokens_S += tokens.count_SN.sum(1)
        self._dialogues_S += (tokens.count_SN > 0).sum(1)
        self._x_SD += tokens.weight_ST @ x_TD
        self._squared_S += tokens.weight_ST @ torch.linalg.vecdot(x_TD, x_TD)

    def totals(self) -> dict[str, tuple[int, int, float]]:
        """Per subset: tokens, dialogues with one, summed squared distance from the mean activation."""
        mean_SD = self._x_SD / self._tokens_S.clamp_min(1)[:, None]
        variance_S = self._squared_S - self._tokens_S * mean_SD.square().sum(1)
        each = (self._tokens_S.tolist(), self._dialogues_S.tolist(), variance_S.tolist())
        return {s: (int(t), int(d), v) for s, t, d, v in zip(SUBSETS, *each, strict=True)}


class Reconstruction:
    """Sums of squared error and activity of one SAE over dialogues, per subset."""

    def __init__(self, d_in: int, d_sae: int, device: torch.device) -> None:
        self.d_in, self.d_sae = d_in, d_sae
        zeros_S = torch.zeros(len(SUBSETS), dtype=torch.float64, device=device)
        # ``per_dialogue``: sum over dialogues of the squared error's mean over the dialogue's tokens.
        self._per_dialogue_S, self._squared_error_S = zeros_S, zeros_S.clone()
        self._fired_SF = zeros_S.new_zeros(len(SUBSETS), d_sae)

    def add(self, x_TD: Tensor, reconstruction_TD: Tensor, acts_TF: Tensor, tokens: Tokens) -> None:
        """Add whole dialogues; ``x_TD`` is float64."""
        error_TD = x_TD - reconstruction_TD
        error_ST = tokens.weight_ST * torch.linalg.vecdot(error_TD, error_TD)
        error_SN = tokens.per_dialogue(error_ST)
        self._per_dialogue_S += (error_SN / tokens.count_SN.clamp_min(1)).sum(1)
        self._squared_error_S += error_SN.sum(1)
        # Whole numbers far below 2**24, which products in float32 (and TF32) count exactly.
        self._fired_SF += tokens.weight_ST.float() @ torch.sign(acts_TF.float())

    def figures(self, activations: Activations) -> Figures:
        """Squared error, L0, FVU and dead latents; a subset without tokens has the value None."""
        found: Figures = {"mse": {}, "log2_mse": {}, "l0": {}, "fvu": {}, "dead_latents": {}}
        sums = (self._per_dialogue_S.tolist(), self._squared_error_S.tolist(), self._fired_SF.sum(1).tolist())
        totals = activations.totals()
        for (subset, total), per_dialogue, squared_error, active in zip(totals.items(), *sums, strict=True):
            tokens, dialogues, variance = total
            mse = l0 = fvu = None
            if tokens:
                mse = per_dialogue / dialogues / self.d_in
                l0 = active / tokens
                fvu = squared_error / variance if variance > 0 else None
            values = (mse, math.log2(mse) if mse else None, l0, fvu)
            for figure, value in zip(found, values, strict=False):
                found[figure][subset] = {"value": value, "tokens": tokens, "dialogues": dialogues}
        for subset, fired_F in zip(BOTH, self._fired_SF, strict=False):
            dead = int((fired_F == 0).sum().item())
            tokens, dialogues, _ = totals[subset]
            size = {"tokens": tokens, "dialogues": dialogues}
            found["dead_latents"][subset] = {"value": dead, "share": dead / self.d_sae, **size}
        return found

    def frequency(self, activations: Activations) -> Tensor:
        """(d_sae,) float64: the share of tokens, without sinks, on which each latent fires."""
        return self._fired_SF[0] / max(1, activations.totals()[BOTH[0]][0])


class DialogueSums:
    """A sum over the predicted tokens of each dialogue, per subset of ``LOSS``."""

    def __init__(self) -> None:
        self._packs: list[Tensor] = []

    def add(self, sums_SN: Tensor) -> None:
        """Add the dialogues of a pack."""
        self._packs.append(sums_SN)

    def by_subset(self) -> np.ndarray:
        """(S, N) float64, dialogues in the order in which they were added."""
        return torch.cat(self._packs, 1).cpu().numpy()


def loss_figures(
    tokens: DialogueSums, own: DialogueSums, spliced: DialogueSums, zeros: DialogueSums, kl: DialogueSums
) -> Figures:
    """Cross-entropy figures of one SAE from sums of predicted tokens, of cross-entropies (the model's own,
    with the SAE and with zeros spliced in) and of KL."""
    each = (tokens, own, spliced, zeros, kl)
    sums_S5N = np.stack([sums.by_subset() for sums in each], 1)
    resampled_S5R = sums_S5N @ _draws(sums_S5N.shape[2])  # the same draws for every figure
    found: Figures = {name: {} for name in RATIOS}
    for subset, sums_5N, resampled_5R in zip(LOSS, sums_S5N, resampled_S5R, strict=True):
        size = {"tokens": int(sums_5N[0].sum()), "dialogues": int((sums_5N[0] > 0).sum())}
        for name, ratio in RATIOS.items():
            above, below = ratio(*sums_5N.sum(1).tolist())
            drawn, drawn_below = ratio(*resampled_5R)
            known_R = drawn_below != 0  # a rare token may be in none of the dialogues drawn
            interval = None
            if below and size["dialogues"] > 1 and known_R.any():
                interval = np.quantile(drawn[known_R] / drawn_below[known_R], (0.025, 0.975)).tolist()
            found[name][subset] = {"value": above / below if below else None, "interval": interval, **size}
    return found


RATIOS: Mapping[str, Callable[..., tuple[Any, Any]]] = {
    "ce_model": lambda tokens, own, spliced, zeros, kl: (own, tokens),
    "ce_reconstruction": lambda tokens, own, spliced, zeros, kl: (spliced, tokens),
    "ce_zero": lambda tokens, own, spliced, zeros, kl: (zeros, tokens),
    "ce_recovered": lambda tokens, own, spliced, zeros, kl: (zeros - spliced, zeros - own),
    "delta_loss": lambda tokens, own, spliced, zeros, kl: (spliced - own, own),
    "kl": lambda tokens, own, spliced, zeros, kl: (kl, tokens),
}
"""Each figure as a numerator and a denominator, of sums over the same tokens."""


@lru_cache(maxsize=1)
def _draws(count: int) -> np.ndarray:
    """(count, RESAMPLES): how often each dialogue is drawn when as many are drawn as there are."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).T.astype(float)
