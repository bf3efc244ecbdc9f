"""How strongly and how often every latent fires, from one model pass for all SAEs.

Shape suffixes: T tokens of a pack, D residual width, F latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastzoo.core.errors import DataError
from fastzoo.data.sequences import TokenSequence
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.load import refuse_unfit
from fastzoo.lm.packing import packs
from fastzoo.saes.base import SAE


@dataclass(frozen=True)
class LatentStatistics:
    """Figures of one SAE over dialogues, without sinks (``sinks_of``).

    Tensors are (d_sae,), float64, on the CPU.
    """

    layer: int
    dialogues: int
    """How many dialogues have other tokens than sinks."""
    tokens: int
    residual_norm: float
    """Mean over tokens of the L2 norm of the residual stream after the SAE's layer."""
    mean_max_F: Tensor
    """Mean over dialogues of each latent's largest activation there; 0 where it does not fire."""
    highest_F: Tensor
    """Each latent's largest activation."""
    frequency_F: Tensor
    """Share of tokens on which each latent fires."""
    dialogue_frequency_F: Tensor
    """Share of dialogues in which each latent fires."""

    def of(self, latent: int) -> dict[str, float]:
        """One latent's figures by name."""
        keys = ("mean_max", "highest", "frequency", "dialogue_frequency")
        return {key: getattr(self, f"{key}_F")[latent].item() for key in keys}


def sinks_of(sae: SAE, x_TD: Tensor, position_T: Tensor) -> Tensor:
    """bool (T,): the tokens that figures of latents leave out.

    They are position 0 of each dialogue, and wherever else the SAE says that the activation x is an
    attention sink. Position 0 is a sink in most models; in all of them it sees nothing but itself, so that
    nearly all dialogues have the same activation there.
    """
    first_T = position_T == 0
    return first_T if sae.sinks is None else first_T | sae.sinks.mask(x_TD)


class StatisticsSums:
    """Sums of one SAE over packs of whole dialogues: a few numbers per latent."""

    def __init__(self, layer: int, d_sae: int, device: torch.device) -> None:
        self.layer, self.dialogues, self.tokens = layer, 0, 0
        self._norm = torch.zeros((), dtype=torch.float64, device=device)
        self._max_F = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self._highest_F, self._fired_F = self._max_F.clone(), self._max_F.clone()
        self._dialogues_F = self._max_F.clone()

    def add(self, x_TD: Tensor, acts_TF: Tensor, sink_T: Tensor, lengths: Sequence[int]) -> None:
        """Add a pack's residual stream and its activations, none of which is negative."""
        kept_T = ~sink_T
        self.dialogues += sum(bool(kept_L.any()) for kept_L in kept_T.cpu().split(list(lengths)))
        self.tokens += int(kept_T.sum())
        self._norm += (torch.linalg.vector_norm(x_TD.double(), dim=1) * kept_T).sum()
        for sink_L, acts_LF in zip(sink_T.split(list(lengths)), acts_TF.split(list(lengths)), strict=True):
            counted_LF = acts_LF.masked_fill(sink_L[:, None], 0)
            largest_F = counted_LF.amax(0).double()
            self._max_F += largest_F
            torch.maximum(self._highest_F, largest_F, out=self._highest_F)
            self._fired_F += (counted_LF > 0).sum(0)
            self._dialogues_F += largest_F > 0

    def result(self) -> LatentStatistics:
        """Raises DataError: there are only sinks."""
        if not self.dialogues:
            raise DataError("no dialogue has a token that counts: the first one, and attention sinks, do not")
        return LatentStatistics(
            self.layer,
            self.dialogues,
            self.tokens,
            self._norm.item() / self.tokens,
            (self._max_F / self.dialogues).cpu(),
            self._highest_F.cpu(),
            (self._fired_F / self.tokens).cpu(),
            (self._dialogues_F / self.dialogues).cpu(),
        )


Encoded = Iterator[tuple[str, Tensor, Tensor, Tensor]]
"""For each SAE: name, residual stream (T, D) at its layer in float32, latents (T, F), those of skipped sinks
being 0, and ``sinks_of`` (T,)."""


def encode_packs(
    reader: ResidualReader,
    saes: Mapping[str, tuple[int, SAE]],
    sequences: Sequence[TokenSequence],
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[list[TokenSequence], Encoded]]:
    """Dialogues pack by pack, each with the activations of all SAEs; the model runs once for all.

    Only one SAE's activations are held at a time.

    Raises:
        ModelError: an SAE does not fit the model.
        TrainingError: the model's activations hold NaN or infinity.
    """
    for name, (layer, sae) in saes.items():
        refuse_unfit(reader.model.config, name, layer, sae.d_in)
        sae.to(reader.device)

    def encoded(columns: Mapping[str, Tensor]) -> Encoded:
        for name, (layer, sae) in saes.items():
            x_TD = columns[f"L{layer}"].float()
            sink_T = sinks_of(sae, x_TD, columns["position"])
            yield name, x_TD, sae.encode(x_TD, skip_sinks=True), sink_T

    groups = list(packs(sequences, reader.pack_tokens))
    layers = {layer for layer, _ in saes.values()}
    for group, columns in zip(groups, reader.columns(groups, layers), strict=True):
        yield group, encoded(columns)
        progress(sum(map(len, group)))


def strongest(values_F: np.ndarray, count: int) -> list[int]:
    """The ``count`` latents with the largest values above 0, the largest first, of equal ones the lower number."""
    firing = np.flatnonzero(values_F > 0)
    return [int(k) for k in firing[np.argsort(-values_F[firing], kind="stable")[:count]]]


@torch.no_grad()
def statistics(
    reader: ResidualReader,
    saes: Mapping[str, tuple[int, SAE]],
    sequences: Sequence[TokenSequence],
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, LatentStatistics]:
    """Figures of SAEs over dialogues.

    Args:
        saes: layer and SAE by name.
        sequences: the dialogues, each a sequence of its own.
        progress: told how many tokens were just read.

    Raises as ``encode_packs`` does, and DataError: there are only sinks.
    """
    sums = {name: StatisticsSums(layer, sae.d_sae, reader.device) for name, (layer, sae) in saes.items()}
    for group, encoded in encode_packs(reader, saes, sequences, progress):
        for name, x_TD, acts_TF, sink_T in encoded:
            sums[name].add(x_TD, acts_TF, sink_T, [len(s) for s in group])
    return {name: s.result() for name, s in sums.items()}
