"""What ``fastzoo steer`` does: find latents, sweep alphas over questions, score, find the sweet spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import torch

from fastzoo.core.errors import FastzooError
from fastzoo.core.progress import Progress
from fastzoo.data.sequences import TokenSequence
from fastzoo.interpret.by_token import of_special_tokens
from fastzoo.interpret.output_score import refuse_missing
from fastzoo.interpret.statistics import LatentStatistics, statistics
from fastzoo.lm.logit_lens import lens_tokens
from fastzoo.loading import Assembly, assemble
from fastzoo.steering.ask import (
    Ask,
    alphas_of,
    concept_of,
    judge_of,
    positions_of,
    questions_of,
    refuse_contradictions,
)
from fastzoo.steering.edits import make_edit
from fastzoo.steering.outcome import DEFINITIONS, JUDGE_DEFINITION, Outcome
from fastzoo.steering.questions import Question
from fastzoo.steering.scoring.judge import Judge, Verdict
from fastzoo.steering.scoring.language import FUNCTION_WORDS, NAMES
from fastzoo.steering.scoring.scores import Cell, CellScores
from fastzoo.steering.search import find_pool, finer, search
from fastzoo.steering.sweep import LATENT, PROMPT, RANDOM, Sweep
from fastzoo.steering.sweet_spot import Row, SweetSpot, find_sweet_spot, row_of

SPECIAL = 5
"""Latents of each special token, as in the paper's Appendix F.3."""

WORDS = 8
"""Tokens of the logit lens that say what a latent is about."""

Watch = Callable[[list[tuple[int, int]]], None]


def steer_sae(
    ask: Ask,
    watch: Callable[[Sweep], AbstractContextManager[Watch | None]] = lambda sweep: nullcontext(),
) -> Outcome:
    """Steer the SAE's language model as asked.

    Args:
        watch: given a sweep, the context in which it runs, with what is told of its tokens.

    Raises:
        InputError: latents, alphas, units or questions that cannot be.
        DataError, ModelError, HubError, TrainingError.
    """
    refuse_contradictions(ask)
    assembly = assemble([ask.source], model_name=ask.model, revision=ask.revision, data=ask.data)
    questions, concept = questions_of(ask, assembly), concept_of(ask)
    # What cannot be is said before latents are measured and answers written.
    judge = judge_of(ask)
    sweep = _sweep(ask, assembly, questions)
    known = None
    candidates: list[dict[str, Any]] = []
    if ask.auto or sweep.units != "raw":
        sequences, _ = assembly.dialogues(ask.dialogues)
        known = _measured(assembly, sequences)
        sweep = replace(sweep, statistics=known)
        if ask.auto:
            pool = _pool(ask, assembly, known, sequences)
            half = replace(sweep, questions=sweep.questions[::2])
            candidates = search(half, list(pool), concept)
            if ask.special:
                candidates = [
                    entry | {"special_tokens": pool[entry["latent"]]} for entry in candidates
                ]
            best = candidates[0]
            alphas = sweep.alphas if ask.alphas else finer(sweep.alphas, best["alpha"])
            sweep = replace(sweep, latents={best["latent"]: 1.0}, alphas=alphas)
    if sweep.wish is None:
        sweep = replace(sweep, wish=_wish(ask, assembly, sweep))
    with watch(sweep) as told:
        cells = sweep.cells(told)
    scores = sweep.scores(cells, concept)
    verdicts, failure = None, None
    if judge is not None:
        said = ", ".join(ask.concept) or NAMES.get(ask.language or "") or sweep.wish
        pairs = [(questions[cell.question].whole, cell.text) for cell in cells]
        verdicts, failure = _rated(judge, pairs, said)
    about = _about(ask, assembly, sweep) | {
        "special_tokens": {
            c["latent"]: c["special_tokens"] for c in candidates[:1] if "special_tokens" in c
        },
        "judge": judge.name if judge else None,
        "definitions": DEFINITIONS | ({"judge": JUDGE_DEFINITION} if judge else {}),
    }
    return Outcome(
        about,
        questions,
        cells,
        scores,
        verdicts,
        sweep.tokenizer,
        _spot(cells, scores, sweep.alphas) if ask.mode == "add" else None,
        candidates,
        failure,
    )


# --- its steps -----------------------------------------------------------------------------------


def _sweep(ask: Ask, assembly: Assembly, questions: Sequence[Question]) -> Sweep:
    """The sweep as far as it is known before latents are measured, checked."""
    ((name, (layer, sae)),) = assembly.saes.items()
    units, alphas = alphas_of(ask, assembly)
    refuse_missing(ask.latents, sae.d_sae, name)
    make_edit(
        sae,
        dict.fromkeys(ask.latents or [0], alphas),
        layer=layer,
        mode=ask.mode,
        units=units,
        statistics=SimpleNamespace(mean_max_F=torch.ones(sae.d_sae), residual_norm=1.0),
    )
    positions = positions_of(ask, assembly)
    sweep = Sweep(
        assembly.reader.model,
        assembly.chat.tokenizer,
        sae.to(assembly.reader.device),
        layer,
        dict.fromkeys(ask.latents, 1.0),
        [question.messages for question in questions],
        alphas,
        units,
        None,
        ask.mode,
        positions,
        ask.wish,
        ask.control,
        ask.settings,
    )
    sweep.prompts()  # long questions are refused
    return sweep


