"""Evaluation: every figure of all SAEs of a model, at the cost of the passes that no figure can do without."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastzoo.core.errors import TrainingError
from fastzoo.core.progress import Progress
from fastzoo.data.sequences import TokenSequence
from fastzoo.data.special_tokens import SpecialTokens
from fastzoo.interpret.special_latents import Occurrences, SpecialLatents
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.head import check_head, head_weight
from fastzoo.lm.load import refuse_unfit
from fastzoo.lm.packing import Pack
from fastzoo.loading import Assembly
from fastzoo.results.figures import DEFINITIONS
from fastzoo.results.metrics import Activations, DialogueSums, Reconstruction, Tokens, loss_figures
from fastzoo.results.splicing import SplicedPasses
from fastzoo.saes.base import SAE, Sinks

SINK_FACTOR, SINK_DIALOGUES = 10.0, 16
"""Where an SAE does not say what counts as a sink: above so many times the median norm in so many dialogues."""


@dataclass(frozen=True)
class _Place:
    """What SAEs of a layer share: that, what counts as a sink there, and predictions without any SAE."""

    layer: int
    sinks: Sinks
    activations: Activations
    tokens: DialogueSums = field(default_factory=DialogueSums)
    own: DialogueSums = field(default_factory=DialogueSums)
    zeros: DialogueSums = field(default_factory=DialogueSums)

    @property
    def key(self) -> tuple[int, float]:
        """The same where the layer and its sinks are, whether an SAE was trained on these or not."""
        return self.layer, self.sinks.norm


@dataclass
class _Measured:
    """One SAE while it is measured."""

    place: _Place
    sae: SAE
    reconstruction: Reconstruction
    special_latents: SpecialLatents
    spliced: DialogueSums = field(default_factory=DialogueSums)
    kl: DialogueSums = field(default_factory=DialogueSums)


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one SAE."""

    metrics: dict[str, Any]
    """``{figure: {subset: {"value", "tokens", ...}}}``, see ``results.figures``; plain data."""
    special_latents: dict[str, Any]
    """``{"definition", "tokens"}``, see ``interpret.special_latents``; plain data."""
    frequency_F: Tensor
    """(d_sae,) float64, on the CPU: the share of tokens, without sinks, on which each latent fires."""

    def log_sparsity(self) -> Tensor:
        """(d_sae,) float32: its log10, at least -10. Its powers of ten sum to L0 without sinks."""
        return torch.log10(self.frequency_F.clamp_min(1e-10)).float()


@torch.inference_mode()
def evaluate(
    reader: ResidualReader,
    saes: Mapping[str, tuple[int, SAE]],
    sequences: Sequence[TokenSequence],
    special: SpecialTokens,
    *,
    loss_dialogues: int | None = None,
    shown: bool = False,
) -> dict[str, Evaluation]:
    """Measure SAEs (by name: layer and SAE) on dialogues, each a sequence of its own.

    The model runs once over every dialogue, up to the last layer with an SAE. In ``loss_dialogues`` of them
    it runs to its end, and again from each SAE's layer on, with the reconstruction in place of the residual
    stream and, once per layer, with zeros; a second time, sparing sinks, where that is something else. The
    latents of ``special`` are sought; figures for special tokens are about the tokens that ``sequences`` mark
    as special.

    Args:
        loss_dialogues: for how many of the dialogues, spread evenly, cross-entropies and KL are measured;
            None: for all.
        shown: whether to show progress.

    Raises ModelError: an SAE's width is not the model's. TrainingError: the model, or a figure, is NaN or
    infinite.
    """
    for name, (layer, sae) in saes.items():
        refuse_unfit(reader.model.config, name, layer, sae.d_in)
    check_head(reader.model, torch.from_numpy(sequences[0].ids[:64]).to(reader.device))
    chosen = spread(len(sequences), loss_dialogues)
    others = sorted(set(range(len(sequences))).difference(chosen))
    parts = [(True, [sequences[i] for i in chosen]), (False, [sequences[i] for i in others])]
    unknown = {layer for layer, sae in saes.values() if sae.sinks is None}
    estimated = _estimate_sinks(reader, sequences, unknown) if unknown else {}
    work = _Work(reader, saes, estimated, special)
    total, done = sum(work.cost(to_end) * sum(map(len, part)) for to_end, part in parts), 0
    with reader.attention_kept(), Progress("evaluating", total, shown=shown) as work.bar:
        for to_end, part in parts:
            for pack in reader.packs(part):
                work.measure(pack, to_end=to_end)
                done += len(pack.sequences)
                work.complete(pack, to_end, f"{done} of {len(sequences)} dialogues")
    return work.found()


