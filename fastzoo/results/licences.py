"""What the licence of a base model asks of an SAE that was trained on it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastzoo.config.recipe import EMBEDDED_MODEL


@dataclass(frozen=True)
class Licence:
    """A base model's licence as a card states it."""

    title: str
    metadata: dict[str, str]
    """``license`` and, where the Hub has no word for it, ``license_name`` and ``license_link``."""
    link: str
    built_with: str | None = None
    """What a model that was made with it must show."""
    notice: str | None = None
    """What must stand in a NOTICE file beside it."""


_LLAMA = re.compile(r"(?:meta-)?llama-(3\.[123])(?![0-9.])")

_QWEN = re.compile(r"qwen/qwen(?:2\.5|3)-")


def base_licence(base_model: str) -> Licence | None:
    """The licence of a base model; None where it is not known here.

    Llama's binds whatever is made with Llama, whose names it wants to begin with that word: here it
    is told by the name alone, whoever's the model is and wherever it lies.
    """
    name = base_model.lower()
    apache = Licence(
        "Apache License 2.0",
        {"license": "apache-2.0"},
        "https://www.apache.org/licenses/LICENSE-2.0",
    )
    if base_model == EMBEDDED_MODEL:
        return apache
    if found := _LLAMA.match(name.rpartition("/")[2]):
        title = f"Llama {found[1]} Community License"
        return Licence(
            title,
            {"license": f"llama{found[1]}"},
            f"https://www.llama.com/llama{found[1].replace('.', '_')}/license/",
            "Built with Llama",
            f"Llama {found[1]} is licensed under the {title}, "
            "Copyright © Meta Platforms, Inc. All Rights Reserved.",
        )
    if not _QWEN.match(name):
        return None
    link = f"https://huggingface.co/{base_model}/blob/main/LICENSE"
    if re.search(r"qwen2\.5-(.*-)?3b(-|$)", name):
        return Licence(
            "Qwen Research License",
            {"license": "other", "license_name": "qwen-research", "license_link": link},
            link,
            "Built with Qwen",
            "Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, "
            "Copyright (c) Alibaba Cloud. All Rights Reserved.",
        )
    if re.search(r"qwen2\.5-(.*-)?72b(-|$)", name):
        return Licence(
            "Qwen License",
            {"license": "other", "license_name": "qwen", "license_link": link},
            link,
            "Built with Qwen",
            "Qwen is licensed under the Qwen LICENSE AGREEMENT, "
            "Copyright (c) Alibaba Cloud. All Rights Reserved.",
        )
    return apache


def notice(base_model: str) -> str | None:
    """Text of the NOTICE file that the base model's licence demands; None where it demands none."""
    licence = base_licence(base_model)
    return f"{licence.notice}\n" if licence and licence.notice else None
