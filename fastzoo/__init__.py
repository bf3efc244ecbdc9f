"""fastzoo: sparse autoencoders of instruct models, trained on whole dialogues (FAST).

``import fastzoo`` is cheap: torch and transformers are loaded when a name that needs them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastzoo.core.version import __version__

if TYPE_CHECKING:
    from fastzoo.data.special_tokens import answer_starts
    from fastzoo.hub.pull import pull
    from fastzoo.interpret.output_score import output_scores
    from fastzoo.interpret.statistics import LatentStatistics, statistics
    from fastzoo.lm.logit_lens import logit_lens
    from fastzoo.loading import assemble, load_sae
    from fastzoo.saes.formats import save_sae
    from fastzoo.saes.names import SAEName, parse_name
    from fastzoo.steering.hooks import steer

__all__ = [
    "LatentStatistics",
    "SAEName",
    "__version__",
    "answer_starts",
    "assemble",
    "load_sae",
    "logit_lens",
    "output_scores",
    "parse_name",
    "pull",
    "save_sae",
    "statistics",
    "steer",
]

_WHERE = {
    "SAEName": "fastzoo.saes.names",
    "parse_name": "fastzoo.saes.names",
    "load_sae": "fastzoo.loading",
    "pull": "fastzoo.hub.pull",
    "save_sae": "fastzoo.saes.formats",
    "steer": "fastzoo.steering.hooks",
    "assemble": "fastzoo.loading",
    "LatentStatistics": "fastzoo.interpret.statistics",
    "statistics": "fastzoo.interpret.statistics",
    "answer_starts": "fastzoo.data.special_tokens",
    "output_scores": "fastzoo.interpret.output_score",
    "logit_lens": "fastzoo.lm.logit_lens",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'fastzoo' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
