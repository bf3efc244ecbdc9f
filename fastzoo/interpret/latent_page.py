"""Everything that is known of one latent, at once: dialogues are read a single time, and their activations kept.

``fastzoo features`` reads dialogues for each question that it is asked. Somebody who looks at one latent after another
would wait for that each time; with the residual stream kept, a latent costs a product with its encoder row.

Shape suffixes: T tokens of all dialogues, D residual width, F latents, N latents that are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastzoo.core.errors import DataError
from fastzoo.data.sequences import TokenSequence, column
from fastzoo.data.special_tokens import SpecialTokens
from fastzoo.interpret.by_latent import part_of
from fastzoo.interpret.contexts import Firing
from fastzoo.interpret.output_score import refuse_missing
from fastzoo.interpret.statistics import LatentStatistics, StatisticsSums, sinks_of, strongest
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.packing import packs
from fastzoo.loading import Assembly

CONTEXTS = 8
"""Contexts, and tokens, of a page."""

TRIED = 8
"""How many times as many are looked at for contexts that differ: the same system prompt opens most dialogues."""

SIMILAR = 8
"""Latents with the nearest decoder rows that are named."""

BINS = 20
"""Of the histogram of activations."""

CHUNK = 2048
"""Tokens whose latents are computed at once, at least."""


class LayerStates:
    """The residual stream after one layer over dialogues, each of which went through the model alone."""

    def __init__(
        self,
        reader: ResidualReader,
        sequences: Sequence[TokenSequence],
        layer: int,
        progress: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        """``progress`` is told how many tokens were just read. Raises ModelError, TrainingError; DataError without
        dialogues."""
        if not sequences:
            raise DataError("there are no dialogues to look at")
        groups, parts = list(packs(sequences, reader.pack_tokens)), []
        for group, columns in zip(groups, reader.columns(groups, {layer}), strict=True):
            parts.append(columns[f"L{layer}"])
            progress(sum(map(len, group)))
        self._hold(layer, list(sequences), torch.cat(parts))

    def _hold(self, layer: int, sequences: list[TokenSequence], x_TD: Tensor) -> None:
        self.layer, self.sequences = layer, sequences
        self.x_TD = x_TD
        """In the model's dtype, on its device, in the order of ``sequences``."""
        self.lengths = [len(sequence) for sequence in sequences]
        self.ids_T, self.special_T = column(sequences, "ids"), column(sequences, "special")
        self.position_T = column(sequences, "position")

    @classmethod
    def joined(cls, parts: Sequence[LayerStates]) -> LayerStates:
        """What was read in parts, between which others used the model."""
        found = cls.__new__(cls)
        sequences = [sequence for part in parts for sequence in part.sequences]
        found._hold(parts[0].layer, sequences, torch.cat([part.x_TD for part in parts]))
        return found


