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
from fastzoo.results.figures import DEFINITIONS
from fastzoo.results.metrics import NextToken, Reconstruction, loss_figures
from fastzoo.saes.base import SAE


@dataclass
class _Measured:
    """One SAE while it is measured."""

    layer: int
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

    Per pack the model runs once for all layers and its own predictions, once per layer with zeros spliced in,
    and twice per SAE with its reconstruction (the second time sparing position 0). The latents of ``special``
    are sought; figures for special tokens are about the tokens that ``sequences`` mark as special.

    Raises ModelError: an SAE's width is not the model's. TrainingError: the model, or a figure, is NaN or
    infinite.
    """
    device = reader.device
    measured: dict[str, _Measured] = {}
    for name, (layer, sae) in saes.items():
        refuse_unfit(reader.model.config, name, layer, sae.d_in)
        sums, latents = Reconstruction(sae.d_in, sae.d_sae, device), SpecialLatents(sae.d_sae, device)
        measured[name] = _Measured(layer, sae.to(device), sums, NextToken(device), latents)
    check_head(reader, sequences[0])
    own = NextToken(device)
    zeros = {layer: NextToken(device) for layer in sorted({m.layer for m in measured.values()})}
    for pack in reader.packs(sequences):
        _measure_pack(reader, pack, measured.values(), own, zeros, special)
        progress(pack.input_ids.shape[1])
    found = {}
    for name, m in measured.items():
        metrics = m.reconstruction.figures() | loss_figures(own, m.spliced, zeros[m.layer])
        for metric, subsets in metrics.items():
            if not all(math.isfinite(figure["value"] or 0) for figure in subsets.values()):
                raise TrainingError(f"evaluation: {metric} of {name} is NaN or infinite")
        found[name] = Evaluation(metrics, m.special_latents.report(special.text))
    return found


def _measure_pack(
    reader: ResidualReader,
    pack: Pack,
    measured: Iterable[_Measured],
    own: NextToken,
    zeros: Mapping[int, NextToken],
    special: SpecialTokens,
) -> None:
    device = reader.device
    position_T, special_T = pack.column("position").to(device), pack.column("special").to(device)
    scored = _Scored(reader, pack, position_T, special_T)
    acts = reader.read(pack, list(zeros))
    for layer in zeros:
        _refuse_unless_finite(pack, acts[layer], f"layer {layer}: the model's activations")
    final_TD = reader.final_states(pack)
    _refuse_unless_finite(pack, final_TD, "the model's final states")
    scored.add(own, "all", final_TD)
    scored.add(own, "without_position_0", final_TD)
    first_T1 = (position_T == 0)[:, None]

    def edits(change: Callable[[Tensor], Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
        """A change of the stream everywhere, and everywhere but at position 0."""
        return {
            "all": change,
            "without_position_0": lambda x_TD: torch.where(first_T1, x_TD, change(x_TD).to(x_TD.dtype)),
        }

    for layer, sums in zeros.items():
        for subset, edit in edits(torch.zeros_like).items():
            scored.add(sums, subset, reader.final_states(pack, (layer, edit)))
    occurrences = Occurrences(pack.sequences, special, device)
    for m in measured:
        x_TD = acts[m.layer].float()
        acts_TF = m.sae.encode(x_TD)
        found_TD = m.sae.decode(acts_TF).float()
        m.reconstruction.add(
            x_TD, found_TD, acts_TF, lengths=pack.lengths, position_T=position_T, special_T=special_T
        )
        m.special_latents.add(acts_TF, occurrences)
        for subset, edit in edits(m.sae).items():
            scored.add(m.spliced, subset, reader.final_states(pack, (m.layer, edit)), final_TD)


def _refuse_unless_finite(pack: Pack, states_TD: Tensor, what: str) -> None:
    """Raise TrainingError with the row of the first dialogue whose states are not finite."""
    finite_T = torch.isfinite(states_TD).all(1).cpu()
    if not finite_T.all():
        row = int(pack.column("dialogue")[~finite_T][0])
        raise TrainingError(f"evaluation: {what} hold NaN or infinity in the held-out dialogue of row {row}")


class _Scored:
    """The tokens of a pack that are predicted within their own dialogue."""

    def __init__(self, reader: ResidualReader, pack: Pack, position_T: Tensor, special_T: Tensor) -> None:
        self.model, ids_T = reader.model, pack.input_ids[0]
        # The last token of a dialogue predicts nothing: what follows it is another dialogue.
        last = torch.zeros(len(ids_T), dtype=torch.bool)
        last[torch.tensor(pack.lengths).cumsum(0) - 1] = True
        self.rows = (~last).nonzero().squeeze(1).to(ids_T.device)
        self.targets = ids_T[self.rows + 1]
        self.special = special_T[self.rows]
        self.later = position_T[self.rows] > 0

    def add(
        self, sums: NextToken, subset: str, states_TD: Tensor, reference_TD: Tensor | None = None
    ) -> None:
        """Add the cross-entropy of the predictions of ``states_TD``, and their KL from those of ``reference_TD``.

        ``all`` also fills ``special``; ``without_position_0`` skips predictions from position 0.
        """
        states = [s[self.rows] for s in (states_TD, reference_TD) if s is not None]
        for part, (log_p, *reference) in log_probabilities(self.model, *states):
            ce = F.nll_loss(log_p, self.targets[part], reduction="none")
            kl = None
            for log_q in reference:
                kl = (log_q.exp() * (log_q - log_p)).sum(1)
            if subset == "all":
                sums.add("all", ce, kl, torch.ones_like(self.special[part]))
                sums.add("special", ce, kl, self.special[part])
            else:
                sums.add(subset, ce, kl, self.later[part])


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
