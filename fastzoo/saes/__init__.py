"""SAE architectures: one file each, and one line here.

Importing this package is cheap; ``architecture(name)`` loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fastzoo.core.errors import InputError
from fastzoo.core.text import did_you_mean

if TYPE_CHECKING:
    from fastzoo.saes.base import SAE


ARCHITECTURES = {
    "standard": "fastzoo.saes.standard:StandardSAE",
    "jumprelu": "fastzoo.saes.jumprelu:JumpReLUSAE",
    "topk": "fastzoo.saes.topk:TopKSAE",
}
"""Name to ``module:class``."""

TRAINABLE = ("standard", "jumprelu")
"""The rest load, encode, decode and evaluate."""

MOST_LATENTS = 1 << 24
"""More than any SAE has: 1024 times the widest residual stream (16,384). Files that say more lie."""


def architecture(name: str) -> type[SAE]:
    """The class of an architecture.

    Raises:
        InputError: no such architecture.
    """
    if name not in ARCHITECTURES:
        raise InputError(
            f"'{name}' is not an architecture; there are {', '.join(ARCHITECTURES)}."
            + did_you_mean(name, ARCHITECTURES)
        )
    module, cls = ARCHITECTURES[name].split(":")
    return getattr(import_module(module), cls)
