"""The settings of ``fastzoo steer``: one field each, from which the command line makes its option.

Loads neither torch nor pydantic: every ``fastzoo --help`` reads this.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastzoo.core.errors import InputError


@dataclass(frozen=True)
class Option:
    """How the command line describes and bounds a setting."""

    help: str
    metavar: str | None = None
    flag: str | None = None
    """Its name, where that is not the field's."""
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, kw_only=True)
class SteerSettings:
    """What one run of ``fastzoo steer`` is to do."""

    source: str
    questions: list[str] = field(default_factory=list)
    latents: Annotated[
        list[int], Option("Latents to steer with, all at once.", "K", "--latent")
    ] = field(default_factory=list)
    alphas: Annotated[
        list[float],
        Option(
            "Strengths, several after one --alpha; by default the paper's for its models, 0 to 1.2 "
            "norms for others.",
            "A",
            "--alpha",
        ),
    ] = field(default_factory=list)
    auto: Annotated[
        bool, Option("Find the latent (of those given, or of all) and window.", flag="--auto")
    ] = False
    special: Annotated[
        bool, Option("--auto among the latents of special tokens.", flag="--special")
    ] = False
    candidates: Annotated[int, Option("How many latents --auto tries at first.", "N", min=1)] = 256
    units: Annotated[
        str | None,
        Option(
            "Of alpha: raw; max (the latent's mean maximum); norm (the residual stream's).", "UNITS"
        ),
    ] = None
    mode: Annotated[
        str,
        Option(
            "What alpha is: add (times the latent's direction), clamp (the latent's activation), "
            "scale (its factor), ablate (removes the latent; needs no alpha).",
            "MODE",
        ),
    ] = "add"
    positions: Annotated[
        str, Option("all, prompt or generated; or the turns of user or assistant.", "WHERE")
    ] = "all"
    question_file: Annotated[
        Path | None, Option("Questions from .txt, .jsonl or .yaml.", "FILE", "--questions")
    ] = None
    concept: Annotated[
        str | None,
        Option("Words that the answer should turn to, separated by commas.", "WORDS"),
    ] = None
    language: Annotated[
        str | None, Option("Or a language: en, fr, de, es, it, pt or nl.", "CODE")
    ] = None
    wish: Annotated[
        str | None,
        Option(
            "The same as a system prompt, which is tried beside it; by default the language, the "
            "concept's words or the latent's.",
            "TEXT",
        ),
    ] = None
    control: Annotated[bool, Option("Sweep a random direction beside it.")] = True
    model: str | None = None
    revision: str | None = None
    data: Annotated[str, Option("Dialogues that latents are measured on.", "SOURCE")] = "embedded"
    dialogues: Annotated[int, Option("How many of them.", "N", min=1)] = 200
    max_new_tokens: Annotated[int, Option("Length of each answer, at most.", "N", min=1)] = 200
    temperature: Annotated[float, Option("0: greedy.", "T", min=0, max=100)] = 0.0
    seed: Annotated[
        int, Option("Of sampling and the random direction.", "N", min=0, max=2**63 - 1)
    ] = 0
    judge: Annotated[
        str | None,
        Option("A chat model that rates the answers: on the Hub, or of --judge-url.", "MODEL"),
    ] = None
    judge_url: Annotated[
        str | None,
        Option(
            "Its server, as http://127.0.0.1:8000/v1; a key is read from FASTZOO_JUDGE_KEY.", "URL"
        ),
    ] = None
    judge_cache: Annotated[
        Path | None,
        Option("Keeps the judge's replies: what was rated is not asked again.", "FILE"),
    ] = None

    @property
    def words(self) -> list[str]:
        """The concept's words."""
        return [word.strip() for word in (self.concept or "").split(",") if word.strip()]

    def check(self) -> None:
        """Raise InputError for settings that do not go together."""
        if not self.latents and not self.auto:
            raise InputError("say which latent with --latent, or let --auto find one")
        if self.auto and self.mode != "add":
            raise InputError(
                f"--auto finds latents to add; with --mode {self.mode} say which latent"
            )
        if self.special and (not self.auto or self.latents):
            raise InputError("--special goes with --auto, and not with --latent")
