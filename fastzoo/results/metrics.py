"""The arithmetic of the figures that ``fastzoo.results.figures`` defines; sums in float64.

Shape suffixes: T tokens of a pack, D residual width, F latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastzoo.results.figures import LOSS, SUBSETS

Figures = dict[str, dict[str, dict[str, Any]]]
"""``{figure: {subset: {"value", "tokens", ...}}}``, as ``metrics.json`` has them."""

SUMS = ("per_dialogue", "dialogues", "tokens", "squared_error", "active", "x_D", "x_squared")
"""``per_dialogue``: sum over dialogues of the squared error's mean over the dialogue's tokens."""


class Reconstruction:
    """Sums of squared error, activity and variance over dialogues, per subset."""

    def __init__(self, d_in: int, d_sae: int, device: torch.device) -> None:
        self.d_in, self.d_sae = d_in, d_sae
        fired_F = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self.fired = {"without_sinks": fired_F, "all": fired_F.clone()}
        """(d_sae,) each: on how many tokens every latent is active."""
        zeros = {key: fired_F.new_zeros([d_in] if key == "x_D" else []) for key in SUMS}
        self._sums = {subset: {key: zero.clone() for key, zero in zeros.items()} for subset in SUBSETS}

    def add(
        self,
        x_TD: Tensor,
        reconstruction_TD: Tensor,
        acts_TF: Tensor,
        *,
        lengths: Sequence[int],
        position_T: Tensor,
        special_T: Tensor,
        sink_T: Tensor,
    ) -> None:
        """Add whole dialogues laid end to end, ``lengths`` tokens each."""
        device = x_TD.device
        x = x_TD.double()
        error_T = (x - reconstruction_TD).square_().sum(1)
        active_TF = acts_TF > 0
        active_T = active_TF.sum(1).double()
        self.fired["all"] += active_TF.sum(0)
        self.fired["without_sinks"] += active_TF[~sink_T].sum(0)
        norm_T = x.square().sum(1)
        dialogue_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(device)
        masks = {
            "without_sinks": ~sink_T,
            "all": torch.ones_like(special_T),
            "special_without_sinks": special_T & ~sink_T,
            "special": special_T,
            "without_position_0": position_T > 0,
        }
        for subset, mask_T in masks.items():
            weight_T = mask_T.to(device).double()
            sums = self._sums[subset]
            count_N = weight_T.new_zeros(len(lengths)).index_add_(0, dialogue_T, weight_T)
            error_N = weight_T.new_zeros(len(lengths)).index_add_(0, dialogue_T, weight_T * error_T)
            sums["per_dialogue"] += (error_N / count_N.clamp_min(1)).sum()
            sums["dialogues"] += (count_N > 0).sum()
            sums["tokens"] += weight_T.sum()
            sums["squared_error"] += (weight_T * error_T).sum()
            sums["active"] += (weight_T * active_T).sum()
            sums["x_D"] += weight_T @ x
            sums["x_squared"] += weight_T @ norm_T

    def figures(self) -> Figures:
        """Squared error, L0, FVU and dead latents; a subset without tokens has the value None."""
        found: Figures = {"mse": {}, "log2_mse": {}, "l0": {}, "fvu": {}}
        for subset, sums in self._sums.items():
            tokens, dialogues = sums["tokens"].item(), sums["dialogues"].item()
            size = {"tokens": int(tokens), "dialogues": int(dialogues)}
            mse = l0 = fvu = None
            if tokens:
                mse = sums["per_dialogue"].item() / dialogues / self.d_in
                l0 = sums["active"].item() / tokens
                mean_D = sums["x_D"] / tokens
                variance = sums["x_squared"].item() - tokens * mean_D.square().sum().item()
                fvu = sums["squared_error"].item() / variance if variance > 0 else None
            values = (mse, math.log2(mse) if mse else None, l0, fvu)
            for figure, value in zip(found, values, strict=True):
                found[figure][subset] = {"value": value, **size}
        found["dead_latents"] = {}
        for subset, fired_F in self.fired.items():
            dead = int((fired_F == 0).sum().item())
            size = {key: found["mse"][subset][key] for key in ("tokens", "dialogues")}
            found["dead_latents"][subset] = {"value": dead, "share": dead / self.d_sae, **size}
        return found


class NextToken:
    """Sums of cross-entropy and KL over predicted tokens, per subset."""

    def __init__(self, device: torch.device) -> None:
        # Per subset: cross-entropy, KL, tokens.
        self._sums = {s: torch.zeros(3, dtype=torch.float64, device=device) for s in LOSS}

    def add(self, subset: str, ce_T: Tensor, kl_T: Tensor | None, mask_T: Tensor) -> None:
        """Add predictions where ``mask_T`` is set; ``kl_T`` None counts as zero."""
        weight_T = mask_T.double()
        kl = (weight_T * kl_T.double()).sum() if kl_T is not None else weight_T.new_zeros(())
        self._sums[subset] += torch.stack([(weight_T * ce_T.double()).sum(), kl, weight_T.sum()])

    def means(self, subset: str) -> tuple[float | None, float | None, int]:
        """Mean cross-entropy, mean KL, number of predicted tokens."""
        ce, kl, tokens = self._sums[subset].tolist()
        return (ce / tokens, kl / tokens, int(tokens)) if tokens else (None, None, 0)


def loss_figures(model: NextToken, spliced: NextToken, zero: NextToken) -> Figures:
    """Cross-entropy figures of one SAE: the model's own, with the SAE and with zeros spliced in."""
    names = ("ce_model", "ce_reconstruction", "ce_zero", "ce_recovered", "delta_loss", "kl")
    found: Figures = {name: {} for name in names}
    for subset in LOSS:
        ce_model, _, tokens = model.means(subset)
        ce_spliced, kl, _ = spliced.means(subset)
        ce_zero, _, _ = zero.means(subset)
        recovered = delta = None
        if ce_model is not None and ce_spliced is not None and ce_zero is not None:
            if ce_zero != ce_model:
                recovered = (ce_zero - ce_spliced) / (ce_zero - ce_model)
            delta = (ce_spliced - ce_model) / ce_model if ce_model else None
        values = (ce_model, ce_spliced, ce_zero, recovered, delta, kl)
        for name, value in zip(names, values, strict=True):
            found[name][subset] = {"value": value, "tokens": tokens}
    return found
