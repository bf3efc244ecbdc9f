"""fastzoo: sparse autoencoders of instruct models, trained on whole dialogues (FAST).

``import fastzoo`` is cheap: torch and transformers are loaded when a name that needs them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastzoo.core.version import __version__

if TYPE_CHECKING:
    from fastzoo.config.data_build import load_build
    from fastzoo.data.special_tokens import answer_starts, roles
    from fastzoo.hub.pull import pull
    from fastzoo.interpret.output_score import output_scores
    from fastzoo.interpret.statistics import LatentStatistics, statistics
    from fastzoo.lm.logit_lens import logit_lens
    from fastzoo.loading import assemble, load_sae
    from fastzoo.results.data_set import build_data
    from fastzoo.saes.formats import save_sae
    from fastzoo.saes.names import SAEName, parse_name
    from fastzoo.steering.hooks import steer

_WHERE = {
    "LatentStatistics": "interpret.statistics",
    "SAEName": "saes.names",
    "answer_starts": "data.special_tokens",
    "assemble": "loading",
    "build_data": "results.data_set",
    "load_build": "config.data_build",
    "load_sae": "loading",
    "logit_lens": "lm.logit_lens",
    "output_scores": "interpret.output_score",
    "parse_name": "saes.names",
    "pull": "hub.pull",
    "roles": "data.special_tokens",
    "save_sae": "saes.formats",
    "statistics": "interpret.statistics",
    "steer": "steering.hooks",
}

__all__ = [
    "LatentStatistics",
    "SAEName",
    "__version__",
    "answer_starts",
    "assemble",
    "build_data",
    "load_build",
    "load_sae",
    "logit_lens",
    "output_scores",
    "parse_name",
    "pull",
    "roles",
    "save_sae",
    "statistics",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'fastzoo' has no attribute {name!r}")
    return getattr(import_module(f"fastzoo.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
