"""What is asked of ``fastzoo steer``, checked and made into what a sweep takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastzoo.config.recipe import EMBEDDED_DATA, EMBEDDED_MODEL
from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line
from fastzoo.data.special_tokens import ROLE_WORDS, roles
from fastzoo.loading import Assembly
from fastzoo.steering.edits import MODES
from fastzoo.steering.positions import PLACES, Positions
from fastzoo.steering.questions import Question, asked, load_questions
from fastzoo.steering.scoring.judge import Judge
from fastzoo.steering.scoring.language import FUNCTION_WORDS, words_of
from fastzoo.steering.scoring.scores import Concept, concept_of_language, concept_of_words
from fastzoo.steering.search import CANDIDATES
from fastzoo.steering.sweep import NORM_ALPHAS, PAPER_ALPHAS, Settings


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


def refuse_contradictions(ask: Ask) -> None:
    """Raise InputError for options that do not go together."""
    if not ask.latents and not ask.auto:
        raise InputError("say which latent with --latent, or let --auto find one")
    if ask.auto and ask.mode != "add":
        raise InputError(f"--auto finds latents to add; with --mode {ask.mode} say which latent")
    if ask.special and (not ask.auto or ask.latents):
        raise InputError("--special goes with --auto, and not with --latent")


def questions_of(ask: Ask, assembly: Assembly) -> list[Question]:
    """Those asked, or fastzoo's own. Raises InputError."""
    if ask.questions and ask.file:
        raise InputError("give questions on the line or in a file, not both")
    if ask.questions:
        return asked(ask.questions)
    return load_questions(ask.file, tiny=assembly.source.name == EMBEDDED_MODEL)


def alphas_of(ask: Ask, assembly: Assembly) -> tuple[str, list[float]]:
    """Units and alphas, the unsteered one among them.

    The paper's raw alphas fit its models; others get multiples of the residual stream's norm. Raises
    InputError.
    """
    from fastzoo.saes.names import GRID

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


def positions_of(ask: Ask, assembly: Assembly) -> Positions:
    """What ``steer`` takes. Raises InputError."""
    if ask.positions in ROLE_WORDS:
        return roles(assembly.chat.tokenizer, ask.positions)
    if ask.positions not in PLACES:
        raise InputError(
            f"--positions '{one_line(ask.positions, 40)}' is none of "
            f"{', '.join((*PLACES, *ROLE_WORDS))}"
        )
    return ask.positions


def concept_of(ask: Ask) -> Concept | None:
    """What an answer's concept is measured by. Raises InputError."""
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


def judge_of(ask: Ask) -> Judge | None:
    """The judge, if one was asked for. Raises InputError, and HubError where it does not answer."""
    if ask.judge is None and ask.judge_url is None:
        if ask.judge_cache is not None:
            raise InputError("--judge-cache goes with --judge or --judge-url")
        return None
    judge = Judge(ask.judge, ask.judge_url, ask.judge_cache)
    judge.check()
    return judge