def spread(count: int, wanted: int | None) -> list[int]:
    """So many of ``count`` places (None: all of them), as evenly spread as can be."""
    wanted = count if wanted is None else min(wanted, count)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def _estimate_sinks(
    reader: ResidualReader, sequences: Sequence[TokenSequence], layers: set[int]
) -> dict[int, Sinks]:
    """What counts as a sink at layers whose SAEs do not say, by the first of the dialogues."""
    norms: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for pack in reader.packs(sequences[:SINK_DIALOGUES]):
        for layer, acts_TD in reader.read(pack, layers).items():
            norms[layer].append(torch.linalg.vector_norm(acts_TD.float(), dim=1))
    return {layer: Sinks.of(torch.cat(found), SINK_FACTOR, skipped=False) for layer, found in norms.items()}


class _Here:
    """A pack at a place."""

    def __init__(self, pack: Pack, place: _Place, acts_TD: Tensor, exact_TD: Tensor) -> None:
        self.x_TD, self.exact_TD, device = acts_TD.float(), exact_TD, acts_TD.device
        self.sink_T = place.sinks.mask(self.x_TD)
        self.sink_rows = self.sink_T.nonzero().squeeze(1)
        self.has_sinks = len(self.sink_rows) > 0
        position_T, special_T = pack.column("position").to(device), pack.column("special").to(device)
        self.tokens = Tokens(pack.lengths, position_T, special_T, self.sink_T)
        place.activations.add(exact_TD, self.tokens)

    def streams(self, changed_TD: Tensor, *, spares: bool = False) -> list[Tensor]:
        """Changed everywhere and, unless that ``spares`` sinks already, everywhere but at sinks."""
        if spares or not self.has_sinks:
            return [changed_TD]
        return [changed_TD, torch.where(self.sink_T[:, None], self.x_TD, changed_TD)]


