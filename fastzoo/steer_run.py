"""What ``fastzoo steer`` does: find latents, sweep alphas over questions, score, find the sweet spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fastzoo import window
from fastzoo.assembly import Assembly, assemble
from fastzoo.config import EMBEDDED_DATA, EMBEDDED_MODEL
from fastzoo.edits import MODES, make_edit
from fastzoo.errors import FastzooError, InputError, one_line
from fastzoo.features import of_special_tokens
from fastzoo.judge import Judge, Verdict
from fastzoo.language import FUNCTION_WORDS, NAMES, words_of
from fastzoo.latent_search import CANDIDATES, find_pool, finer, search
from fastzoo.latent_statistics import statistics
from fastzoo.output_score import refuse_missing
from fastzoo.positions import PLACES, Positions, roles
from fastzoo.progress import Progress
from fastzoo.questions import Question, asked, load_questions
from fastzoo.scores import (
    CONCEPT_SHARE,
    Cell,
    CellScores,
    Concept,
    concept_of_language,
    concept_of_words,
)
from fastzoo.special_latents import ROLE_WORDS
from fastzoo.streams import TokenSequence
from fastzoo.sweep import LATENT, NORM_ALPHAS, PAPER_ALPHAS, PROMPT, RANDOM, Settings, Sweep
from fastzoo.unembedding import lens_tokens
from fastzoo.window import Row, SweetSpot, find_sweet_spot, row_of

SPECIAL = 5
"""Latents of each special token, as in the paper's Appendix F.3."""
WORDS = 8
"""Tokens of the logit lens that say what a latent is about."""
JUDGE_DEFINITION = (
    "how much of the concept is in the answer, whether it does what was asked, and how it reads, each "
    "0, 1 or 2; overall is their harmonic mean; null where the judge gave no usable reply"
)


@dataclass(frozen=True)
class Ask:
    """What is asked of ``steer_sae``; see ``fastzoo steer --help``."""

    source: str
    questions: Sequence[str] = ()
    file: Path | None = None
    latents: Sequence[int] = ()
    auto: bool = False
    special: bool = False
    """Find it among the latents of special tokens."""
    candidates: int = CANDIDATES
    alphas: Sequence[float] = ()
    units: str | None = None
    mode: str = "add"
    positions: str = "all"
    concept: Sequence[str] = ()
    language: str | None = None
    wish: str | None = None
    control: bool = True
    model: str | None = None
    revision: str | None = None
    data: str = EMBEDDED_DATA
    dialogues: int = 200
    judge: str | None = None
    judge_url: str | None = None
    judge_cache: Path | None = None
    settings: Settings = field(default_factory=Settings)


