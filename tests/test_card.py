"""Cards: what users typed cannot act as markup, and no card ever fails a save."""

from __future__ import annotations

import copy
import json
import logging
from typing import Any

import pytest
import yaml

from fastzoo.card import base_licence, escape, render_card
from fastzoo.config import load_recipe
from fastzoo.metrics import DEFINITIONS, SUBSETS

HOSTILE = (
    "evil | name\n# <script>alert(1)</script> `x` [a](javascript:b) {{ 7*7 }} {% raw %} $x$ \u202e"
)


def example(name: str = "org/Model-Instruct") -> tuple[dict[str, Any], dict[str, Any]]:
    """A record and figures as a run writes them."""
    source = {
        "name": "mine.jsonl",
        "kind": "file",
        "revision": "ab" * 32,
        "source_rows": 9,
        "rows": 9,
        "used": 7,
        "truncated": 1,
        "special_text": 3,
        "tokens": 80,
        "epochs": 0,
        "skipped": {"empty": 2},
    }
    record = {
        "library": "fastzoo",
        "format": 1,
        "name": "model-L3-8x-jumprelu",
        "sae": {
            "architecture": "jumprelu",
            "layer": 3,
            "expansion": 8,
            "method": "fast",
            "d_in": 4,
            "d_sae": 32,
            "hook_folder": "blocks.3.hook_resid_post",
            "activation_scale": 0.5,
        },
        "base_model": {"name": name, "sha": "c" * 40, "class": "Qwen2", "dtype": "float32"},
        "training_data": source,
        "evaluation_data": copy.deepcopy(source),
        "special_tokens": {"1": "<|im_start|>"},
        "recipe": load_recipe(None).model_dump(),
        "compute": {"step": "cuda", "precision": "tf32"},
        "versions": {"torch": "2.13.0"},
    }
    metrics = {m: {s: {"value": 0.25, "tokens": 80} for s in SUBSETS} for m in DEFINITIONS}
    metrics["dead_latents"] = {"all": {"value": 3, "share": 3 / 32, "tokens": 80}}
    training = {"steps": 5, "tokens": 50, "dead_latents": 1, "dead_window_steps": 100}
    figures = {
        "name": record["name"],
        "split": record["evaluation_data"],
        "definitions": DEFINITIONS,
        "metrics": metrics,
        "training": training,
        "paper": {"log2_mse": -1.5, "log2_mse_special": -2.5},
    }
    return record, figures


def split(card: str) -> tuple[dict[str, Any], str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_card_holds_its_figures_and_the_papers_beside_them() -> None:
    record, figures = example()
    front, body = split(render_card(record, figures))
    assert front["base_model"] == "org/Model-Instruct"
    assert front["base_model_relation"] == "adapter"
    (result,) = front["model-index"][0]["results"]
    assert {"type": "fvu", "name": "FVU", "value": 0.25} in result["metrics"]
    assert "log2 MSE -1.5" in body and "| FVU | 0.25 | 0.25 | 0.25 |" in body
    assert "empty: 2" in body and 'MODEL = "org/Model-Instruct"' in body


def test_what_users_typed_is_shown_and_does_nothing() -> None:
    record, figures = example(name=HOSTILE)
    for data in (record["training_data"], record["evaluation_data"]):
        data["name"] = HOSTILE
        data["skipped"] = {HOSTILE: 1}
    front, body = split(render_card(record, figures))
    assert front["model-index"][0]["results"][0]["dataset"]["type"] == HOSTILE
    text = body.replace(json.dumps(HOSTILE)[:5], "")
    outside = "".join(part for i, part in enumerate(text.split("```")) if i % 2 == 0)
    assert "<script" not in outside and "](javascript" not in outside
    assert "49" not in outside and "\n# <" not in outside and "\u202e" not in outside
    rows = [line for line in outside.splitlines() if line.startswith("| data |")]
    assert len(rows) == 1 and rows[0].replace(r"\|", "").count("|") == 3


@pytest.mark.parametrize("broken", ["sae", "base_model", "recipe", "training_data"])
def test_a_card_that_cannot_be_rendered_does_not_fail(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    record, figures = example()
    del record[broken]
    with caplog.at_level(logging.WARNING):
        card = render_card(record, figures)
    front, body = split(card)
    assert front["tags"] == ["sparse-autoencoder"] and "model-L3-8x-jumprelu" in body
    assert "could not be rendered" in caplog.text


def test_missing_values_are_dashes() -> None:
    record, figures = example()
    figures["metrics"]["ce_recovered"]["special"]["value"] = None
    front, body = split(render_card(record, figures))
    assert "| CE recovered | 0.25 | — | 0.25 |" in body
    types = [m["type"] for m in front["model-index"][0]["results"][0]["metrics"]]
    assert "ce_recovered" in types and "ce_recovered_special" not in types


def test_escape_leaves_plain_words_alone() -> None:
    assert escape("plain words, 3.5 and a-b") == "plain words, 3.5 and a-b"
    assert escape("a|b\nc") == r"a\|b c"


def test_licences_of_derivatives() -> None:
    assert base_licence("meta-llama/Llama-3.2-1B-Instruct") == {"license": "llama3.2"}
    assert base_licence("Qwen/Qwen2.5-7B-Instruct") == {"license": "apache-2.0"}
    qwen_3b = base_licence("Qwen/Qwen2.5-3B-Instruct")
    assert qwen_3b and qwen_3b["license"] == "other"
    assert base_licence("someone/unknown") is None
