"""What ``fastzoo steer`` does: find latents, sweep alphas over questions, score, find the sweet spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

from fastzoo.core.errors import FastzooError
from fastzoo.core.progress import Progress
from fastzoo.data.sequences import TokenSequence
from fastzoo.data.special_tokens import with_role_word
from fastzoo.interpret.by_token import of_special_tokens
from fastzoo.interpret.statistics import LatentStatistics, statistics
from fastzoo.lm.logit_lens import lens_tokens
from fastzoo.loading import Assembly, assemble
from fastzoo.steering.outcome import JUDGE_DEFINITION, SWEEP_DEFINITIONS, Outcome
from fastzoo.steering.prepare import alphas_of, concept_of, judge_of, make_sweep, questions_of
from fastzoo.steering.scoring.judge import Judge, Verdict
from fastzoo.steering.scoring.language import FUNCTION_WORDS, NAMES
from fastzoo.steering.scoring.scores import Cell, CellScores, Concept
from fastzoo.steering.search import find_pool, finer, search
from fastzoo.steering.settings import SteerSettings
from fastzoo.steering.sweep import Sweep, Watch
from fastzoo.steering.sweep_rows import ARMS, LATENT
from fastzoo.steering.sweet_spot import SweetSpot, find_sweet_spot, rates_of

PER_SPECIAL_TOKEN = 5
"""Latents of each special token, as in the paper's Appendix F.3."""

WORDS = 8
"""Tokens of the logit lens that say what a latent is about."""


def run_steer(
    settings: SteerSettings,
    watch: Callable[[Sweep], AbstractContextManager[Watch | None]] = lambda sweep: nullcontext(),
    assembly: Assembly | None = None,
) -> Outcome:
    """Steer the SAE's language model as the settings say.

    ``watch`` makes of a sweep the context in which it runs, with what is told of its tokens; ``assembly`` is the SAE's
    where it is loaded already. Raises InputError for
    latents, alphas, units or questions that cannot be used; DataError, ModelError, HubError, TrainingError.
    """
    settings.check()
    assembly = assembly or assemble(
        [settings.source], model_name=settings.model, revision=settings.revision, data=settings.data
    )
    # Whatever cannot work is refused before latents are measured and answers written.
    questions, concept = questions_of(settings, assembly), concept_of(settings)
    judge = judge_of(settings)
    if settings.auto or alphas_of(settings, assembly)[0] != "raw":
        _ = assembly.rows
    sweep = make_sweep(settings, assembly, questions)
    candidates: list[dict[str, Any]] = []
    if settings.auto or sweep.units != "raw":
        sequences, _ = assembly.dialogues(settings.dialogues, "steering")
        sweep = replace(sweep, statistics=_measured(assembly, sequences))
        if settings.auto:
            sweep, candidates = _found(settings, assembly, sweep, sequences, concept)
    writes = {latent: _writes(assembly, sweep, latent) for latent in sweep.latents}
    if sweep.wish is None:
        sweep = replace(sweep, wish=_wish(settings, writes))
    with watch(sweep) as told:
        cells = sweep.cells(told)
    scores = sweep.scores(cells, concept)
    about = _about(settings, assembly, sweep, writes)
    best = candidates[:1] if settings.special else []
    about["special_tokens"] = {entry["latent"]: entry["special_tokens"] for entry in best}
    about["judge"], about["definitions"] = None, SWEEP_DEFINITIONS
    verdicts, failure = None, None
    if judge is not None:
        about["judge"] = judge.name
        about["definitions"] = SWEEP_DEFINITIONS | {"judge": JUDGE_DEFINITION}
        concept_said = ", ".join(settings.words) or NAMES.get(settings.language or "")
        pairs = [(questions[cell.question].whole, cell.text) for cell in cells]
        verdicts, failure = _rated(judge, pairs, concept_said or sweep.wish)
    spot = _sweet_spot(cells, scores, sweep)
    return Outcome(about, questions, cells, scores, verdicts, sweep.tokenizer, spot, candidates, failure)


def _measured(assembly: Assembly, sequences: Sequence[TokenSequence]) -> LatentStatistics:
    with Progress("measuring latents", sum(map(len, sequences))) as bar:
        found = statistics(
            assembly.reader, assembly.saes, sequences, lambda tokens: bar.advance(tokens, "tokens")
        )
    (known,) = found.values()
    return known


