"""How the field's libraries lay out SAEs in folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastzoo.core.errors import InputError

LAYOUTS = (
    (("cfg.json", "sae_weights.safetensors"), ("sparsity.safetensors",)),  # SAELens
    (("cfg.json", "sae.safetensors"), ()),  # sparsify
    (("params.npz",), ()),  # Gemma Scope
)
"""Files that make a folder an SAE, and files that may come with them."""
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
"""Formats that can run code when loaded."""


def sae_folders(paths: Iterable[str]) -> dict[str, list[str]]:
    """The folders among ``paths`` that hold an SAE (the root is ''), each with all files that its
    layout can have."""
    present = set(paths)
    found = {}
    for folder in sorted({path.rpartition("/")[0] for path in present}):
        prefix = f"{folder}/" if folder else ""
        for required, optional in LAYOUTS:
            if present.issuperset(prefix + name for name in required):
                found[folder] = [prefix + name for name in (*required, *optional)]
                break
    return found


def refuse_pickle(path: Path) -> None:
    """Raise InputError if ``path`` is named as a pickle."""
    if path.suffix in PICKLES:
        reason = "is a pickle, which can run code when loaded, and is refused"
        raise InputError(f"'{path}' {reason}; convert it to safetensors where you trust it")
