"""What steering adds to the residual stream: latents, how far each is pushed, and in which unit.

Shape suffixes: B rows of a batch, T tokens of a forward pass, D residual width, K latents, R rows of
alphas (1, or one per row of the batch).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line
from fastzoo.saes.base import SAE

CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "clamp": lambda acts_BTK, value_B1K: value_B1K - acts_BTK,
    "scale": lambda acts_BTK, value_B1K: (value_B1K - 1) * acts_BTK,
    "ablate": lambda acts_BTK, value_B1K: -acts_BTK * (value_B1K != 0),
}
"""How much each mode changes the latents' activations, by alpha. Sinks that the SAE was not trained on stay
as they are: their latents mean nothing."""

MODES = ("add", *CHANGES)
UNITS = ("raw", "max", "norm")

Latents = Mapping[int, float | Sequence[float] | Tensor]
"""Latent to alpha: one number, or one for each row of the batch."""


@dataclass
class Edit:
    """What is done to the residual stream after one layer."""

    layer: int
    values_RX: Tensor
    """float32. Mode ``add``: (R, D), what is added. Other modes: (R, K), the latents' alphas; NaN: left alone."""
    mode: str = "add"
    sae: SAE | None = None  # this and the next: of the other modes
    latents_K: Tensor | None = None
    _ready: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def rows(self) -> int:
        return self.values_RX.shape[0]

    @property
    def nothing(self) -> Tensor:
        """The values (X,) of a row that is not steered."""
        return torch.full_like(self.values_RX[0], 0.0 if self.mode == "add" else torch.nan)

    def change(self, hidden_BTD: Tensor) -> Tensor:
        """What to add to the residual stream: (B, T, D), or what broadcasts to it, in its dtype."""
        if self.mode == "add":
            return self._rows(hidden_BTD)
        assert self.sae is not None and self.latents_K is not None
        x_BTD = hidden_BTD.float()
        if self.sae.W_dec.device != x_BTD.device:  # a copy: the caller's SAE stays where it is
            self.sae = copy.deepcopy(self.sae).to(x_BTD.device)
        latents_K = self.latents_K.to(x_BTD.device)
        acts_BTK = self.sae.encode_latents(x_BTD, latents_K).float()
        values_B1K = self._rows(x_BTD)
        change_BTK = CHANGES[self.mode](acts_BTK, values_B1K)
        change_BTK.masked_fill_(self.sae.passed_through(x_BTD)[..., None] | values_B1K.isnan(), 0)
        return (change_BTK @ self.sae.W_dec[latents_K].float()).to(hidden_BTD.dtype)

    def _rows(self, like_BTD: Tensor) -> Tensor:
        """(B, 1, X) of the values, on the device and in the dtype of ``like_BTD``."""
        batch = like_BTD.shape[0]
        key = (like_BTD.device, like_BTD.dtype, batch)
        if key not in self._ready:
            if self.rows > 1 and batch % self.rows:
                raise InputError(
                    f"alphas for {self.rows} rows do not fit a batch of {batch}; give one alpha, or one per row"
                )
            # Beams and several answers per prompt are neighbours.
            spread_BX = self.values_RX.repeat_interleave(1 if self.rows == 1 else batch // self.rows, 0)
            self._ready[key] = spread_BX.to(like_BTD.device, like_BTD.dtype)[:, None, :]
        return self._ready[key]

    def keep(self, places_R: Tensor) -> None:
        """Go on with these rows, in this order; an edit of one row is for all of them."""
        if self.rows > 1:
            self.values_RX = self.values_RX[places_R.cpu()]
        self._ready.clear()


def make_edit(
    sae: SAE,
    latents: Latents,
    *,
    layer: int | None,
    mode: str = "add",
    units: str = "raw",
    statistics: Any = None,
) -> Edit:
    """The edit of ``steer``, which takes the same arguments. Raises InputError."""
    if layer is None:
        raise InputError("the SAE does not say which layer it belongs to; give layer=")
    if mode not in MODES:
        raise InputError(f"mode '{one_line(mode, 40)}' is not one of {', '.join(MODES)}")
    allowed = {"add": UNITS, "clamp": ("raw", "max")}.get(mode, ("raw",))
    if units not in allowed:
        raise InputError(f"units '{one_line(units, 40)}': with {mode} they are {', '.join(allowed)}")
    if units != "raw" and statistics is None:
        raise InputError(f"units '{units}' need statistics= of the SAE")
    if not latents:
        raise InputError("no latent is given; {latent: alpha} says which")
    for latent in latents:
        if isinstance(latent, bool) or not isinstance(latent, int) or not 0 <= latent < sae.d_sae:
            raise InputError(f"there is no latent {latent!r}; the SAE has 0 to {sae.d_sae - 1}")
    values_RK = _alphas(latents)
    latents_K = torch.tensor(list(latents), device=sae.W_dec.device)
    if units == "max":
        mean_max_K = statistics.mean_max_F.cpu().float()[latents_K.cpu()]
        if silent := [k for k, value in zip(latents, mean_max_K, strict=True) if not value > 0]:
            raise InputError(f"latent {silent[0]} fires nowhere, so it has no mean maximum to count in")
        values_RK = values_RK * mean_max_K
    if mode != "add":
        return Edit(layer, values_RK, mode, sae, latents_K)
    rows_KD = sae.W_dec.detach()[latents_K].float().cpu()
    if units == "norm":
        length_K1 = rows_KD.norm(dim=1, keepdim=True)
        if empty := [k for k, length in zip(latents, length_K1, strict=True) if not length > 0]:
            raise InputError(f"latent {empty[0]} has a decoder row of length 0, and so no direction")
        rows_KD = rows_KD / length_K1 * statistics.residual_norm
    return Edit(layer, values_RK @ rows_KD)


def _alphas(latents: Latents) -> Tensor:
    """(R, K) float32 of the alphas. Raises InputError."""
    columns = []
    for latent, alpha in latents.items():
        try:
            column = torch.as_tensor(alpha, dtype=torch.float32).cpu().reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            column = torch.empty(0)
        if not column.numel() or not column.isfinite().all():
            said = one_line(alpha, 60)
            raise InputError(
                f"alpha of latent {latent} is {said}; it must be one or more finite numbers (float32)"
            )
        columns.append(column)
    sizes = {column.numel() for column in columns} - {1}
    if len(sizes) > 1:
        raise InputError(f"alphas for different numbers of rows: {sorted(sizes)}")
    return torch.stack(torch.broadcast_tensors(*columns), 1)