@dataclass
class Outcome:
    """Answers, their scores, and what follows from them."""

    about: dict[str, Any]
    questions: list[Question]
    cells: list[Cell]
    scores: list[CellScores]
    """Of each cell, in order."""
    verdicts: list[Verdict] | None
    tokenizer: Any
    spot: SweetSpot | None
    """None where nothing is added, or only at alpha 0."""
    candidates: list[dict[str, Any]]
    """What ``--auto`` tried, the best first."""
    judge_failure: FastzooError | KeyboardInterrupt | None = None
    """Why the judge did not rate all answers. For the caller to raise, once the others are safe."""

    def rows(self, arm: str) -> list[tuple[Cell, CellScores]]:
        """The cells of an arm with their scores."""
        both = zip(self.cells, self.scores, strict=True)
        return [(cell, score) for cell, score in both if cell.arm == arm]

    def to_value(self) -> dict[str, Any]:
        """Plain data."""
        verdicts: Sequence[Any] = self.verdicts or [None] * len(self.cells)
        return {
            **self.about,
            "questions": [question.text for question in self.questions],
            "sweet_spot": None if self.spot is None else asdict(self.spot),
            "candidates": self.candidates,
            "cells": [
                {
                    **asdict(cell),
                    "scores": asdict(score) | {"degenerate": score.degenerate},
                    **(
                        {"judge": asdict(verdict) | {"overall": verdict.overall}} if verdict else {}
                    ),
                }
                for cell, score, verdict in zip(self.cells, self.scores, verdicts, strict=True)
            ],
        }


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
    if not ask.latents and not ask.auto:
        raise InputError("say which latent with --latent, or let --auto find one")
    if ask.auto and ask.mode != "add":
        raise InputError(f"--auto finds latents to add; with --mode {ask.mode} say which latent")
    if ask.special and (not ask.auto or ask.latents):
        raise InputError("--special goes with --auto, and not with --latent")
    assembly = assemble([ask.source], model_name=ask.model, revision=ask.revision, data=ask.data)
    ((name, (layer, sae)),) = assembly.saes.items()
    questions = _questions(ask, assembly)
    units, alphas = _alphas(ask, assembly)
    refuse_missing(ask.latents, sae.d_sae, name)
    concept = _concept(ask)
    # What cannot be is said before the model is loaded, latents are measured and answers written.
    unmeasured = SimpleNamespace(mean_max_F=torch.ones(sae.d_sae), residual_norm=1.0)
    make_edit(
        sae,
        dict.fromkeys(ask.latents or [0], alphas),
        layer=layer,
        mode=ask.mode,
        units=units,
        statistics=unmeasured,
    )
    positions = _positions(ask, assembly)
    judge = _judge(ask)
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
    known = None
    sequences: list[TokenSequence] = []
    if ask.auto or units != "raw":
        sequences, _ = assembly.dialogues(ask.dialogues)
        total = sum(map(len, sequences))
        with Progress("measuring latents", total) as bar:
            known = statistics(
                assembly.reader,
                assembly.saes,
                sequences,
                lambda tokens: bar.advance(tokens, "tokens"),
            )[name]
    sweep = replace(sweep, statistics=known)
    candidates: list[dict[str, Any]] = []
    fires_on: dict[int, list[str]] = {}
    if ask.auto:
        assert known is not None
        words = ask.concept or FUNCTION_WORDS.get(ask.language or "", "").split()
        if ask.special:
            fires_on = _special_latents(assembly, name, ask.dialogues)
        pool = list(ask.latents or fires_on)
        pool = pool or find_pool(assembly, known, sequences, words, ask.candidates)
        candidates = search(replace(sweep, questions=sweep.questions[::2]), pool, concept)
        for entry in candidates if ask.special else ():
            entry["special_tokens"] = fires_on[entry["latent"]]
        sweep = replace(sweep, latents={candidates[0]["latent"]: 1.0})
        if not ask.alphas:
            sweep = replace(sweep, alphas=finer(sweep.alphas, candidates[0]["alpha"]))
    if sweep.wish is None:
        sweep = replace(sweep, wish=_wish(ask, assembly, sweep))
    with watch(sweep) as told:
        cells = sweep.cells(told)
    scores = sweep.scores(cells, concept)
    verdicts: list[Verdict] | None = None
    failure: FastzooError | KeyboardInterrupt | None = None
    if judge is not None:
        said = ", ".join(ask.concept) or NAMES.get(ask.language or "") or sweep.wish
        pairs = [(questions[cell.question].whole, cell.text) for cell in cells]
        try:
            judge.rate(pairs, said)
        except (FastzooError, KeyboardInterrupt) as error:
            failure = error
        verdicts = judge.so_far(pairs, said)
    about = {
        "sae": name,
        "base_model": assembly.base_model,
        "layer": layer,
        "latents": list(sweep.latents),
        "writes": {k: written(assembly, sweep, k) for k in sweep.latents},
        "special_tokens": {k: fires_on[k] for k in sweep.latents if k in fires_on},
        "mode": ask.mode,
        "units": units,
        "alphas": list(sweep.alphas),
        "residual_norm": None if known is None else known.residual_norm,
        "mean_max": None
        if known is None
        else {k: float(known.mean_max_F[k]) for k in sweep.latents},
        "positions": ask.positions,
        "concept": list(ask.concept) or ask.language,
        "wish": sweep.wish,
        "settings": asdict(ask.settings),
        "judge": judge.name if judge else None,
        "definitions": {
            "effect": "1 - share of the unsteered answer kept (ROUGE-L of tokens); with a "
            "language, what the share of the words in its sentences gained; with a concept, what the share "
            f"of its words gained, {CONCEPT_SHARE:g} counting as 1",
            "quality": "share of answers that are not degenerate and whose mean negative "
            f"log-likelihood is at most {window.CLOSE_NATS:g} nats above the unsteered answer's",
            "window": f"alphas with an effect of {window.LEAST_EFFECT:g} and "
            f"{window.LEAST_QUALITY:.0%} of the unsteered quality around the one with the best "
            "harmonic mean; chosen on the questions of even index, reported on the others with 95% "
            "bootstrap intervals",
            **({"judge": JUDGE_DEFINITION} if judge else {}),
        },
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


def written(assembly: Assembly, sweep: Sweep, latent: int) -> list[str]:
    """The tokens that a latent's decoder row raises most, by the logit lens."""
    row_1D = sweep.sae.W_dec.detach()[[latent]]
    _, ids_1K = lens_tokens(sweep.model, row_1D, WORDS, vocabulary=assembly.vocabulary)
    return [sweep.tokenizer.decode([int(token)]) for token in ids_1K[0]]


def _special_latents(assembly: Assembly, name: str, dialogues: int) -> dict[int, list[str]]:
    """The latents that fire most on special tokens (Appendix F.3), and on which."""
    found: dict[int, list[str]] = {}
    report = of_special_tokens(assembly, dialogues=dialogues, top=SPECIAL)
    for entry in report["saes"][name]["tokens"]:
        for latent in entry["latents"]:
            found.setdefault(latent["latent"], []).append(entry["token"])
    return found


# --- what was asked ------------------------------------------------------------------------------


def _questions(ask: Ask, assembly: Assembly) -> list[Question]:
    if ask.questions and ask.file:
        raise InputError("give questions on the line or in a file, not both")
    if ask.questions:
        return asked(ask.questions)
    return load_questions(ask.file, tiny=assembly.source.name == EMBEDDED_MODEL)


def _alphas(ask: Ask, assembly: Assembly) -> tuple[str, list[float]]:
    """Units and alphas, the unsteered one among them.

    The paper's raw alphas fit its models; others get multiples of the residual stream's norm.
    """
    from fastzoo.zoo import GRID

    papers = any(row.base_model == assembly.source.name for row in GRID)
    if ask.mode == "add":
        units = ask.units or ("raw" if ask.alphas or papers else "norm")
        default: Sequence[float] = PAPER_ALPHAS if units == "raw" and papers else NORM_ALPHAS
        if units != "norm" and not papers and not ask.alphas:
            raise InputError(
                f"units '{units}': say which alphas; those of the paper fit its models only"
            )
    else:
        units = ask.units or "raw"
        default = (1.0,) if ask.mode == "ablate" else ()
        if not ask.alphas and not default and ask.mode in MODES:
            raise InputError(f"--mode {ask.mode}: say which values with --alpha")
    alphas = list(dict.fromkeys(float(alpha) for alpha in ask.alphas or default))
    if ask.mode == "add" and 0.0 not in alphas:
        alphas.insert(0, 0.0)
    return units, alphas


def _positions(ask: Ask, assembly: Assembly) -> Positions:
    if ask.positions in ROLE_WORDS:
        return roles(assembly.chat.tokenizer, ask.positions)
    if ask.positions not in PLACES:
        raise InputError(
            f"--positions '{one_line(ask.positions, 40)}' is none of "
            f"{', '.join((*PLACES, *ROLE_WORDS))}"
        )
    return ask.positions


def _concept(ask: Ask) -> Concept | None:
    if ask.concept and ask.language:
        raise InputError("give a concept's words or a language, not both")
    if ask.language is not None:
        if ask.language not in FUNCTION_WORDS:
            raise InputError(
                f"language '{one_line(ask.language, 20)}' is none of {', '.join(FUNCTION_WORDS)}"
            )
        return concept_of_language(ask.language)
    if wordless := [word for word in ask.concept if not words_of(word)]:
        raise InputError(f"concept '{one_line(wordless[0], 40)}' has no word in it")
    return concept_of_words(ask.concept) if ask.concept else None


def _judge(ask: Ask) -> Judge | None:
    """The judge, if one was asked for, and if it answers."""
    if ask.judge is None and ask.judge_url is None:
        if ask.judge_cache is not None:
            raise InputError("--judge-cache goes with --judge or --judge-url")
        return None
    judge = Judge(ask.judge, ask.judge_url, ask.judge_cache)
    judge.check()
    return judge


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