def _measured(assembly: Assembly, sequences: Sequence[TokenSequence]) -> LatentStatistics:
    with Progress("measuring latents", sum(map(len, sequences))) as bar:
        (known,) = statistics(
            assembly.reader,
            assembly.saes,
            sequences,
            lambda tokens: bar.advance(tokens, "tokens"),
        ).values()
    return known


def _pool(
    ask: Ask, assembly: Assembly, known: LatentStatistics, sequences: Sequence[TokenSequence]
) -> dict[int, list[str]]:
    """The latents that ``--auto`` tries, and the special tokens that they were chosen for, if any."""
    if ask.special:
        return _special_latents(assembly, ask.dialogues)
    words = ask.concept or FUNCTION_WORDS.get(ask.language or "", "").split()
    found = ask.latents or find_pool(assembly, known, sequences, words, ask.candidates)
    return {latent: [] for latent in found}


def _special_latents(assembly: Assembly, dialogues: int) -> dict[int, list[str]]:
    """The latents that fire most on special tokens (Appendix F.3), and on which."""
    found: dict[int, list[str]] = {}
    (report,) = of_special_tokens(assembly, dialogues=dialogues, top=SPECIAL)["saes"].values()
    for entry in report["tokens"]:
        for latent in entry["latents"]:
            found.setdefault(latent["latent"], []).append(entry["token"])
    return found


def _rated(
    judge: Judge, pairs: Sequence[tuple[str, str]], concept: str | None
) -> tuple[list[Verdict], FastzooError | KeyboardInterrupt | None]:
    """The verdicts on questions and answers, and what ended the rating before all were there."""
    failure: FastzooError | KeyboardInterrupt | None = None
    try:
        judge.rate(pairs, concept)
    except (FastzooError, KeyboardInterrupt) as error:
        failure = error
    return judge.so_far(pairs, concept), failure


def _about(ask: Ask, assembly: Assembly, sweep: Sweep) -> dict[str, Any]:
    """What was done, as plain data."""
    (name,) = assembly.saes
    known = sweep.statistics
    return {
        "sae": name,
        "base_model": assembly.base_model,
        "layer": sweep.layer,
        "latents": list(sweep.latents),
        "writes": {k: written(assembly, sweep, k) for k in sweep.latents},
        "mode": sweep.mode,
        "units": sweep.units,
        "alphas": list(sweep.alphas),
        "residual_norm": None if known is None else known.residual_norm,
        "mean_max": None
        if known is None
        else {k: float(known.mean_max_F[k]) for k in sweep.latents},
        "positions": ask.positions,
        "concept": list(ask.concept) or ask.language,
        "wish": sweep.wish,
        "settings": asdict(sweep.settings),
    }


def written(assembly: Assembly, sweep: Sweep, latent: int) -> list[str]:
    """The tokens that a latent's decoder row raises most, by the logit lens."""
    row_1D = sweep.sae.W_dec.detach()[[latent]]
    _, ids_1K = lens_tokens(sweep.model, row_1D, WORDS, vocabulary=assembly.vocabulary)
    return [sweep.tokenizer.decode([int(token)]) for token in ids_1K[0]]


def _wish(ask: Ask, assembly: Assembly, sweep: Sweep) -> str:
    """The same wish in words: the language, the concept's words, or else the latents' own."""
    if ask.language is not None:
        return f"Answer in {NAMES[ask.language]}."
    words = list(ask.concept) or [
        word
        for latent in sweep.latents
        for text in written(assembly, sweep, latent)
        if (word := text.strip()) and word.isprintable()
    ]
    return f"Use words such as these in your answer: {', '.join(dict.fromkeys(words)) or 'none'}."


def _spot(
    cells: Sequence[Cell], scores: Sequence[CellScores], alphas: Sequence[float]
) -> SweetSpot | None:
    if 0.0 not in alphas or len(alphas) < 2:
        return None
    rows: dict[str, Row] = {}
    own = {
        arm: [s for c, s in zip(cells, scores, strict=True) if c.arm == arm]
        for arm in (LATENT, RANDOM, PROMPT)
    }
    unsteered = [s for s in own[LATENT] if s.alpha == 0]
    for arm, found in own.items():
        if found:
            rows[arm] = row_of(found, unsteered)
    return find_sweet_spot(rows.pop(LATENT), rows)
