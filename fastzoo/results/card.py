"""Model cards that write themselves from a run's record and figures, and never fail a save."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastzoo.config.recipe import EMBEDDED_MODEL
from fastzoo.core.files import resource
from fastzoo.results.card_sections import PLAIN, mark_card
from fastzoo.results.licences import base_licence
from fastzoo.saes import ARCHITECTURES

if TYPE_CHECKING:
    from jinja2 import Template
from fastzoo.results.figures import ROWS, count, show, shown

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")

COMMIT = re.compile(r"[0-9a-f]{40}")

PAPER_TOKENS = 40_960_000
"""What each of the paper's SAEs was trained on."""


def render_card(
    record: Mapping[str, Any], figures: Mapping[str, Any], repo_id: str | None = None
) -> str:
    """The README.md of an SAE from its ``config.json`` and ``metrics.json``.

    Whatever goes wrong, a card comes back: at worst a plain one, and the cause is logged.

    Args:
        repo_id: where the SAE is published (``org/name``); without it the card is for the local folder.
    """
    try:
        return mark_card(front_matter(record, figures), _body(record, figures, repo_id))
    except Exception as error:  # a card must never cost a trained SAE
        logger.warning("the card could not be rendered from its template: %r", error)
        title = escape(record.get("name", "SAE"))
        body = f"# {title}\n\nSee config.json, metrics.json.\n"
        body = f"<!-- fastzoo:{PLAIN} -->\n{body}<!-- /fastzoo:{PLAIN} -->\n"
        return mark_card({"tags": ["sparse-autoencoder"]}, body)


def template(name: str) -> Template:
    """A template of ``cards/``; in Markdown, values go through its filter ``md``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(resource("cards")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  Markdown: values go through ``escape`` below
    )
    environment.filters |= {"md": escape, "figure": show, "count": count}
    return environment.get_template(name)


def _body(record: Mapping[str, Any], figures: Mapping[str, Any], repo_id: str | None) -> str:
    base = record["base_model"]
    on_hub = bool(HUB_ID.fullmatch(base["name"]))
    return template("sae.md.j2").render(
        record=record,
        figures=figures,
        repo_id=repo_id,
        rows=ROWS,
        architecture=ARCHITECTURES[record["sae"]["architecture"]],
        embedded=base["name"] == EMBEDDED_MODEL,
        on_hub=on_hub,
        revision=base["sha"] if on_hub and COMMIT.fullmatch(base["sha"] or "") else None,
        licence=base_licence(base["name"]),
        paper_tokens=PAPER_TOKENS,
    )


def front_matter(record: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """The card's metadata: base model, licence, data sets, tags and the model-index."""
    sae, base = record["sae"], record["base_model"]
    front: dict[str, Any] = {
        "library_name": "saelens",
        "tags": ["sparse-autoencoder", "sae", "fastzoo", sae["architecture"], sae["method"]],
    }
    if licence := base_licence(base["name"]):
        front |= licence.metadata
    if HUB_ID.fullmatch(base["name"]):
        # Of the Hub's four relations the least wrong: without one it is listed as a finetune.
        front |= {"base_model": base["name"], "base_model_relation": "adapter"}
    evaluation = record["evaluation_data"]
    # What lies on this machine has no place in the Hub's list, even if a repository has its name.
    sources = (record["training_data"], evaluation)
    on_hub = [x["name"] for x in sources if x["kind"] == "hub" and HUB_ID.fullmatch(x["name"])]
    if on_hub:
        front["datasets"] = list(dict.fromkeys(on_hub))
    front["model-index"] = [
        {
            "name": record["name"],
            "results": [
                {
                    "task": {"type": "feature-extraction", "name": "Reconstruction"},
                    "dataset": {
                        "type": evaluation["name"],
                        "name": f"held-out dialogues of {evaluation['name']}",
                    },
                    "metrics": _index(figures["metrics"]),
                }
            ],
        }
    ]
    return front


def _index(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure of the card's table that there is, as the Hub's model-index has them."""
    found = []
    for figure, subset in shown("subsets"):
        value = metrics.get(figure.key, {}).get(subset, {}).get("value")
        if value is not None and not figure.counts:
            name = figure.name(subset)
            found.append({"type": figure.column(subset), "name": name, "value": value})
    dead = metrics["dead_latents"]["all"]
    found.append({"type": "dead_latents", "name": "Dead latents", "value": dead["value"]})
    found.append(
        {"type": "dead_latents_share", "name": "Share of dead latents", "value": dead["share"]}
    )
    return found


def escape(value: object) -> str:
    """Text as Markdown shows it: one line, nothing in it acts as markup, HTML or a table cell."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", flat)
