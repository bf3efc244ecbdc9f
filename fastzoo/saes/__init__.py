"""The table of SAE architectures: one file each in this package, and one entry here.

Nothing here loads torch; ``architecture(name)``, which gives the class, does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastzoo.core.errors import InputError
from fastzoo.core.text import did_you_mean

if TYPE_CHECKING:
    from fastzoo.saes.base import SAE

MOST_LATENTS = 1 << 24
"""No SAE has more, that is 1024 times the widest residual stream (16,384)."""


@dataclass(frozen=True)
class Option:
    """A recipe option of one architecture: a key of ``training`` that only it reads."""

    default: Any
    allows: Callable[[Any], bool]
    values: str
    """What ``allows`` allows, in words: ``a whole number of at least 1``."""


@dataclass(frozen=True)
class Architecture:
    """What can be said about an architecture without loading torch; its class says the rest."""

    location: str
    """``module:class`` of its ``SAE``."""
    trainable: bool = False
    """Whether that is a ``TrainableSAE``; the others load, encode, decode and evaluate."""
    card_line: str = ""
    """What the cards of trained SAEs call it."""
    encode_snippet: str = ""
    """Latents from the pre-activations ``pre`` and the file's tensors ``weights``, in plain torch."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Its own keys of a recipe's ``training``, beside those that every preset sets."""
    card_rows: Callable[[Mapping[str, Any]], dict[str, str]] = lambda training: {}
    """From ``training`` of a recipe, its own rows of the card's table of hyperparameters."""


def _jumprelu_rows(training: Mapping[str, Any]) -> dict[str, str]:
    learned = (
        "their logarithms are learned" if training["jumprelu_threshold"] == "log" else "learned directly"
    )
    bandwidth, begin = training["jumprelu_bandwidth"], training["jumprelu_initial_threshold"]
    return {"JumpReLU": f"bandwidth {bandwidth}, thresholds begin at {begin}, {learned}"}


ARCHITECTURES = {
    "standard": Architecture(
        "fastzoo.saes.standard:StandardSAE",
        trainable=True,
        card_line="standard (ReLU, L1 penalty)",
        encode_snippet="torch.relu(pre)",
    ),
    "jumprelu": Architecture(
        "fastzoo.saes.jumprelu:JumpReLUSAE",
        trainable=True,
        card_line="JumpReLU (a threshold for each latent)",
        encode_snippet='torch.relu(pre) * (pre > weights["threshold"])',
        card_rows=_jumprelu_rows,
    ),
    "topk": Architecture("fastzoo.saes.topk:TopKSAE"),
}


def trainable() -> tuple[str, ...]:
    """Names of the architectures that can be trained."""
    return tuple(name for name, entry in ARCHITECTURES.items() if entry.trainable)


def architecture(name: str) -> type[SAE]:
    """The class of an architecture; loads torch. Raises InputError: no such architecture."""
    if name not in ARCHITECTURES:
        hint = did_you_mean(name, ARCHITECTURES)
        raise InputError(f"'{name}' is not an architecture; there are {', '.join(ARCHITECTURES)}.{hint}")
    module, cls = ARCHITECTURES[name].location.split(":")
    return getattr(import_module(module), cls)
