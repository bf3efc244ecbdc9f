"""Model cards that write themselves from a run's record and figures, and never fail a save."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fastzoo.config import EMBEDDED_MODEL

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

ROWS = (
    ("l0", "L0"),
    ("mse", "MSE"),
    ("log2_mse", "log2 MSE"),
    ("fvu", "FVU"),
    ("ce_model", "CE of the model"),
    ("ce_reconstruction", "CE with the reconstruction"),
    ("ce_zero", "CE with zeros"),
    ("ce_recovered", "CE recovered"),
    ("delta_loss", "Delta Loss"),
    ("kl", "KL"),
)
"""Metrics of the card's table, in its order."""


def cards_folder() -> Path:
    """Where the templates are: inside an installed wheel, or beside the package in a checkout."""
    packaged = Path(__file__).parent / "cards"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "cards"


def render_card(record: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """The README.md of an SAE from its ``config.json`` and ``metrics.json``.

    Whatever goes wrong, a card comes back: at worst a plain one, and the cause is logged.
    """
    try:
        return _render(record, figures)
    except Exception as error:  # a card must never cost a trained SAE
        logger.warning("the card could not be rendered from its template: %r", error)
        title = escape(record.get("name", "SAE"))
        return f"---\ntags:\n- sparse-autoencoder\n---\n\n# {title}\n\nSee config.json, metrics.json.\n"


def _render(record: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(cards_folder()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  Markdown: values go through ``escape`` below
    )
    environment.filters["md"] = escape
    environment.filters["figure"] = show
    body = environment.get_template("sae.md.j2").render(
        record=record,
        figures=figures,
        rows=ROWS,
        embedded=record["base_model"]["name"] == EMBEDDED_MODEL,
        on_hub=bool(HUB_ID.fullmatch(record["base_model"]["name"])),
    )
    front = yaml.safe_dump(front_matter(record, figures), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{body}"


def front_matter(record: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """The card's metadata: base model, licence, data sets, tags and the model-index."""
    sae, base, data = record["sae"], record["base_model"], record["training_data"]
    front: dict[str, Any] = {
        "library_name": "saelens",
        "tags": ["sparse-autoencoder", "sae", "fastzoo", sae["architecture"], sae["method"]],
    }
    if licence := base_licence(base["name"]):
        front |= licence
    if HUB_ID.fullmatch(base["name"]):
        # Of the Hub's four relations the least wrong: without one it is listed as a finetune.
        front |= {"base_model": base["name"], "base_model_relation": "adapter"}
    if data["kind"] == "hub":
        front["datasets"] = [data["name"]]
    metrics = []
    for key, label in ROWS:
        for subset in ("all", "special"):
            value = figures["metrics"].get(key, {}).get(subset, {}).get("value")
            if value is not None:
                suffix = "" if subset == "all" else "_special"
                text = label if subset == "all" else f"{label} (special tokens)"
                metrics.append({"type": key + suffix, "name": text, "value": value})
    evaluation = record["evaluation_data"]
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
                    "metrics": metrics,
                }
            ],
        }
    ]
    return front


def base_licence(base_model: str) -> dict[str, str] | None:
    """What the base model's licence asks of a derivative; None where it is not known here."""
    name = base_model.lower()
    if base_model == EMBEDDED_MODEL:
        return {"license": "apache-2.0"}
    if name.startswith("meta-llama/llama-3.1"):
        return {"license": "llama3.1"}
    if name.startswith("meta-llama/llama-3.2"):
        return {"license": "llama3.2"}
    if name == "qwen/qwen2.5-3b-instruct":
        return {
            "license": "other",
            "license_name": "qwen-research",
            "license_link": f"https://huggingface.co/{base_model}/blob/main/LICENSE",
        }
    if name.startswith("qwen/qwen2.5-"):
        return {"license": "apache-2.0"}
    return None


def escape(value: object) -> str:
    """Text as Markdown shows it: one line, nothing in it acts as markup, HTML or a table cell."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", flat)


def show(value: float | int | None) -> str:
    """A figure with four significant digits; an em dash where there is none."""
    if value is None:
        return "—"
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}"