class _Work:
    """What is measured of all SAEs, pack by pack."""

    bar: Progress

    def __init__(
        self,
        reader: ResidualReader,
        saes: Mapping[str, tuple[int, SAE]],
        estimated: Mapping[int, Sinks],
        special: SpecialTokens,
    ) -> None:
        self.reader, self.special, device = reader, special, reader.device
        self.places: dict[tuple[int, float], _Place] = {}
        self.measured: dict[str, _Measured] = {}
        for name, (layer, sae) in saes.items():
            place = _Place(layer, sae.sinks or estimated[layer], Activations(sae.d_in, device))
            place = self.places.setdefault(place.key, place)
            sums, latents = Reconstruction(sae.d_in, sae.d_sae, device), SpecialLatents(sae.d_sae, device)
            self.measured[name] = _Measured(place, sae.to(device), sums, latents)
        self._layers = {place.layer for place in self.places.values()}
        self._costs(sum(p.numel() for p in reader.layers.parameters()) // len(reader.layers))
        self._advanced = 0

    def measure(self, pack: Pack, *, to_end: bool) -> None:
        """Add a pack to all sums; to those of cross-entropy and KL only if it runs ``to_end``."""
        final_TD = passes = None
        if to_end:
            acts, final_TD = self.reader.read_to_end(pack, self._layers)
            self._advance(self._cost[False] * pack.input_ids.shape[1])
        else:
            acts = self.reader.read(pack, self._layers)
        for layer, acts_TD in acts.items():
            _refuse_unless_finite(pack, acts_TD, f"layer {layer}: the model's activations")
        if final_TD is not None:
            _refuse_unless_finite(pack, final_TD, "the model's final states")
            passes = SplicedPasses(self.reader, pack, final_TD)
        exact = {layer: acts_TD.double() for layer, acts_TD in acts.items()}
        here = {key: _Here(pack, p, acts[p.layer], exact[p.layer]) for key, p in self.places.items()}
        occurrences = {
            key: Occurrences(pack.sequences, self.special, self.reader.device, here[key].sink_T)
            for key in self.places
        }
        for m in self.measured.values():
            self._measure_sae(m, here[m.place.key], occurrences[m.place.key], passes)
        if passes is None:
            return
        for key, place in self.places.items():
            streams = here[key].streams(torch.zeros_like(acts[place.layer]))
            passes.add(place.layer, streams, here[key].tokens, place.zeros)
            self._advance(self._pass_cost[place.layer] * len(streams) * len(here[key].x_TD))
        passes.finish()
        for key, place in self.places.items():
            passes.add_own(here[key].tokens, place.own, place.tokens)

    def _measure_sae(
        self, m: _Measured, here: _Here, occurrences: Occurrences, passes: SplicedPasses | None
    ) -> None:
        passes_through = m.sae.skips_sinks and here.has_sinks
        acts_TF = m.sae.encode(here.x_TD)
        if passes_through:  # not by ``skip_sinks``: that would look for them again, for every SAE
            acts_TF[here.sink_rows] = 0
        found_TD = m.sae.decode(acts_TF).float()
        if passes_through:
            found_TD[here.sink_rows] = here.x_TD[here.sink_rows]
        m.reconstruction.add(here.exact_TD, found_TD, acts_TF, here.tokens)
        m.special_latents.add(acts_TF, occurrences)
        if passes is not None:
            streams = here.streams(found_TD, spares=m.sae.skips_sinks)
            passes.add(m.place.layer, streams, here.tokens, m.spliced, m.kl)
            self._advance(self._pass_cost[m.place.layer] * len(streams) * len(here.x_TD))

    def found(self) -> dict[str, Evaluation]:
        """What was measured of each SAE. Raises TrainingError: a figure is NaN or infinite."""
        found = {}
        for name, m in self.measured.items():
            place = m.place
            metrics = m.reconstruction.figures(place.activations)
            metrics |= loss_figures(place.tokens, place.own, m.spliced, place.zeros, m.kl)
            for metric, subsets in metrics.items():
                if not all(math.isfinite(figure["value"] or 0) for figure in subsets.values()):
                    raise TrainingError(f"evaluation: {metric} of {name} is NaN or infinite")
            frequency_F = m.reconstruction.frequency(place.activations).cpu()
            found[name] = Evaluation(metrics, m.special_latents.report(self.special.text), frequency_F)
        return found

    def _costs(self, layer: int) -> None:
        """How long a token takes, about: by the multiplications of layers, SAEs and heads."""
        layers = len(self.reader.layers)
        head = head_weight(self.reader.model).numel()
        saes = sum(2 * m.sae.W_enc.numel() for m in self.measured.values())
        self._pass_cost = {i: layer * (layers - 1 - i) + head for i in self._layers}
        # Whether a pack has sinks is not known yet: nearly every one has, except with toy models.
        each = [(m.place.layer, 1 if m.sae.skips_sinks else 2) for m in self.measured.values()]
        each += [(place.layer, 2) for place in self.places.values()]
        spliced = sum(self._pass_cost[i] * count for i, count in each)
        self._cost = {
            True: layer * layers + head + saes + spliced,
            False: layer * (1 + max(self._layers)) + saes,
        }

    def cost(self, to_end: bool) -> int:
        """Of a token, in the units of the bar."""
        return self._cost[to_end]

    def _advance(self, cost: int) -> None:
        self._advanced += cost
        self.bar.advance(cost)

    def complete(self, pack: Pack, to_end: bool, note: str) -> None:
        """A pack is done: the bar counts what ``_advance`` was not told of."""
        self.bar.advance(self._cost[to_end] * pack.input_ids.shape[1] - self._advanced, note)
        self._advanced = 0


def _refuse_unless_finite(pack: Pack, states_TD: Tensor, what: str) -> None:
    """Raise TrainingError with the row of the first dialogue whose states are not finite."""
    finite_T = torch.isfinite(states_TD).all(1).cpu()
    if not finite_T.all():
        row = int(pack.column("dialogue")[~finite_T][0])
        raise TrainingError(f"evaluation: {what} hold NaN or infinity in the held-out dialogue of row {row}")


def evaluate_together(
    together: Assembly, dialogues: int, loss_dialogues: int | None = None
) -> dict[str, Any]:
    """Measure SAEs of one model on so many dialogues; a report in the form of ``metrics.json``."""
    sequences, split = together.dialogues(dialogues)
    special = SpecialTokens.of(together.chat)
    found = evaluate(
        together.reader, together.saes, sequences, special, loss_dialogues=loss_dialogues, shown=True
    )
    return {
        "base_model": together.base_model,
        "split": split,
        "definitions": DEFINITIONS,
        "metrics": {name: e.metrics for name, e in found.items()},
        "special_latents": {name: e.special_latents for name, e in found.items()},
    }
