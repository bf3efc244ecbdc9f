"""Reports on latents: where chosen ones fire, what they write, and rankings of which to steer with.

Plain data for all SAEs of a model, as ``fastzoo features --latent`` and ``--rank`` show it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fastzoo.core.errors import InputError
from fastzoo.core.progress import Progress
from fastzoo.data.sequences import TokenSequence
from fastzoo.data.special_tokens import answer_starts
from fastzoo.interpret.contexts import Firing
from fastzoo.interpret.output_score import DEFINITION as OUTPUT_SCORE
from fastzoo.interpret.output_score import output_scores, refuse_missing
from fastzoo.interpret.statistics import LatentStatistics, StatisticsSums, encode_packs, statistics, strongest
from fastzoo.lm.logit_lens import lens_tokens
from fastzoo.loading import Assembly

WRITTEN = 10
"""Tokens of the logit lens that are reported, at either end."""

FIGURES = (
    "of a latent, position 0 and attention sinks left out: mean_max, its largest activation in a dialogue, "
    "averaged over all dialogues; highest, the largest of all; frequency and dialogue_frequency, the shares of "
    "tokens and of dialogues that it fires on. writes: the tokens whose logits its decoder row raises "
    "(top) and lowers (bottom) most, through the final norm's weights and the unembedding"
)

FIRING = (
    "contexts: the dialogues with its largest activations, one place of each. tokens: those with the "
    "largest share of the sum of its activations; mean is over all their occurrences. sinks: the "
    "tokens that are left out, on how many of them it fires, and its mean activation there"
)


@torch.no_grad()
def of_latents(assembly: Assembly, latents: Sequence[int], *, dialogues: int, top: int) -> dict[str, Any]:
    """Where latents fire, how often and how strongly, and what they write. Raises InputError: a latent
    that one of the SAEs does not have."""
    _refuse_latents(assembly, latents)
    sequences, split = assembly.dialogues(dialogues, "interpretability")
    reader, saes = assembly.reader, assembly.saes
    sums = {name: StatisticsSums(layer, sae.d_sae, reader.device) for name, (layer, sae) in saes.items()}
    firing = {name: [Firing(top) for _ in latents] for name in saes}
    occurrences: dict[str, Counter[int]] = {name: Counter() for name in saes}
    columns = torch.tensor(latents, device=reader.device)
    with Progress("reading dialogues", split["tokens"]) as bar:
        for group, encoded in encode_packs(reader, saes, sequences, lambda n: bar.advance(n, "tokens")):
            lengths = [len(s) for s in group]
            for name, x_TD, acts_TF, sink_T in encoded:
                sums[name].add(x_TD, acts_TF, sink_T, lengths)
                chosen = acts_TF[:, columns].float().cpu().split(lengths)
                sinks = sink_T.cpu().split(lengths)
                for sequence, part, sink_L in zip(group, chosen, sinks, strict=True):
                    occurrences[name].update(sequence.ids[~sink_L.numpy()].tolist())
                    for gathered, acts_T in zip(firing[name], part.numpy().T, strict=True):
                        gathered.add(sequence, acts_T, sink_L.numpy())
    found = {}
    for name in saes:
        contexts = (gathered.report(assembly.texts, occurrences[name]) for gathered in firing[name])
        known = dict(zip(latents, contexts, strict=True))
        found[name] = part_of(assembly, name, sums[name].result(), known)
    return {
        "base_model": assembly.base_model,
        "split": split,
        "definition": f"{FIGURES}. {FIRING}",
        "saes": found,
    }


def rank_by_activation(
    assembly: Assembly, *, latents: Sequence[int] = (), dialogues: int, top: int
) -> dict[str, Any]:
    """The ``top`` of ``latents`` (by default all) by mean maximum activation, with what they write.

    Raises InputError: a latent that one of the SAEs does not have.
    """
    known, _, about = _measured(assembly, latents, dialogues)
    ranked = {}
    for name, figures in known.items():
        chosen = list(latents) or strongest(figures.mean_max_F.numpy(), top)
        best = sorted(chosen, key=lambda k: (-figures.mean_max_F[k].item(), k))[:top]
        ranked[name] = part_of(assembly, name, figures, {k: {} for k in best}, candidates=len(chosen))
    return about | {"rank": "activation", "definition": FIGURES, "saes": ranked}


def rank_by_output(
    assembly: Assembly,
    *,
    latents: Sequence[int] = (),
    candidates: int,
    alpha: float,
    dialogues: int,
    top: int,
    prompts: int = 16,
) -> dict[str, Any]:
    """The ``top`` latents by output score, with what they write.

    Args:
        latents: only these; by default the ``candidates`` with the largest mean maximum activation.
        alpha: in mean residual norms.
        prompts: how many places where an answer begins the scores are measured on, at most.

    Raises InputError: a latent that one of the SAEs does not have; no answers in the dialogues.
    """
    if not np.isfinite(alpha):
        raise InputError(f"--alpha: {alpha} is not a finite number of residual norms")
    known, sequences, about = _measured(assembly, latents, dialogues)
    starts = answer_starts(assembly.chat, sequences, prompts)
    chosen = {name: list(latents) or strongest(x.mean_max_F.numpy(), candidates) for name, x in known.items()}
    ranked = {}
    with Progress("steering", len(starts) * sum(map(len, chosen.values()))) as bar:
        for name, figures in known.items():
            layer, sae = assembly.saes[name]
            scores = output_scores(
                assembly.reader,
                sae,
                layer,
                chosen[name],
                starts,
                alpha,
                residual_norm=figures.residual_norm,
                vocabulary=assembly.vocabulary,
                progress=lambda n: bar.advance(n, "prompts"),
            )
            best = sorted(zip(scores, chosen[name], strict=True), key=lambda x: (-x[0], x[1]))[:top]
            scored = {k: {"output_score": score} for score, k in best}
            ranked[name] = part_of(assembly, name, figures, scored, candidates=len(scores))
    definition = f"{OUTPUT_SCORE}. {FIGURES}"
    return about | {
        "rank": "output",
        "definition": definition,
        "saes": ranked,
        "alpha": alpha,
        "prompts": len(starts),
    }


def _refuse_latents(assembly: Assembly, latents: Sequence[int]) -> None:
    if len(set(latents)) < len(latents):
        raise InputError("--latent: the same latent is given twice")
    for name, (_, sae) in assembly.saes.items():
        refuse_missing(latents, sae.d_sae, name)


def _measured(
    assembly: Assembly, latents: Sequence[int], dialogues: int
) -> tuple[dict[str, LatentStatistics], list[TokenSequence], dict[str, Any]]:
    """Figures of each SAE, the dialogues that they are about, and what a report says of these."""
    _refuse_latents(assembly, latents)
    sequences, split = assembly.dialogues(dialogues, "interpretability")
    with Progress("reading dialogues", split["tokens"]) as bar:
        known = statistics(assembly.reader, assembly.saes, sequences, lambda n: bar.advance(n, "tokens"))
    return known, sequences, {"base_model": assembly.base_model, "split": split}


def part_of(
    assembly: Assembly,
    name: str,
    figures: LatentStatistics,
    latents: Mapping[int, Mapping[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    """One SAE's part of a report: ``latents`` in order, with what else is known about each of them."""
    writes = _written(assembly, name, list(latents)) if latents else []
    return {
        **{key: getattr(figures, key) for key in ("layer", "dialogues", "tokens", "residual_norm")},
        **more,
        "latents": [
            {"latent": k, **figures.of(k), **known, "writes": written}
            for (k, known), written in zip(latents.items(), writes, strict=True)
        ],
    }


def _written(assembly: Assembly, name: str, latents: Sequence[int]) -> list[dict[str, list[dict[str, Any]]]]:
    """For each latent of an SAE the tokens it raises and lowers most, by the logit lens."""
    found: list[dict[str, list[dict[str, Any]]]] = [{} for _ in latents]
    d_LD, vocabulary = assembly.saes[name][1].W_dec[list(latents)], assembly.vocabulary
    count = min(WRITTEN, vocabulary)
    for end, largest in (("top", True), ("bottom", False)):
        values, ids = lens_tokens(assembly.reader.model, d_LD, count, vocabulary=vocabulary, largest=largest)
        for entry, logits, numbers in zip(found, values.tolist(), ids.tolist(), strict=True):
            entry[end] = [
                {"token_id": number, "token": assembly.texts(number), "logit": logit}
                for number, logit in zip(numbers, logits, strict=True)
            ]
    return found
