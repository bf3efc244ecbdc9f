"""What a run says about itself: the settings and the machine it depends on, the facts in its records."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from fastzoo.config.recipe import Recipe, recipe_settings
from fastzoo.data.sequences import described
from fastzoo.data.split import Data
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.load import ModelSource, dtype_on
from fastzoo.results.folder import RunFacts, public_name, versions


def run_settings(data: Data, recipe: Recipe, source: ModelSource, device: torch.device) -> dict[str, Any]:
    """What runs with the same results have in common: recipe, model and data by content, on any machine."""
    model = {
        "sha": source.sha,
        "dtype": dtype_on(recipe.model, device),
        **source.contents(data.chat.tokenizer),
    }
    return {
        **recipe_settings(recipe),
        **model_settings(model),
        "data.revision": data.stream.rows.info.revision,
        "evaluation.revision": data.held_out_info.revision,
    }


def model_settings(base_model: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's settings say of a model, of that in its records; older records have less."""
    keys = {
        "sha": "model.revision",
        "dtype": "model.computed_in",
        "config": "model.config",
        "tokenizer": "model.tokenizer",
        "chat_template": "model.chat_template",
        "special_tokens": "model.special_tokens",
    }
    return {key: base_model[name] for name, key in keys.items() if name in base_model}


def machine() -> dict[str, Any]:
    """What a run's weights depend on besides its settings, as a rule in their last bits only."""
    # Libraries choose their loops by what a CPU can do.
    device = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {**versions(), "device": device, "threads": torch.get_num_threads()}


def run_facts(data: Data, recipe: Recipe, source: ModelSource, reader: ResidualReader) -> RunFacts:
    """What all records of the run share."""
    # Those seen: a tokenizer may reserve hundreds that no dialogue has.
    ids = sorted({int(i) for s in data.held_out for i in s.ids[s.special]})
    tokens = data.chat.tokenizer.convert_ids_to_tokens(ids)
    alone = {"one_by_one": reader.alone} if reader.alone else {}
    return RunFacts(
        base_model={
            "name": public_name(source.name),
            "sha": source.sha,
            "weights": source.weights,
            **source.contents(data.chat.tokenizer),
            "class": type(reader.model).__name__,
            "dtype": str(reader.dtype).removeprefix("torch."),
            **alone,
        },
        training_data=described(data.stream.rows.info, data.stream.counts),
        evaluation_data=described(data.held_out_info, data.held_out_counts),
        special_tokens={str(i): token for i, token in zip(ids, tokens, strict=True)},
        recipe=recipe,
    )
