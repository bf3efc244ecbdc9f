"""Evaluation: every figure of all SAEs of a model, in one pass over held-out dialogues."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastzoo.core.errors import TrainingError
from fastzoo.core.progress import Progress
from fastzoo.data.sequences import TokenSequence
from fastzoo.data.special_tokens import SpecialTokens
from fastzoo.interpret.special_latents import Occurrences, SpecialLatents
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.head import check_head, log_probabilities
from fastzoo.lm.load import refuse_unfit
from fastzoo.lm.packing import Pack
from fastzoo.loading import Assembly
from fastzoo.results.figures import DEFINITIONS, LOSS
from fastzoo.results.metrics import NextToken, Reconstruction, loss_figures
from fastzoo.saes.base import SAE, Sinks

SINK_FACTOR, SINK_DIALOGUES = 10.0, 64
"""Where an SAE does not say what counts as a sink: above so many times the median norm in so many dialogues."""


@dataclass(frozen=True)
class _Place:
    """What SAEs of a layer share: that, what counts as a sink there, and predictions without any SAE."""

    layer: int
    sinks: Sinks
    own: NextToken
    zeros: NextToken


@dataclass
class _Measured:
    """One SAE while it is measured."""

    place: _Place
    sae: SAE
    reconstruction: Reconstruction
    spliced: NextToken
    special_latents: SpecialLatents


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one SAE, as plain data."""

    metrics: dict[str, Any]
    """``{figure: {subset: {"value", "tokens", ...}}}``, see ``results.figures``."""
    special_latents: dict[str, Any]
    """``{"definition", "tokens"}``, see ``interpret.special_latents``."""


@torch.inference_mode()
def evaluate(
    reader: ResidualReader,
    saes: Mapping[str, tuple[int, SAE]],
    sequences: Sequence[TokenSequence],
    special: SpecialTokens,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Evaluation]:
    """Measure SAEs (by name: layer and SAE) on dialogues, each a sequence of its own.

    Per pack the model runs once for all layers and its own predictions, twice per layer with zeros spliced in,
    and twice per SAE with its reconstruction (the second time sparing sinks). The latents of ``special``
    are sought; figures for special tokens are about the tokens that ``sequences`` mark as special.

    Raises ModelError: an SAE's width is not the model's. TrainingError: the model, or a figure, is NaN or
    infinite.
    """
    device = reader.device
    for name, (layer, sae) in saes.items():
        refuse_unfit(reader.model.config, name, layer, sae.d_in)
    check_head(reader, sequences[0])
    unknown = {layer for layer, sae in saes.values() if sae.sinks is None}
    estimated = _estimate_sinks(reader, sequences, unknown) if unknown else {}
    places: dict[tuple[int, Sinks], _Place] = {}
    measured: dict[str, _Measured] = {}
    for name, (layer, sae) in saes.items():
        sinks = sae.sinks or estimated[layer]
        place = places.setdefault((layer, sinks), _Place(layer, sinks, NextToken(device), NextToken(device)))
        sums, latents = Reconstruction(sae.d_in, sae.d_sae, device), SpecialLatents(sae.d_sae, device)
        measured[name] = _Measured(place, sae.to(device), sums, NextToken(device), latents)
    for pack in reader.packs(sequences):
        _measure_pack(reader, pack, measured.values(), places.values(), special)
        progress(pack.input_ids.shape[1])
    found = {}
    for name, m in measured.items():
        metrics = m.reconstruction.figures() | loss_figures(m.place.own, m.spliced, m.place.zeros)
        for metric, subsets in metrics.items():
            if not all(math.isfinite(figure["value"] or 0) for figure in subsets.values()):
                raise TrainingError(f"evaluation: {metric} of {name} is NaN or infinite")
        found[name] = Evaluation(metrics, m.special_latents.report(special.text))
    return found


def _estimate_sinks(
    reader: ResidualReader, sequences: Sequence[TokenSequence], layers: set[int]
) -> dict[int, Sinks]:
    """What counts as a sink at layers whose SAEs do not say, by the first of the dialogues."""
    norms: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for pack in reader.packs(sequences[:SINK_DIALOGUES]):
        for layer, acts_TD in reader.read(pack, layers).items():
            norms[layer].append(torch.linalg.vector_norm(acts_TD.float(), dim=1))
    return {layer: Sinks.of(torch.cat(found), SINK_FACTOR, skipped=False) for layer, found in norms.items()}


