"""What the readers of all formats share: what they give back, and checks before weights are loaded."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastzoo.core.errors import InputError
from fastzoo.core.files import machine_memory
from fastzoo.core.text import one_line
from fastzoo.saes import MOST_LATENTS
from fastzoo.saes.base import SAE
from fastzoo.saes.places import layer_named


@dataclass
class LoadedSAE:
    """Where an SAE came from and what its files say; the SAE itself is ``sae``."""

    sae: SAE
    folder: Path
    """Of the weights."""
    layout: str
    """Which library's format it is, such as ``saelens``."""
    layer: int | None = None
    model_name: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """Its cfg.json, or {}."""
    record: dict[str, Any] = field(default_factory=dict)
    """fastzoo's own config.json, or {}."""
    model_revision: str | None = None
    """Of the model on the Hub, where the files say one."""
    centred: bool = False
    """Whether TransformerLens took the mean out of the residual stream, which it does where a LayerNorm reads it."""

    def refuse_centred(self, config: Any) -> None:
        """Raise InputError where the model of a transformers configuration has the mean that the SAE never saw."""
        if self.centred and not hasattr(config.get_text_config(), "rms_norm_eps"):
            how = "of weights centred by TransformerLens, as sae-lens before 3.20 had them"
            wrong = 'if it was not, give its model_from_pretrained_kwargs {"center_writing_weights": false}'
            raise InputError(
                f"{self.folder}: trained on a residual stream {how}; use it with TransformerLens, or {wrong}"
            )


def size_at(config: Mapping[str, Any], key: str, path: Path) -> int:
    """A width that a configuration, the file ``path``, gives. Raises InputError."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MOST_LATENTS:
        raise InputError(f"{path}: {key} is {one_line(value, 40)}, not a sensible size")
    return value


def check_memory(shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Refuse weights that this machine cannot hold in float32. Raises InputError."""
    needed, there = 4 * sum(map(math.prod, shapes.values())), machine_memory()
    if needed > there:
        raise InputError(
            f"{path}: {needed >> 20} MiB of weights; this machine has {there >> 20} MiB of memory"
        )


def read_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], optional: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, once its header is found to be as expected.

    Raises InputError: other names, shapes or types, or no readable file.
    """
    allowed = {**shapes, **(optional or {})}
    try:
        str(path).encode()
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if missing := set(shapes) - names:
                raise InputError(f"{path}: lacks {', '.join(sorted(missing))}")
            if extra := sorted(names - set(allowed)):
                raise InputError(f"{path}: unexpected {one_line(', '.join(extra[:3]), 100)}")
            for name in sorted(names):
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                if shape != allowed[name]:
                    raise InputError(f"{path}: {name} has shape {shape}; its cfg.json says {allowed[name]}")
                if dtype not in ("F64", "F32", "F16", "BF16"):
                    raise InputError(f"{path}: {name} is {dtype}, not floating point")
            check_memory(shapes, path)
            return {name: file.get_tensor(name) for name in names}
    except UnicodeEncodeError:
        raise InputError(f"{path}: safetensors opens no path that is not UTF-8; rename the folder") from None
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except (SafetensorError, OSError, RuntimeError, struct.error) as error:  # mmap is torch's
        raise InputError(f"{path}: not a readable safetensors file ({one_line(error, 100)})") from None


@torch.no_grad()
def build(
    kind: type[SAE],
    d_in: int,
    d_sae: int,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    path: Path,
) -> SAE:
    """An SAE of these weights, named as its attributes; ``path`` is its configuration's file. Raises
    InputError."""
    try:
        sae = kind.from_config(d_in, d_sae, config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    for name in kind.shapes(d_in, d_sae):
        getattr(sae, name).copy_(weights[name])
    return sae


def layer_number(text: str) -> int | None:
    """The number of a layer as names have it: up to four plain digits."""
    return int(text) if re.fullmatch(r"[0-9]{1,4}", text) else None


def layer_of_folder(weights: Path) -> int | None:
    """The layer that the folders of a weights file are named after; None: after none.

    Raises InputError: they are named after another place than a residual stream.
    """
    # As it is called, and as what a link leads to is called.
    layers = [
        layer_named(os.path.abspath(weights)),
        layer_named(str(weights.parent.resolve() / weights.name)),
    ]
    return next((layer for layer in layers if layer is not None), None)
