"""Records, figures and registries of SAEs that no one trained."""

from __future__ import annotations

import copy
from typing import Any

from fastzoo.config.reading import load_recipe
from fastzoo.hub.files import HubFile
from fastzoo.hub.registry import Published, Registry, known_files
from fastzoo.results.figures import BOTH, DEFINITIONS, SUBSETS
from fastzoo.saes.names import parse_name

NAME = "qwen2.5-7b-L18-8x-jumprelu"
OUTSIDE = "tiny-chat-L1-8x-topk"

HOSTILE = "evil | name\n# <script>alert(1)</script> `x` [a](javascript:b) {{ 7*7 }} {% raw %} $x$ \u202e"


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
    metrics["dead_latents"] = {s: {"value": 3, "share": 3 / 32, "tokens": 80} for s in BOTH}
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


def published(text: str, namespace: str = "org", **figures: Any) -> Published:
    """One published SAE with made-up files."""
    name = parse_name(text)
    files = {p: HubFile(p, i + 1, f"{i:x}a" * 32) for i, p in enumerate(known_files(name))}
    return Published(name, f"{namespace}/{name}", "c" * 40, files, figures)


def registry(namespace: str, *saes: Published) -> Registry:
    return Registry(namespace, f"{namespace}/saes-{'a' * 24}", {sae.name: sae for sae in saes})