def _found(
    settings: SteerSettings,
    assembly: Assembly,
    sweep: Sweep,
    sequences: Sequence[TokenSequence],
    concept: Concept | None,
) -> tuple[Sweep, list[dict[str, Any]]]:
    """The sweep with the latent that ``--auto`` finds, and what it tried, the best first."""
    on = _special_latents(assembly, settings.dialogues) if settings.special else {}
    words = settings.words or FUNCTION_WORDS.get(settings.language or "", "").split()
    pool = (
        list(on)
        or settings.latents
        or find_pool(assembly, sweep.statistics, sequences, words, settings.candidates)
    )
    # The questions that choose; see ``sweet_spot``.
    candidates = search(replace(sweep, questions=sweep.questions[::2]), pool, concept)
    if settings.special:
        candidates = [entry | {"special_tokens": on[entry["latent"]]} for entry in candidates]
    best = candidates[0]
    alphas = sweep.alphas if settings.alphas else finer(sweep.alphas, best["alpha"])
    return replace(sweep, latents=[best["latent"]], alphas=alphas), candidates


def _special_latents(assembly: Assembly, dialogues: int) -> dict[int, list[str]]:
    """The latents that fire most on special tokens (Appendix F.3), and on which."""
    found: dict[int, list[str]] = {}
    (report,) = of_special_tokens(assembly, dialogues=dialogues, top=PER_SPECIAL_TOKEN)["saes"].values()
    for entry in report["tokens"]:
        for latent in entry["latents"]:
            found.setdefault(latent["latent"], []).append(with_role_word(entry))
    return found


def _rated(
    judge: Judge, pairs: Sequence[tuple[str, str]], concept: str | None
) -> tuple[list[Verdict], FastzooError | KeyboardInterrupt | None]:
    """The verdicts on questions and answers, and what ended the rating before all were there."""
    try:
        return judge.rate(pairs, concept), None
    except (FastzooError, KeyboardInterrupt) as error:
        return judge.so_far(pairs, concept), error


def _about(
    settings: SteerSettings, assembly: Assembly, sweep: Sweep, writes: dict[int, list[str]]
) -> dict[str, Any]:
    """What was done, as plain data."""
    (name,) = assembly.saes
    known = sweep.statistics
    return {
        "sae": name,
        "base_model": assembly.base_model,
        "layer": sweep.layer,
        "latents": list(sweep.latents),
        "writes": writes,
        "mode": sweep.mode,
        "units": sweep.units,
        "alphas": list(sweep.alphas),
        "residual_norm": known and known.residual_norm,
        "mean_max": known and {k: float(known.mean_max_F[k]) for k in sweep.latents},
        "positions": settings.positions,
        "concept": settings.words or settings.language,
        "wish": sweep.wish,
        "settings": asdict(sweep.settings),
    }


def _writes(assembly: Assembly, sweep: Sweep, latent: int) -> list[str]:
    """The tokens that a latent's decoder row raises most, by the logit lens."""
    _, ids_1K = lens_tokens(
        sweep.model, sweep.sae.W_dec.detach()[[latent]], WORDS, vocabulary=assembly.vocabulary
    )
    return [sweep.tokenizer.decode([int(token)]) for token in ids_1K[0]]


def _wish(settings: SteerSettings, writes: dict[int, list[str]]) -> str:
    """The same wish in words: the language, the concept's words, or else the latents' own."""
    if settings.language is not None:
        return f"Answer in {NAMES[settings.language]}."
    texts = [text.strip() for tokens in writes.values() for text in tokens]
    words = settings.words or [text for text in texts if text and text.isprintable()]
    return f"Use words such as these in your answer: {', '.join(dict.fromkeys(words)) or 'none'}."


def _sweet_spot(cells: Sequence[Cell], scores: Sequence[CellScores], sweep: Sweep) -> SweetSpot | None:
    """None where nothing is added, or only at alpha 0."""
    if sweep.mode != "add" or 0.0 not in sweep.alphas or len(sweep.alphas) < 2:
        return None
    pairs = list(zip(cells, scores, strict=True))
    by_arm = {arm: [score for cell, score in pairs if cell.arm == arm] for arm in ARMS}
    unsteered = [score for score in by_arm[LATENT] if score.alpha == 0]
    arms = {arm: rates_of(found, unsteered) for arm, found in by_arm.items() if found}
    return find_sweet_spot(arms.pop(LATENT), arms)
