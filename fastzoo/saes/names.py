"""The one key of everything: ``<model>-L<layer>-<expansion>x-<architecture>[-<method>]``.

The same string is the command-line name, the Hub repository name and the local folder name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from fastzoo.core.errors import InputError
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.saes import ARCHITECTURES

Method = Literal["fast", "bt-f", "bt-p"]
METHODS: tuple[Method, ...] = get_args(Method)
"""What the language model is fed: dialogues one by one, or blocks cut from chat or plain text."""

_PATTERN = re.compile(
    r"(?P<model>[a-z0-9][a-z0-9._-]*)-L(?P<layer>\d{1,4})-(?P<expansion>[1-9]\d{0,3})x"
    rf"-(?P<architecture>[a-z]+)(?:-(?P<method>{'|'.join(METHODS)}))?",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, order=True)
class SAEName:
    """A parsed name. ``str()`` of it is the canonical form (method left out when it is fast)."""

    model: str
    layer: int
    expansion: int
    architecture: str
    method: str = "fast"

    def __str__(self) -> str:
        suffix = "" if self.method == "fast" else f"-{self.method}"
        return f"{self.model}-L{self.layer}-{self.expansion}x-{self.architecture}{suffix}"

    @property
    def hook_folder(self) -> str:
        """Folder of the SAELens files inside the SAE's own folder."""
        return f"blocks.{self.layer}.hook_resid_post"


def parse_name(text: str) -> SAEName:
    """Parse a name, upper or lower case, with or without ``-fast``.

    Raises InputError, with the form and the nearest names.
    """
    match = _PATTERN.fullmatch(text)
    if match is None or match["architecture"].lower() not in ARCHITECTURES:
        hint = did_you_mean(text, map(str, zoo_names()))
        form = "<model>-L<layer>-<expansion>x-<architecture>[-bt-f|-bt-p]"
        raise InputError(f"'{one_line(text, 100)}' is not an SAE name, which reads {form}.{hint}")
    model, layer, expansion, architecture, method = match.groups(default="fast")
    return SAEName(model.lower(), int(layer), int(expansion), architecture.lower(), method.lower())


def model_part(model: str) -> str:
    """The model part of a name: a Hub id or folder without its org and a final ``-instruct``.

    ``Qwen/Qwen2.5-7B-Instruct`` gives ``qwen2.5-7b``. Characters a Hub repository name cannot hold
    become hyphens, and what would make the whole name longer than the Hub allows (96) is cut off.
    """
    last = model.rstrip("/\\").replace("\\", "/").split("/")[-1].lower()
    safe = re.sub(r"[^a-z0-9._]+|\.\.+", "-", last).strip("-._")
    part = re.sub(r"-+", "-", safe).removesuffix("-instruct")
    return part[:64].rstrip("-._") or "model"


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


@cache
def zoo_names() -> tuple[SAEName, ...]:
    """The 240 names, ordered by model, layer, expansion, architecture, method."""
    return tuple(
        SAEName(model_part(row.base_model), layer, expansion, architecture, method)
        for row in GRID
        for layer in row.layers
        for expansion in row.expansions
        for architecture in ("standard", "jumprelu")
        for method in METHODS
    )


def grid_row(name: SAEName) -> GridRow | None:
    """The row of Table 1 that ``name`` belongs to, or None."""
    return next((row for row in GRID if model_part(row.base_model) == name.model), None)
