"""Which latent to steer with: fewer and fewer of them are tried on more and more questions.

The pool comes from what costs little: for a concept, the latents whose decoder row points to its words
by the logit lens, and those that fire most strongly; without one, the highest output scores. Every
round then measures what the latents do to answers, and the better ones go on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastzoo.core.errors import InputError
from fastzoo.core.progress import Progress
from fastzoo.data.sequences import TokenSequence
from fastzoo.data.special_tokens import answer_starts
from fastzoo.interpret.output_score import output_scores
from fastzoo.interpret.statistics import LatentStatistics
from fastzoo.lm.logit_lens import logit_lens
from fastzoo.loading import Assembly
from fastzoo.steering.scoring.scores import Concept, harmonic_mean
from fastzoo.steering.sweep import Sweep
from fastzoo.steering.sweep_rows import LATENT
from fastzoo.steering.sweet_spot import LEAST_EFFECT, LEAST_QUALITY, ArmRates, rates_of

FIRING = 512
"""Latents whose output score is measured: those with the largest mean maximum."""

FEWEST_DIALOGUES = 0.02
"""Share of the dialogues in which a latent of the pool must fire."""

STARTS = 16
"""Beginnings of answers on which output scores are measured."""

TOGETHER = 32
"""Latents in one sweep, at most."""


@dataclass(frozen=True)
class Round:
    """How latents are tried."""

    latents: int | None
    """At most; None: all of the pool."""
    questions: int | None = None
    tokens: int | None = None
    """Length of an answer, at most."""
    every: int = 1
    """1: at all alphas; 2: at every second one, from the smallest on."""


ROUNDS = (Round(None, 3, 16, 2), Round(32, 6, 24), Round(8))


def find_pool(
    assembly: Assembly,
    known: LatentStatistics,
    sequences: Sequence[TokenSequence],
    words: Collection[str],
    count: int,
) -> list[int]:
    """Latents that are worth trying, at most ``count``; ``words`` are the concept's, empty where any change will do.
    Raises InputError if no latent fires often enough."""
    ((layer, sae),) = assembly.saes.values()
    often_F = known.dialogue_frequency_F.cpu() >= FEWEST_DIALOGUES
    directed_F = sae.W_dec.detach().any(1).cpu()
    strength_F = torch.where(often_F & directed_F, known.mean_max_F.cpu(), 0.0)
    firing = [int(k) for k in strength_F.argsort(descending=True) if strength_F[k] > 0]
    if not firing:
        raise InputError(f"no latent fires in {FEWEST_DIALOGUES:.0%} of the dialogues")
    if words:
        points_L = _points_to(assembly, sae.W_dec.detach()[firing], words)
        pointing = [firing[i] for i in points_L.argsort(descending=True).tolist()]
        both = (k for pair in zip(pointing, firing, strict=True) for k in pair)
        return list(dict.fromkeys(both))[:count]
    firing = firing[: max(FIRING, count)]
    starts = answer_starts(assembly.chat, sequences, STARTS)
    with Progress("output scores", len(firing) * len(starts)) as bar:
        tell, norm = lambda rows: bar.advance(rows, "prompts"), known.residual_norm
        found = output_scores(
            assembly.reader, sae, layer, firing, starts, 1.0, residual_norm=norm, progress=tell
        )
    ranked = sorted(zip(found, firing, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return [latent for _, latent in ranked[:count]]


def _points_to(assembly: Assembly, rows_LD: Tensor, words: Collection[str]) -> Tensor:
    """(L,) how far the logit lens of decoder rows raises the first tokens of words above all tokens, in
    standard deviations over the vocabulary."""
    tokenizer, size = assembly.chat.tokenizer, assembly.vocabulary
    firsts = set()
    for form in {form for word in words for form in (f" {word}", f" {word.capitalize()}", word)}:
        ids = tokenizer.encode(form, add_special_tokens=False)
        # Some tokenizers put a space before a text, which then is a token of its own.
        firsts.add(next((token for token in ids if tokenizer.decode([token]).strip()), size))
    wanted = sorted(token for token in firsts if token < size)
    if not wanted:
        return torch.zeros(len(rows_LD))
    parts = []
    for part_LD in rows_LD.split(256):
        logits_LV = logit_lens(assembly.reader.model, part_LD, size)
        parts.append((logits_LV[:, wanted].mean(1) - logits_LV.mean(1)) / logits_LV.std(1))
    return torch.cat(parts).nan_to_num(-torch.inf).cpu()


def search(
    sweep: Sweep, pool: Sequence[int], concept: Concept | None, rounds: Sequence[Round] = ROUNDS
) -> list[dict[str, Any]]:
    """What came of the latents of the last round, the best first. The sweep's questions are those that may choose;
    see ``sweet_spot``."""
    found: list[dict[str, Any]] = []
    pool = list(dict.fromkeys(pool))
    alphas = [alpha for alpha in sweep.alphas if alpha]
    longest = sweep.settings.max_new_tokens
    for how in rounds:
        pool = pool[: how.latents]
        if len(pool) == 1 and how is not rounds[-1]:
            continue
        tried = replace(
            sweep,
            alphas=[0.0, *alphas[:: how.every]],
            questions=sweep.questions[: how.questions],
            settings=replace(sweep.settings, max_new_tokens=min(how.tokens or longest, longest)),
        )
        found = try_latents(tried, pool, concept)
        pool = [entry["latent"] for entry in found]
    return found


def try_latents(sweep: Sweep, latents: Sequence[int], concept: Concept | None) -> list[dict[str, Any]]:
    """Sweep latents one by one; what came of each, the best first. Where no alpha is good (see ``sweet_spot``) the
    best product of effect and quality still orders them."""
    found = []
    with Progress("trying latents", len(latents)) as bar:
        for start in range(0, len(latents), TOGETHER):
            part = latents[start : start + TOGETHER]
            for latent, cells in sweep.many(part).items():
                scores = sweep.scores([replace(cell, arm=LATENT) for cell in cells], concept)
                rates = rates_of(scores, [s for s in scores if s.alpha == 0])
                found.append({"latent": latent, **_best(rates)})
            bar.advance(len(part), "latents")
    found.sort(key=lambda entry: (-entry["score"], -entry["promise"], entry["latent"]))
    return found


def _best(rates: ArmRates) -> dict[str, Any]:
    """The good alpha with the highest score, as ``sweet_spot`` defines it; a score of 0 if none is good."""
    floor = LEAST_QUALITY * rates.quality[rates.alphas.index(0.0)].mean()
    best: dict[str, Any] = {"score": 0.0, "alpha": None, "effect": None, "quality": None}
    promise = 0.0
    for alpha, effects, qualities in zip(rates.alphas, rates.effect, rates.quality, strict=True):
        effect, quality = float(effects.mean()), float(qualities.mean())
        value, promise = harmonic_mean(effect, quality), max(promise, effect * quality)
        if effect >= LEAST_EFFECT and quality >= floor > 0 and value > best["score"]:
            best = {"score": value, "alpha": alpha, "effect": effect, "quality": quality}
    return {**best, "promise": promise}


def finer(alphas: Sequence[float], best: float | None) -> list[float]:
    """The alphas, and those halfway from the best to its neighbours."""
    found = sorted(alphas)
    if best is None:
        return found
    place = found.index(best)
    near = found[max(0, place - 1) : place + 2]
    return sorted({*found, *(round((best + other) / 2, 6) for other in near)})
