"""How the field's libraries lay out SAEs in folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fastzoo.core.errors import InputError


class Layout(NamedTuple):
    """A folder's files in one library's format; ``fastzoo.saes.formats.<module>`` reads it."""

    library: str
    module: str
    weights: str
    config: tuple[str, ...] = ()
    """Without these, too, it is no SAE."""
    optional: tuple[str, ...] = ()
    """Files that may come with them."""


LAYOUTS = (
    Layout("SAELens", "saelens", "sae_weights.safetensors", ("cfg.json",), ("sparsity.safetensors",)),
    Layout("sparsify", "sparsify", "sae.safetensors", ("cfg.json",)),
    Layout("Gemma Scope", "gemma_scope", "params.npz"),
)
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
"""Formats that can run code when loaded."""


def sae_folders(paths: Iterable[str]) -> dict[str, list[str]]:
    """The folders among ``paths`` that hold an SAE (the root is ''), each with all files that its
    layout can have."""
    present = set(paths)
    found = {}
    for folder in sorted({path.rpartition("/")[0] for path in present}):
        prefix = f"{folder}/" if folder else ""
        for layout in LAYOUTS:
            required = (*layout.config, layout.weights)
            if present.issuperset(prefix + name for name in required):
                found[folder] = [prefix + name for name in (*required, *layout.optional)]
                break
    return found


def refuse_pickle(path: Path) -> None:
    """Raise InputError if ``path`` is named as a pickle."""
    if path.suffix in PICKLES:
        reason = "is a pickle, which can run code when loaded, and is refused"
        raise InputError(f"'{path}' {reason}; convert it to safetensors where you trust it")
