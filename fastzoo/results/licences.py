"""What the licence of a base model asks of an SAE that was trained on it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fastzoo.config.recipe import EMBEDDED_MODEL


@dataclass(frozen=True)
class Licence:
    """A base model's licence as a card states it."""

    title: str
    metadata: dict[str, Any]
    """``license`` and, where the Hub has no word for it, ``license_name`` and ``license_link``."""
    link: str
    built_with: str | None = None
    """What a model that was made with it must show."""
    notice: str | None = None
    """What must stand in a NOTICE file beside it."""


_APACHE = Licence(
    "Apache License 2.0", {"license": "apache-2.0"}, "https://www.apache.org/licenses/LICENSE-2.0"
)

_QWENS_OWN = (("3b", "Qwen Research License", "qwen-research"), ("72b", "Qwen License", "qwen"))
"""Sizes of Qwen2.5 that are not under Apache's licence: title of their licence, its name on the Hub."""


def base_licence(base_model: str) -> Licence | None:
    """The licence of a base model; None where it is not known here.

    Llama's licence binds whatever is made with Llama, and wants its name to begin with that word. So
    the name alone decides here, whoever published the model and wherever it lies.
    """
    name = base_model.lower()
    if base_model == EMBEDDED_MODEL:
        return _APACHE
    if found := re.match(r"(?:meta-)?llama-(3\.[123])(?![0-9.])", name.rpartition("/")[2]):
        title = f"Llama {found[1]} Community License"
        return Licence(
            title,
            {"license": f"llama{found[1]}"},
            f"https://www.llama.com/llama{found[1].replace('.', '_')}/license/",
            "Built with Llama",
            f"Llama {found[1]} is licensed under the {title}, Copyright © Meta Platforms, Inc. All Rights Reserved.",
        )
    if not re.match(r"qwen/qwen(?:2\.5|3)-", name):
        return None
    for size, title, hub_name in _QWENS_OWN:
        if re.search(rf"qwen2\.5-(.*-)?{size}(-|$)", name):
            link = f"https://huggingface.co/{base_model}/blob/main/LICENSE"
            return Licence(
                title,
                {"license": "other", "license_name": hub_name, "license_link": link},
                link,
                "Built with Qwen",
                f"Qwen is licensed under the {title.upper().replace('QWEN', 'Qwen')} AGREEMENT, "
                "Copyright (c) Alibaba Cloud. All Rights Reserved.",
            )
    return _APACHE


def notice(base_model: str) -> str | None:
    """Text of the NOTICE file that the base model's licence demands; None where it demands none."""
    licence = base_licence(base_model)
    return f"{licence.notice}\n" if licence and licence.notice else None