class LatentPages:
    """Pages on the latents of one SAE.

    Args:
        assembly: the SAE, alone, with its model.
        states: of its layer.
        split: what the dialogues are (as ``Assembly.dialogues`` says).
    """

    def __init__(self, assembly: Assembly, states: LayerStates, split: Mapping[str, Any]) -> None:
        ((self.name, (self.layer, self.sae)),) = assembly.saes.items()
        self._assembly, self._states, self.split = assembly, states, split
        self.sae.to(states.x_TD.device)

    @cached_property
    def _sink_T(self) -> np.ndarray:
        x_TD = self._states.x_TD
        position_T = torch.from_numpy(self._states.position_T).to(x_TD.device)
        parts = zip(x_TD.split(CHUNK), position_T.split(CHUNK), strict=True)
        found: np.ndarray = torch.cat([sinks_of(self.sae, x.float(), p) for x, p in parts]).cpu().numpy()
        return found

    @cached_property
    @torch.no_grad()
    def figures(self) -> LatentStatistics:
        """Of all latents. Raises DataError: there are only sinks."""
        sums = StatisticsSums(self.layer, self.sae.d_sae, self._states.x_TD.device)
        sink_T = torch.from_numpy(self._sink_T).to(self._states.x_TD.device)
        start, lengths = 0, list(self._states.lengths)
        while lengths:
            taken = [lengths.pop(0)]
            while lengths and sum(taken) < CHUNK:
                taken.append(lengths.pop(0))
            part = slice(start, start + sum(taken))
            x_TD = self._states.x_TD[part].float()
            sums.add(x_TD, self.sae.encode(x_TD, skip_sinks=True), sink_T[part], taken)
            start = part.stop
        return sums.result()

    @torch.no_grad()
    def activations(self, latent: int) -> np.ndarray:
        """(T,) float32 of one latent on all tokens; 0 on sinks that the SAE skips. Raises InputError: no such latent."""
        refuse_missing([latent], self.sae.d_sae, self.name)
        which_1 = torch.tensor([latent], device=self._states.x_TD.device)
        parts = []
        for x_TD in self._states.x_TD.split(CHUNK):
            x_TD = x_TD.float()
            act_T = self.sae.encode_latents(x_TD, which_1)[:, 0].float()
            parts.append(act_T.masked_fill(self.sae.passed_through(x_TD), 0))
        found: np.ndarray = torch.cat(parts).cpu().numpy()
        return found

    def page(self, latent: int, top: int = CONTEXTS) -> dict[str, Any]:
        """What is known of a latent, as plain data: what ``by_latent.of_latents`` says of it, and ``histogram`` (of its
        activations without sinks), ``special`` (on how many of each special token it fires) and ``similar`` (cosines
        of decoder rows). Raises InputError: no such latent."""
        act_T, texts = self.activations(latent), self._assembly.texts
        ends = np.cumsum(self._states.lengths)[:-1]
        gathered = Firing(TRIED * top)
        parts = (np.split(values, ends) for values in (act_T, self._sink_T))
        for sequence, acts, sinks in zip(self._states.sequences, *parts, strict=True):
            gathered.add(sequence, acts, sinks)
        firing = gathered.report(texts, self._occurrences)
        firing["contexts"], firing["tokens"] = _unlike(firing["contexts"])[:top], firing["tokens"][:top]
        found = part_of(self._assembly, self.name, self.figures, {latent: firing})
        (entry,) = found.pop("latents")
        usual_T = act_T[~self._sink_T]
        return {
            "sae": self.name,
            **found,
            **entry,
            "histogram": histogram(usual_T[usual_T > 0]),
            "special": self._special(act_T),
            "similar": self._similar(latent),
        }

    @cached_property
    def _occurrences(self) -> Counter[int]:
        return Counter(self._states.ids_T[~self._sink_T].tolist())

    @cached_property
    def _special_T(self) -> np.ndarray:
        """Which tokens are special ones, or role words, and no sinks."""
        special, states = SpecialTokens.of(self._assembly.chat), self._states
        counted: np.ndarray = special.among(states.ids_T, states.position_T, states.special_T) & ~self._sink_T
        return counted

    def _special(self, act_T: np.ndarray) -> list[dict[str, Any]]:
        """The special tokens, the one with the largest mean activation first."""
        found = []
        for number in np.unique(self._states.ids_T[self._special_T]).tolist():
            acts = act_T[self._special_T & (self._states.ids_T == number)]
            fired, mean = int((acts > 0).sum()), float(acts.mean())
            entry = {"token_id": number, "token": self._assembly.texts(number)}
            found.append(entry | {"occurrences": len(acts), "fired": fired, "mean": mean})
        return sorted(found, key=lambda entry: (-entry["mean"], entry["token_id"]))

    @torch.no_grad()
    def on_special_tokens(self, top: int) -> list[dict[str, Any]]:
        """For each special token, the most frequent first, the latents with the largest mean activation on it (over all
        places where it is no sink): ``token``, ``occurrences`` and ``latents``, each with its ``mean``."""
        found, states = [], self._states
        for number in np.unique(states.ids_T[self._special_T]).tolist():
            places = np.flatnonzero(self._special_T & (states.ids_T == number))
            sum_F = torch.zeros(self.sae.d_sae, dtype=torch.float64, device=states.x_TD.device)
            for part in np.array_split(places, len(places) // CHUNK + 1):
                x_TD = states.x_TD[torch.from_numpy(part).to(states.x_TD.device)].float()
                sum_F += self.sae.encode(x_TD, skip_sinks=True).double().sum(0)
            mean_F = (sum_F / len(places)).cpu().numpy()
            latents = [{"latent": k, "mean": float(mean_F[k])} for k in strongest(mean_F, top)]
            entry = {"token_id": number, "token": self._assembly.texts(number), "occurrences": len(places)}
            found.append(entry | {"latents": latents})
        return sorted(found, key=lambda entry: (-entry["occurrences"], entry["token_id"]))

    @cached_property
    def _directions_FD(self) -> Tensor:
        W_dec_FD = self.sae.W_dec.detach().float()
        return W_dec_FD / W_dec_FD.norm(dim=1, keepdim=True).clamp(min=1e-12)

    def _similar(self, latent: int) -> list[dict[str, Any]]:
        """The latents whose decoder rows point most nearly the same way."""
        cosine_F = self._directions_FD @ self._directions_FD[latent]
        cosine_F[latent] = -2
        values_N, latents_N = cosine_F.topk(min(SIMILAR, len(cosine_F) - 1))
        pairs = zip(latents_N.tolist(), values_N.tolist(), strict=True)
        return [{"latent": number, "cosine": value} for number, value in pairs]


def _unlike(contexts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The contexts without those that read as one before."""
    found = {tuple(x["token"] for x in context["tokens"]): context for context in reversed(contexts)}
    return sorted(found.values(), key=lambda context: contexts.index(context))


def histogram(values: np.ndarray) -> dict[str, Any]:
    """``edges`` (BINS + 1) from 0 to the largest value, and the ``counts`` between them; both empty without values."""
    if not len(values):
        return {"edges": [], "counts": []}
    counts, edges = np.histogram(values, BINS, (0.0, float(values.max())))
    return {"edges": edges.tolist(), "counts": counts.tolist()}
