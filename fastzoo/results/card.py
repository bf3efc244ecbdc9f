"""Model cards that write themselves from a run's record and figures, and never fail a save."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastzoo.config.recipe import EMBEDDED_MODEL
from fastzoo.core.files import resource
from fastzoo.core.values import value_at
from fastzoo.hub.files import SHA1
from fastzoo.results.card_merge import FALLBACK, mark_card
from fastzoo.results.figures import ROWS, SUBSETS, count, flat, leading_subset, show, shown, value_of
from fastzoo.results.licences import base_licence
from fastzoo.results.warnings import warnings_of
from fastzoo.saes import ARCHITECTURES

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from jinja2 import Template

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")


def render_card(record: Mapping[str, Any], figures: Mapping[str, Any], repo_id: str | None = None) -> str:
    """The README.md of an SAE from its ``config.json`` and ``metrics.json``.

    Whatever goes wrong, a card comes back: at worst a plain one, and the cause is logged. ``repo_id`` is where
    the SAE is published (``org/name``); without it the card is for the local folder.
    """
    try:
        base = record["base_model"]
        on_hub = bool(HUB_ID.fullmatch(base["name"]))
        metrics, sinks = figures["metrics"], record["sae"].get("sinks")
        skips_sinks = value_at(sinks, "skipped") is True
        body = template("sae.md.j2").render(
            record=record,
            figures=figures,
            repo_id=repo_id,
            rows=ROWS,
            subsets={key: subset.title for key, subset in SUBSETS.items() if key in metrics["mse"]},
            lead=leading_subset(flat(metrics)),
            sinks=sinks,
            skips_sinks=skips_sinks,
            warnings=warnings_of(
                metrics, skips_sinks=skips_sinks, wanted_l0=value_at(record, "recipe", "training", "l0")
            ),
            architecture=ARCHITECTURES[record["sae"]["architecture"]],
            embedded=base["name"] == EMBEDDED_MODEL,
            on_hub=on_hub,
            revision=base["sha"] if on_hub and SHA1.fullmatch(base["sha"] or "") else None,
            licence=base_licence(base["name"]),
            paper_tokens=40_960_000,  # of each of the paper's SAEs
        )
        return mark_card(front_matter(record, figures), body)
    except Exception as error:  # a card must never cost a trained SAE
        logger.warning("the card could not be rendered from its template: %r", error)
        body = f"# {escape(record.get('name', 'SAE'))}\n\nSee config.json, metrics.json.\n"
        return mark_card({"tags": ["sparse-autoencoder"]}, body, FALLBACK)


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


def front_matter(record: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """The card's metadata: base model, licence, data sets, tags and the model-index."""
    from huggingface_hub import ModelCardData

    sae, base = record["sae"], record["base_model"]
    licence = base_licence(base["name"])
    # A folder of this machine does not belong in the Hub's lists, even if a repository has its name.
    data = (record["training_data"], record["evaluation_data"])
    datasets = [x["name"] for x in data if x["kind"] == "hub" and HUB_ID.fullmatch(x["name"])]
    on_hub = HUB_ID.fullmatch(base["name"])
    return ModelCardData(
        library_name="saelens",
        tags=["sparse-autoencoder", "sae", "fastzoo", sae["architecture"], sae["method"]],
        **(licence.metadata if licence else {}),
        base_model=base["name"] if on_hub else None,
        # Of the Hub's four relations the least wrong: without one it is listed as a finetune.
        base_model_relation="adapter" if on_hub else None,
        datasets=list(dict.fromkeys(datasets)) or None,
        model_name=record["name"],
        eval_results=_eval_results(figures["metrics"], record["evaluation_data"]["name"]),
    ).to_dict()


def _eval_results(metrics: Mapping[str, Any], dataset: str) -> list[EvalResult]:
    """Every figure of the card's table that there is, as the Hub's model-index has them."""
    from huggingface_hub import EvalResult

    cells = [(f.column(s), f.name(s), value_of(metrics, f, s)) for f, s in shown("subsets")]
    lead = leading_subset(flat(metrics))
    share = metrics["dead_latents"][lead]["share"]
    cells += [("dead_latents_share", f"share of dead latents ({SUBSETS[lead].title})", share)]
    about: dict[str, Any] = {"task_type": "feature-extraction", "task_name": "Reconstruction"}
    about |= {"dataset_type": dataset, "dataset_name": f"held-out dialogues of {dataset}"}
    return [
        EvalResult(**about, metric_type=kind, metric_name=label, metric_value=value)
        for kind, label, value in cells
        if value is not None
    ]


def escape(value: object) -> str:
    """Text as Markdown shows it: one line, nothing in it acts as markup, HTML or a table cell."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", flat)
