"""fastzoo: sparse autoencoders of instruct models, trained on whole dialogues (FAST).

``import fastzoo`` is cheap: torch and transformers are loaded when a name that needs them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastzoo.formats import load_sae, save_sae
    from fastzoo.names import SAEName, parse_name
    from fastzoo.pulling import pull
    from fastzoo.steering import steer

__all__ = ["SAEName", "__version__", "load_sae", "parse_name", "pull", "save_sae", "steer"]

_WHERE = {
    "SAEName": "fastzoo.names",
    "parse_name": "fastzoo.names",
    "load_sae": "fastzoo.formats",
    "pull": "fastzoo.pulling",
    "save_sae": "fastzoo.formats",
    "steer": "fastzoo.steering",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'fastzoo' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
