"""Latents whose window of alphas was measured by a sweep, kept beside their SAE: ``fastzoo steer ... --keep TITLE``.

They are what somebody who has never heard of the SAE can begin with; the Space offers them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fastzoo.core.errors import InputError
from fastzoo.core.files import MAX_JSON_BYTES, sha256_of, write_json
from fastzoo.core.text import one_line
from fastzoo.hub.find import on_disk
from fastzoo.loading import open_sae
from fastzoo.saes.formats import LoadedSAE
from fastzoo.steering.outcome import Outcome
from fastzoo.steering.sweep_rows import LATENT
from fastzoo.steering.sweet_spot import EVEN

FILE = "steering.json"

WEIGHTS = "sae_weights.safetensors"

MOST = 64
"""Latents that are kept for one SAE."""


LONGEST_TITLE = 60


Raw = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Measured(BaseModel):
    """A latent that was swept: how far it can be pushed, and what came of that.

    It may come from anybody, with an SAE: nothing in it is taken as given.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    title: str = Field(min_length=1, max_length=LONGEST_TITLE)
    """What it is kept as."""
    latent: int = Field(ge=0)
    alphas: list[Raw] = Field(min_length=2, max_length=200)
    """That were tried, sorted; raw, as the next three."""
    low: Raw | None
    """Of the window; None, as the next two, where no alpha changes answers without spoiling them."""
    high: Raw | None
    best: Raw | None
    holds: bool
    """Whether the best alpha is also good on the questions that had no part in the choice."""
    effect: list[Share]
    """Of each alpha, on all questions."""
    quality: list[Share]
    question: str = Field(max_length=2000)
    """One that shows it: of those that chose the window, the one that changed most there and stayed whole."""
    questions: int = Field(ge=1)
    """How many were asked."""

    @model_validator(mode="after")
    def _fits(self) -> Measured:
        if self.alphas != sorted(set(self.alphas)):
            raise ValueError("alphas are not in order")
        if not len(self.effect) == len(self.quality) == len(self.alphas):
            raise ValueError("there are not as many effects and qualities as alphas")
        window = (self.low, self.best, self.high)
        known = [alpha for alpha in window if alpha is not None]
        if len(known) not in (0, 3) or known != sorted(known) or not set(known) <= set(self.alphas):
            raise ValueError("the window is not one of the alphas")
        return self


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    weights: str
    """SHA-256 of the weights that were steered with."""
    latents: list[Measured] = Field(max_length=MOST)


def read_measured(loaded: LoadedSAE) -> list[Measured]:
    """What is kept beside an SAE, in the order in which it came; nothing where its weights are others by now.

    Raises InputError: the file is damaged.
    """
    path = loaded.folder.parent / FILE
    if not path.is_file():
        return []
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{path}: more than {MAX_JSON_BYTES} bytes, too many for a record")
    try:
        found = _File.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}; delete it, and measure again") from None
    if beyond := [known.latent for known in found.latents if known.latent >= loaded.sae.d_sae]:
        raise InputError(f"{path}: there is no latent {beyond[0]}; delete it, and measure again")
    return found.latents if found.weights == sha256_of(loaded.folder / WEIGHTS) else []


def open_to_keep(source: str, title: str) -> LoadedSAE:
    """An SAE beside which latents can be kept. Raises InputError: its folder is not the user's own; as ``open_sae``."""
    if source.startswith("hf:") or on_disk(source) is None:
        where = f"--keep: {one_line(source)} is not a folder of fastzoo's on this machine, which could be written to"
        raise InputError(f"{where}; fastzoo pull --local-dir makes one")
    if not 0 < len(title.strip()) <= LONGEST_TITLE or not title.isprintable():
        raise InputError(f"--keep: a title has 1 to {LONGEST_TITLE} printable characters")
    loaded = open_sae(source)
    _ = read_measured(loaded)
    return loaded


def keep_latent(loaded: LoadedSAE, title: str, outcome: Outcome) -> Path:
    """Keep the latent of a sweep beside its SAE, in place of what has its title. Returns the file.

    Raises InputError: the sweep is not of one latent that is added, or has no alpha 0; too many latents.
    """
    entry = measured_of(loaded, title, outcome)
    others = [known for known in read_measured(loaded) if known.title != title]
    if len(others) >= MOST:
        raise InputError(f"--keep: {len(others)} latents are kept already; at most {MOST}")
    kept = _File(weights=sha256_of(loaded.folder / WEIGHTS), latents=[*others, entry])
    path = loaded.folder.parent / FILE
    write_json(path, kept.model_dump())
    return path


def measured_of(loaded: LoadedSAE, title: str, outcome: Outcome) -> Measured:
    """A sweep's latent as it is kept. Raises InputError."""
    spot, about = outcome.spot, outcome.about
    one = len(about["latents"]) == 1 and about["positions"] == "all"
    if spot is None or not spot.reported or not one or spot.alphas[0] < 0:
        needed = "one latent, added at all positions by no less than 0, and two questions or more"
        raise InputError(f"--keep: it takes {needed}")
    (latent,) = about["latents"]
    length = loaded.sae.W_dec[latent].float().norm().item()
    raw = {
        "raw": 1.0,
        "norm": (about["residual_norm"] or 0.0) / length,
        "max": (about["mean_max"] or {}).get(latent, 0.0),
    }[about["units"]]
    curves = list(zip(spot.chosen_on, spot.reported, strict=True))
    low, high, best = (None if alpha is None else alpha * raw for alpha in (spot.low, spot.high, spot.best))
    return Measured(
        title=title,
        latent=latent,
        alphas=[alpha * raw for alpha in spot.alphas],
        low=low,
        high=high,
        best=best,
        holds=spot.holds,
        effect=[(chose.effect.value + reported.effect.value) / 2 for chose, reported in curves],
        quality=[(chose.quality.value + reported.quality.value) / 2 for chose, reported in curves],
        question=_telling(outcome),
        questions=len(outcome.questions),
    )


def _telling(outcome: Outcome) -> str:
    """Of the questions that chose the window, the one whose answer shows best what the latent does at its best alpha,
    or at the largest."""
    spot = outcome.spot
    assert spot is not None
    at, chose = spot.alphas[-1] if spot.best is None else spot.best, range(len(outcome.questions))[EVEN]
    rows = [
        (cell, score) for cell, score in outcome.rows(LATENT) if cell.alpha == at and cell.question in chose
    ]
    _, _, _, first = max(
        (score.fault is None, score.concept or 0.0, 1 - score.kept, -cell.question) for cell, score in rows
    )
    return outcome.questions[-first].text[:2000]
