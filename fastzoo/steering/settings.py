"""The settings of ``fastzoo steer``: one field each, from which the command line makes its option.

Loads neither torch nor pydantic: every ``fastzoo --help`` reads this.
"""

# ruff: noqa: RUF009 (option is dataclasses.field)

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastzoo.core.errors import InputError

PAPER_ALPHAS = (0.0, 15.0, 25.0, 50.0, 100.0, 150.0, 200.0)
"""Raw, as in arXiv 2506.07691; they fit its models and no others."""

NORM_ALPHAS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.8, 1.2)
"""In units of the mean norm of the residual stream. Fitted on the embedded toy model."""


def option(help: str, metavar: str | None = None, *names: str, default: Any = None, **how: Any) -> Any:
    """A setting with what typer's ``Option`` takes: ``names`` where the field's is not the option's."""
    given = {"default_factory": list} if default is list else {"default": default}
    return field(**given, metadata={"names": names, "help": help, "metavar": metavar, **how})


@dataclass(frozen=True, kw_only=True)
class SteerSettings:
    """What one run of ``fastzoo steer`` is to do."""

    source: str
    questions: list[str] = field(default_factory=list)
    latents: list[int] = option("Latents to steer with, all at once.", "K", "--latent", default=list)
    alphas: list[float] = option(
        "Strengths, several after one --alpha; by default the paper's for its models, 0 to 1.2 norms for others.",
        "A",
        "--alpha",
        default=list,
    )
    auto: bool = option(
        "Find the latent (of those given, or of all) and window.", None, "--auto", default=False
    )
    special: bool = option("--auto among the latents of special tokens.", None, "--special", default=False)
    candidates: int = option("How many latents --auto tries at first.", "N", default=256, min=1)
    units: str | None = option(
        "Of alpha: raw; max (the latent's mean maximum); norm (the residual stream's).", "UNITS"
    )
    mode: str = option(
        "What alpha is: add (times the latent's direction), clamp (the latent's activation), scale "
        "(its factor), ablate (removes the latent; needs no alpha).",
        "MODE",
        default="add",
    )
    positions: str = option(
        "all, prompt or generated; or the turns of user or assistant.", "WHERE", default="all"
    )
    question_file: Path | None = option("Questions from .txt, .jsonl or .yaml.", "FILE", "--questions")
    concept: str | None = option("Words that the answer should turn to, separated by commas.", "WORDS")
    language: str | None = option("Or a language: en, fr, de, es, it, pt or nl.", "CODE")
    wish: str | None = option(
        "The same as a system prompt, which is tried beside it; by default the language, the concept's words or "
        "the latent's.",
        "TEXT",
    )
    control: bool = option("Sweep a random direction beside it.", default=True)
    model: str | None = None
    revision: str | None = None
    data: str | None = option(
        "Dialogues that latents are measured on (default: those held out from the training).", "SOURCE"
    )
    dialogues: int = option("How many of them.", "N", default=200, min=1)
    max_new_tokens: int = option("Length of each answer, at most.", "N", default=200, min=1)
    temperature: float = option("0: greedy.", "T", default=0.0, min=0, max=100)
    seed: int = option("Of sampling and the random direction.", "N", default=0, min=0, max=2**63 - 1)
    judge: str | None = option("A chat model that rates the answers: on the Hub, or of --judge-url.", "MODEL")
    judge_url: str | None = option(
        "Its server, as http://127.0.0.1:8000/v1; a key is read from FASTZOO_JUDGE_KEY.", "URL"
    )
    judge_cache: Path | None = option("Keeps the judge's replies: what was rated is not asked again.", "FILE")

    @property
    def words(self) -> list[str]:
        """The concept's words."""
        return [word.strip() for word in (self.concept or "").split(",") if word.strip()]

    def check(self) -> None:
        """Raise InputError for settings that do not go together."""
        if not self.latents and not self.auto:
            raise InputError("say which latent with --latent, or let --auto find one")
        if self.auto and self.mode != "add":
            raise InputError(f"--auto finds latents to add; with --mode {self.mode} say which latent")
        if self.special and (not self.auto or self.latents):
            raise InputError("--special goes with --auto, and not with --latent")
