"""The paper's grid of 240 SAEs (Li et al. 2025, arXiv 2506.07691, Table 1) and its figures."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from operator import attrgetter

from fastzoo.saes.names import SAEName, model_part


@dataclass(frozen=True)
class PaperFigures:
    """What the paper reports: log2 of the MSE, over all tokens and over special tokens."""

    log2_mse: float
    log2_mse_special: float


@cache
def paper_figures() -> dict[SAEName, PaperFigures]:
    """The 240 reconstruction figures of the paper's Appendix D, by name."""
    return {
        name: PaperFigures(float(row["log2_mse"]), float(row["log2_mse_special"]))
        for name, row in _paper_rows("paper_mse.csv")
    }


@dataclass(frozen=True)
class PaperSpecialLatent:
    """One of the five latents that the paper reports for a special token."""

    token_id: int
    token: str
    rank: int
    """1 to 5."""
    latent: int
    mean_max_activation: float
    """Mean over samples of the largest activation on the token."""


@cache
def paper_special_latents() -> dict[SAEName, tuple[PaperSpecialLatent, ...]]:
    """The 795 latents of the paper's Appendix F.3 (36 SAEs), by name; ordered by token id and rank."""
    found: dict[SAEName, list[PaperSpecialLatent]] = {}
    for name, row in _paper_rows("paper_special_token_features.csv"):
        token_id, rank, latent = int(row["token_id"]), int(row["rank"]), int(row["latent"])
        one = PaperSpecialLatent(token_id, row["token"], rank, latent, float(row["mean_max_activation"]))
        found.setdefault(name, []).append(one)
    return {
        name: tuple(sorted(latents, key=attrgetter("token_id", "rank"))) for name, latents in found.items()
    }


def _paper_rows(file: str) -> Iterator[tuple[SAEName, dict[str, str]]]:
    """The rows of a transcribed table, with the SAE that each is about."""
    text = files("fastzoo.saes").joinpath(file).read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        model, layer, expansion = model_part(row["base_model"]), int(row["layer"]), int(row["expansion"])
        yield SAEName(model, layer, expansion, row["architecture"], row["method"]), row
