"""The paper's grid of 240 SAEs (Li et al. 2025, arXiv 2506.07691, Table 1) and its figures."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

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
    text = files("fastzoo").joinpath("paper/mse.csv").read_text(encoding="utf-8")
    return {
        SAEName(
            model_part(row["base_model"]),
            int(row["layer"]),
            int(row["expansion"]),
            row["architecture"],
            row["method"],
        ): PaperFigures(float(row["log2_mse"]), float(row["log2_mse_special"]))
        for row in csv.DictReader(text.splitlines())
    }