def _measure_pack(
    reader: ResidualReader,
    pack: Pack,
    measured: Iterable[_Measured],
    places: Iterable[_Place],
    special: SpecialTokens,
) -> None:
    device = reader.device
    position_T, special_T = pack.column("position").to(device), pack.column("special").to(device)
    acts = reader.read(pack, {place.layer for place in places})
    for layer, acts_TD in acts.items():
        _refuse_unless_finite(pack, acts_TD, f"layer {layer}: the model's activations")
    final_TD = reader.final_states(pack)
    _refuse_unless_finite(pack, final_TD, "the model's final states")
    scored = {}
    for place in places:
        sink_T = place.sinks.mask(acts[place.layer])
        scored[place.layer, place.sinks] = here = _Scored(reader, pack, sink_T, special_T)
        here.add(place.own, LOSS, final_TD)
        for subsets, edit in _edits(torch.zeros_like, sink_T).items():
            here.add(place.zeros, subsets, reader.final_states(pack, (place.layer, edit)))
    occurrences = Occurrences(pack.sequences, special, device)
    for m in measured:
        here = scored[m.place.layer, m.place.sinks]
        x_TD = acts[m.place.layer].float()
        acts_TF = m.sae.encode(x_TD, skip_sinks=True)
        found_TD = torch.where(m.sae.passed_through(x_TD)[:, None], x_TD, m.sae.decode(acts_TF).float())
        m.reconstruction.add(
            x_TD,
            found_TD,
            acts_TF,
            lengths=pack.lengths,
            position_T=position_T,
            special_T=special_T,
            sink_T=here.sink_T,
        )
        m.special_latents.add(acts_TF, occurrences)
        for subsets, edit in _edits(m.sae, here.sink_T).items():
            here.add(m.spliced, subsets, reader.final_states(pack, (m.place.layer, edit)), final_TD)


def _edits(
    change: Callable[[Tensor], Tensor], sink_T: Tensor
) -> dict[tuple[str, ...], Callable[[Tensor], Tensor]]:
    """A change of the stream everywhere, and everywhere but at sinks, by the subsets that it is for."""
    return {
        ("all", "special"): change,
        ("without_sinks", "special_without_sinks"): lambda x_TD: torch.where(
            sink_T[:, None], x_TD, change(x_TD).to(x_TD.dtype)
        ),
    }


def _refuse_unless_finite(pack: Pack, states_TD: Tensor, what: str) -> None:
    """Raise TrainingError with the row of the first dialogue whose states are not finite."""
    finite_T = torch.isfinite(states_TD).all(1).cpu()
    if not finite_T.all():
        row = int(pack.column("dialogue")[~finite_T][0])
        raise TrainingError(f"evaluation: {what} hold NaN or infinity in the held-out dialogue of row {row}")


class _Scored:
    """The tokens of a pack that are predicted within their own dialogue."""

    def __init__(self, reader: ResidualReader, pack: Pack, sink_T: Tensor, special_T: Tensor) -> None:
        self.model, ids_T, self.sink_T = reader.model, pack.input_ids[0], sink_T
        # The last token of a dialogue predicts nothing: what follows it is another dialogue.
        last = torch.zeros(len(ids_T), dtype=torch.bool)
        last[torch.tensor(pack.lengths).cumsum(0) - 1] = True
        self.rows = (~last).nonzero().squeeze(1).to(ids_T.device)
        self.targets = ids_T[self.rows + 1]
        special, usual = special_T[self.rows], ~sink_T[self.rows]
        self.masks = {
            "all": torch.ones_like(special),
            "without_sinks": usual,
            "special": special,
            "special_without_sinks": special & usual,
        }

    def add(
        self, sums: NextToken, subsets: Iterable[str], states_TD: Tensor, reference_TD: Tensor | None = None
    ) -> None:
        """Add, to each of the subsets, the cross-entropy of the predictions of ``states_TD``, and their KL
        from those of ``reference_TD``."""
        states = [s[self.rows] for s in (states_TD, reference_TD) if s is not None]
        for part, (log_p, *reference) in log_probabilities(self.model, *states):
            ce = F.nll_loss(log_p, self.targets[part], reduction="none")
            kl = None
            for log_q in reference:
                kl = (log_q.exp() * (log_q - log_p)).sum(1)
            for subset in subsets:
                sums.add(subset, ce, kl, self.masks[subset][part])


def evaluate_together(together: Assembly, dialogues: int) -> dict[str, Any]:
    """Measure SAEs of one model on so many dialogues; a report in the form of ``metrics.json``."""
    sequences, split = together.dialogues(dialogues)
    special = SpecialTokens.of(together.chat)
    with Progress("evaluating", split["tokens"]) as bar:
        found = evaluate(
            together.reader, together.saes, sequences, special, lambda n: bar.advance(n, "tokens")
        )
    return {
        "base_model": together.base_model,
        "split": split,
        "definitions": DEFINITIONS,
        "metrics": {name: e.metrics for name, e in found.items()},
        "special_latents": {name: e.special_latents for name, e in found.items()},
    }
