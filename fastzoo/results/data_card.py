"""The card of a data set of ours, from its manifest and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastzoo.core.strict_yaml import dump_yaml
from fastzoo.results.card import template
from fastzoo.results.card_merge import mark_card

PURPOSES = {
    "train": "training",
    "reconstruction": "measuring reconstruction",
    "interpretability": "reading what latents respond to",
    "steering": "finding latents to steer with",
    "steering_trial": "trying them",
}

LANGUAGES = 40
"""Named in the card; the manifest has all."""

LICENCES = frozenset(
    "apache-2.0 mit odc-by cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-sa-3.0 cdla-permissive-2.0 "
    "cdla-sharing-1.0 odbl openrail llama3.1 llama3.2 gemma".split()
)
"""Those of the Hub's list that chat sets have."""

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""The Hub's size categories up to so many rows."""


def render_data_card(manifest: Mapping[str, Any], repo_id: str | None = None) -> str:
    """The README.md of a data set; ``repo_id`` is where it is published (``org/name``)."""
    languages = list(manifest["languages"].items())
    body = template("data.md.j2").render(
        manifest=manifest,
        repo_id=repo_id,
        purposes=PURPOSES,
        languages=languages[:LANGUAGES],
        others=sum(n for _, n in languages[LANGUAGES:]),
        config=dump_yaml(manifest["config"]).strip(),
    )
    return mark_card(_front_matter(manifest), body)


def _front_matter(manifest: Mapping[str, Any]) -> dict[str, Any]:
    splits = manifest["splits"]
    rows = sum(split["rows"] for split in splits.values())
    names = {source["licence"] for source in manifest["sources"]}
    licence = names.pop() if len(names) == 1 else None
    files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in splits]
    return {
        "pretty_name": manifest["name"],
        **_licence(licence),
        "tags": ["sparse-autoencoder", "fast", "fastzoo", manifest["kind"]],
        "task_categories": ["text-generation"],
        "size_categories": [next((name for most, name in SIZES if rows < most), "1M<n<10M")],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _licence(name: str | None) -> dict[str, str]:
    """The Hub takes one licence, of its list, or "other" with a name."""
    if name in LICENCES:
        return {"license": name}
    return {
        "license": "other",
        "license_name": re.sub(r"[^a-z0-9.-]+", "-", (name or "see-the-rows").lower()),
    }
