"""Where latents fire, how strongly and how often, what they write, and which to steer with.

Reports are plain data for all SAEs of a model (``fastzoo features --latent``, ``--rank``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastzoo.core.errors import InputError
from fastzoo.core.progress import Progress
from fastzoo.core.text import one_line
from fastzoo.data.sequences import TokenSequence
from fastzoo.data.special_tokens import Texts, answer_starts
from fastzoo.interpret.by_token import Report
from fastzoo.interpret.contexts import Firing, count_tokens
from fastzoo.interpret.output_score import DEFINITION as OUTPUT_SCORE
from fastzoo.interpret.output_score import output_scores, refuse_missing
from fastzoo.interpret.statistics import LatentStatistics, StatisticsSums, encode_packs, statistics
from fastzoo.lm.logit_lens import lens_tokens
from fastzoo.loading import Assembly

WRITTEN = 10
"""Tokens of the logit lens that are reported, on either end."""

PROMPTS = 16
"""Beginnings of answers that an output score is measured on."""

RANKINGS = ("activation", "output")

FIGURES = (
    "of a latent, position 0 left out: mean_max, its largest activation in a dialogue, averaged over "
    "all dialogues; highest, the largest of all; frequency and dialogue_frequency, the shares of "
    "tokens and of dialogues that it fires on. writes: the tokens whose logits its decoder row raises "
    "(top) and lowers (bottom) most, through the final norm's weights and the unembedding"
)

FIRING = (
    "contexts: the dialogues with its largest activations, one place of each. tokens: those with the "
    "largest share of the sum of its activations; mean is over all their occurrences. position_0: the "
    "dialogues it fires in at that place, and its mean activation there over all dialogues"
)


@torch.no_grad()
def of_latents(assembly: Assembly, latents: Sequence[int], *, dialogues: int, top: int) -> Report:
    """Where latents fire, how often and how strongly, and what they write.

    Raises:
        InputError: a latent that one of the SAEs does not have.
    """
    _refuse_latents(assembly, latents)
    sequences, split = assembly.dialogues(dialogues)
    reader, saes = assembly.reader, assembly.saes
    sums = {
        name: StatisticsSums(layer, sae.d_sae, reader.device) for name, (layer, sae) in saes.items()
    }
    firing = {name: [Firing(top) for _ in latents] for name in saes}
    columns = torch.tensor(latents, device=reader.device)
    with Progress("reading dialogues", split["tokens"]) as bar:
        passed = encode_packs(reader, saes, sequences, lambda n: bar.advance(n, "tokens"))
        for group, encoded in passed:
            lengths = [len(s) for s in group]
            for name, x_TD, acts_TF in encoded:
                sums[name].add(x_TD, acts_TF, lengths)
                chosen = acts_TF[:, columns].float().cpu().split(lengths)
                for sequence, part in zip(group, chosen, strict=True):
                    for gathered, acts_T in zip(firing[name], part.numpy().T, strict=True):
                        gathered.add(sequence, acts_T)
    texts, occurrences = Texts(assembly.chat), count_tokens(sequences)
    found = {}
    for name, (_, sae) in saes.items():
        figures = sums[name].result()
        writes = _written(assembly, sae.W_dec[list(latents)])
        found[name] = {
            **_about(figures),
            "latents": [
                {
                    "latent": latent,
                    **_figures(figures, latent),
                    **gathered.report(texts, occurrences),
                    "writes": written,
                }
                for latent, gathered, written in zip(latents, firing[name], writes, strict=True)
            ],
        }
    return {
        "base_model": assembly.base_model,
        "split": split,
        "definition": f"{FIGURES}. {FIRING}",
        "saes": found,
    }


def _refuse_latents(assembly: Assembly, latents: Sequence[int]) -> None:
    if len(set(latents)) < len(latents):
        raise InputError("--latent: the same latent is given twice")
    for name, (_, sae) in assembly.saes.items():
        refuse_missing(latents, sae.d_sae, name)


def _about(figures: LatentStatistics) -> dict[str, Any]:
    """What all latents of an SAE share."""
    return {
        "layer": figures.layer,
        "dialogues": figures.dialogues,
        "tokens": figures.tokens,
        "residual_norm": figures.residual_norm,
    }


def _figures(figures: LatentStatistics, latent: int) -> dict[str, float]:
    return {
        "mean_max": figures.mean_max_F[latent].item(),
        "highest": figures.highest_F[latent].item(),
        "frequency": figures.frequency_F[latent].item(),
        "dialogue_frequency": figures.dialogue_frequency_F[latent].item(),
    }


def _written(assembly: Assembly, d_LD: Tensor) -> list[dict[str, list[dict[str, Any]]]]:
    """Of each direction the tokens it raises and lowers most, by the logit lens."""
    texts, vocabulary = Texts(assembly.chat), assembly.vocabulary
    found: list[dict[str, list[dict[str, Any]]]] = [{} for _ in d_LD]
    for end, largest in (("top", True), ("bottom", False)):
        values, ids = lens_tokens(
            assembly.reader.model,
            d_LD,
            min(WRITTEN, vocabulary),
            vocabulary=vocabulary,
            largest=largest,
        )
        for entry, logits, numbers in zip(found, values.tolist(), ids.tolist(), strict=True):
            entry[end] = [
                {"token_id": number, "token": texts.token(number), "logit": logit}
                for number, logit in zip(numbers, logits, strict=True)
            ]
    return found


def ranking(
    assembly: Assembly,
    by: str,
    *,
    latents: Sequence[int] = (),
    candidates: int,
    alpha: float,
    dialogues: int,
    top: int,
) -> Report:
    """The ``top`` latents by mean maximum activation or by output score, with what they write.

    Args:
        by: one of ``RANKINGS``.
        latents: only these; by default the ``candidates`` with the largest mean maximum.
        alpha: of output scores, in mean residual norms.

    Raises:
        InputError: no such ranking or latent; no answers in the dialogues, for output scores.
    """
    if by not in RANKINGS:
        raise InputError(f"--rank: '{one_line(by, 40)}' is none of {', '.join(RANKINGS)}")
    if not np.isfinite(alpha):
        raise InputError(f"--alpha: {alpha} is not a finite number of residual norms")
    _refuse_latents(assembly, latents)
    sequences, split = assembly.dialogues(dialogues)
    prompts = answer_starts(assembly.chat, sequences, PROMPTS) if by == "output" else []
    reader, saes = assembly.reader, assembly.saes
    with Progress("reading dialogues", split["tokens"]) as bar:
        figures = statistics(reader, saes, sequences, lambda n: bar.advance(n, "tokens"))
    chosen = {
        name: list(latents) or _candidates(figures[name], candidates if by == "output" else top)
        for name in saes
    }
    scores: dict[str, list[float]] = {}
    if by == "output":
        pairs = len(prompts) * sum(map(len, chosen.values()))
        with Progress("steering", pairs) as bar:
            scores = {
                name: _scores(
                    assembly,
                    name,
                    chosen[name],
                    prompts,
                    alpha,
                    figures[name].residual_norm,
                    lambda n: bar.advance(n, "prompts"),
                )
                for name in saes
            }
    found = {}
    for name, (_, sae) in saes.items():
        rows: list[dict[str, Any]] = [
            {"latent": k, **_figures(figures[name], k)} for k in chosen[name]
        ]
        if by == "output":
            for row, score in zip(rows, scores[name], strict=True):
                row["output_score"] = score
        key = "output_score" if by == "output" else "mean_max"
        rows = sorted(rows, key=lambda row: (-row[key], row["latent"]))[:top]
        written = _written(assembly, sae.W_dec[[row["latent"] for row in rows]]) if rows else []
        found[name] = {
            **_about(figures[name]),
            "candidates": len(chosen[name]),
            "latents": [
                {**row, "writes": writes} for row, writes in zip(rows, written, strict=True)
            ],
        }
    report: Report = {
        "base_model": assembly.base_model,
        "split": split,
        "rank": by,
        "definition": FIGURES,
        "saes": found,
    }
    if by == "output":
        report["definition"] = f"{OUTPUT_SCORE}. {FIGURES}"
        report |= {"alpha": alpha, "prompts": len(prompts)}
    return report


def _scores(
    assembly: Assembly,
    name: str,
    latents: Sequence[int],
    prompts: Sequence[TokenSequence],
    alpha: float,
    residual_norm: float,
    progress: Callable[[int], None],
) -> list[float]:
    layer, sae = assembly.saes[name]
    return output_scores(
        assembly.reader,
        sae,
        layer,
        latents,
        prompts,
        alpha,
        residual_norm=residual_norm,
        vocabulary=assembly.vocabulary,
        progress=progress,
    )


def _candidates(figures: LatentStatistics, count: int) -> list[int]:
    """Latents that fire, the largest mean maximum first."""
    order = np.argsort(-figures.mean_max_F.numpy(), kind="stable")[:count]
    return [int(k) for k in order if figures.mean_max_F[k] > 0]
