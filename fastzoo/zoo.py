"""The paper's grid of 240 SAEs (Li et al. 2025, arXiv 2506.07691, Table 1) and its figures."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from operator import attrgetter

from fastzoo.names import METHODS, SAEName, model_part


@dataclass(frozen=True)
class GridRow:
    """One base model of Table 1. ``layers`` count from 0; the SAEs sit after them."""

    base_model: str
    d_model: int
    layers: tuple[int, ...]
    expansions: tuple[int, ...]


GRID = (
    GridRow("meta-llama/Llama-3.1-8B-Instruct", 4096, (4, 12, 18, 20, 25), (8,)),
    GridRow("meta-llama/Llama-3.2-3B-Instruct", 3072, (4, 12, 20), (8, 16)),
    GridRow("meta-llama/Llama-3.2-1B-Instruct", 2048, (4, 9, 14), (8, 16)),
    GridRow("Qwen/Qwen2.5-7B-Instruct", 3584, (4, 12, 18, 20, 25), (8,)),
    GridRow("Qwen/Qwen2.5-3B-Instruct", 2048, (4, 18, 32), (8, 16)),
    GridRow("Qwen/Qwen2.5-1.5B-Instruct", 1536, (4, 14, 24), (8, 16)),
    GridRow("Qwen/Qwen2.5-0.5B-Instruct", 896, (4, 12, 20), (8, 16)),
)
GRID_ARCHITECTURES = ("standard", "jumprelu")


@cache
def zoo_names() -> tuple[SAEName, ...]:
    """The 240 names, ordered by model, layer, expansion, architecture, method."""
    return tuple(
        SAEName(model_part(row.base_model), layer, expansion, architecture, method)
        for row in GRID
        for layer in row.layers
        for expansion in row.expansions
        for architecture in GRID_ARCHITECTURES
        for method in METHODS
    )


def grid_row(name: SAEName) -> GridRow | None:
    """The row of Table 1 that ``name`` belongs to, or None."""
    for row in GRID:
        if model_part(row.base_model) == name.model:
            return row
    return None


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
        for name, row in _paper_rows("mse.csv")
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
    for name, row in _paper_rows("special_token_features.csv"):
        latent = PaperSpecialLatent(
            int(row["token_id"]),
            row["token"],
            int(row["rank"]),
            int(row["latent"]),
            float(row["mean_max_activation"]),
        )
        found.setdefault(name, []).append(latent)
    order = attrgetter("token_id", "rank")
    return {name: tuple(sorted(latents, key=order)) for name, latents in found.items()}


def _paper_rows(file: str) -> Iterator[tuple[SAEName, dict[str, str]]]:
    """The rows of a transcribed table, with the SAE that each is about."""
    text = files("fastzoo").joinpath(f"paper/{file}").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        name = SAEName(
            model_part(row["base_model"]),
            int(row["layer"]),
            int(row["expansion"]),
            row["architecture"],
            row["method"],
        )
        yield name, row
