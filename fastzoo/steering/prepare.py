"""What the settings of ``fastzoo steer`` mean for an SAE and its model: questions, alphas, concept, judge, sweep."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch

from fastzoo.config.recipe import EMBEDDED_MODEL
from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line
from fastzoo.data.special_tokens import ROLE_WORDS, roles
from fastzoo.interpret.output_score import refuse_missing
from fastzoo.loading import Assembly
from fastzoo.saes.names import GRID
from fastzoo.steering.edits import MODES, make_edit
from fastzoo.steering.generate import GenerationSettings
from fastzoo.steering.positions import PLACES, Positions
from fastzoo.steering.questions import Question, given_questions, load_questions
from fastzoo.steering.scoring.judge import Judge
from fastzoo.steering.scoring.language import FUNCTION_WORDS, words_of
from fastzoo.steering.scoring.scores import Concept, concept_of_language, concept_of_words
from fastzoo.steering.settings import NORM_ALPHAS, PAPER_ALPHAS, SteerSettings
from fastzoo.steering.sweep import Sweep


def questions_of(settings: SteerSettings, assembly: Assembly) -> list[Question]:
    """Those given, or fastzoo's own. Raises InputError, DataError."""
    if settings.questions and settings.question_file:
        raise InputError("give questions on the line or in a file, not both")
    if settings.questions:
        return given_questions(settings.questions)
    return load_questions(settings.question_file, tiny=assembly.source.name == EMBEDDED_MODEL)


def concept_of(settings: SteerSettings) -> Concept | None:
    """What an answer's concept is measured by. Raises InputError."""
    if settings.words and settings.language:
        raise InputError("give a concept's words or a language, not both")
    if settings.language is not None:
        if settings.language not in FUNCTION_WORDS:
            raise InputError(
                f"language '{one_line(settings.language, 20)}' is not one of {', '.join(FUNCTION_WORDS)}"
            )
        return concept_of_language(settings.language)
    if wordless := [word for word in settings.words if not words_of(word)]:
        raise InputError(f"concept '{one_line(wordless[0], 40)}' has no word in it")
    return concept_of_words(settings.words) if settings.words else None


def judge_of(settings: SteerSettings) -> Judge | None:
    """The judge, if one is wanted. Raises InputError, and HubError where it does not answer."""
    if settings.judge is None and settings.judge_url is None:
        if settings.judge_cache is not None:
            raise InputError("--judge-cache goes with --judge or --judge-url")
        return None
    judge = Judge(settings.judge, settings.judge_url, settings.judge_cache)
    judge.check()
    return judge


def make_sweep(settings: SteerSettings, assembly: Assembly, questions: Sequence[Question]) -> Sweep:
    """The sweep, checked as far as that goes before latents are measured. Raises InputError for latents, alphas,
    units, a mode or positions that do not exist, DataError for a question that is too long, or that the chat
    template refuses."""
    ((name, (layer, sae)),) = assembly.saes.items()
    units, alphas = alphas_of(settings, assembly)
    refuse_missing(settings.latents, sae.d_sae, name)
    latents = dict.fromkeys(settings.latents or [0], alphas)
    unmeasured = SimpleNamespace(mean_max_F=torch.ones(sae.d_sae), residual_norm=1.0)
    make_edit(sae, latents, layer=layer, mode=settings.mode, units=units, statistics=unmeasured)
    sweep = Sweep(
        model=assembly.reader.model,
        chat=assembly.chat,
        sae=sae.to(assembly.reader.device),
        layer=layer,
        latents=settings.latents,
        questions=[question.messages for question in questions],
        alphas=alphas,
        units=units,
        mode=settings.mode,
        positions=positions_of(settings, assembly),
        wish=settings.wish,
        control=settings.control,
        settings=GenerationSettings(settings.max_new_tokens, settings.temperature, seed=settings.seed),
    )
    sweep.prompts()
    return sweep


def alphas_of(settings: SteerSettings, assembly: Assembly) -> tuple[str, list[float]]:
    """Units and alphas; where latents are added, 0 is among them. Raises InputError."""
    papers = any(row.base_model == assembly.source.name for row in GRID)
    added = settings.mode == "add"
    units = settings.units or ("norm" if added and not settings.alphas and not papers else "raw")
    alphas = list(dict.fromkeys(map(float, settings.alphas or _default_alphas(settings.mode, units, papers))))
    return units, alphas if 0.0 in alphas or not added else [0.0, *alphas]


def _default_alphas(mode: str, units: str, papers: bool) -> Sequence[float]:
    """The paper's raw alphas for its models, multiples of the residual stream's norm for others."""
    if mode not in MODES:
        return ()  # refused with the edit
    if mode == "ablate":
        return (1.0,)
    if mode != "add":
        raise InputError(f"--mode {mode}: say which values with --alpha")
    if units != "norm" and not papers:
        raise InputError(f"units '{units}': say which alphas; those of the paper fit its models only")
    return PAPER_ALPHAS if units == "raw" else NORM_ALPHAS


def positions_of(settings: SteerSettings, assembly: Assembly) -> Positions:
    """What ``steer`` takes. Raises InputError."""
    if settings.positions in ROLE_WORDS:
        return roles(assembly.chat.tokenizer, settings.positions)
    if settings.positions not in PLACES:
        known = ", ".join((*PLACES, *ROLE_WORDS))
        raise InputError(f"--positions '{one_line(settings.positions, 40)}' is not one of {known}")
    return settings.positions
