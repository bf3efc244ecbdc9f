"""A sweep in one call beside one call per cell, and what steering costs a generated token.

The model is the embedded one; the direction is random, since no time depends on it, and long enough
that answers change. Cells are compared: one call must give the same tokens.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from forward import random_model
from rounds import interleave, median_seconds, ratio
from torch import Tensor

from fastzoo import tiny
from fastzoo.config.recipe import DataSection, ModelSection
from fastzoo.data.dialogues import Dialogue
from fastzoo.data.tokenizer import ChatTokenizer
from fastzoo.lm.load import find_model, load_model, load_tokenizer
from fastzoo.saes.standard import StandardSAE
from fastzoo.steering.generate import GenerationSettings
from fastzoo.steering.hooks import steer
from fastzoo.steering.prepare import NORM_ALPHAS
from fastzoo.steering.sweep import Sweep

QUESTIONS, NEW_TOKENS, LAYER = 10, 60, 1


def measure(*, quick: bool) -> dict[str, Any]:
    """All figures of this benchmark, ratios as ``Ratio``."""
    seconds = 2.0 if quick else 60.0
    source = find_model(ModelSection())
    model = load_model(source, ModelSection(), torch.device("cpu"))
    sweep = a_sweep(model, load_tokenizer(source))
    one = sweep.cells()
    each = one_by_one(sweep)
    if [cell.ids for cell in one] != each:
        raise RuntimeError("one call and single calls give other tokens")
    times = interleave({"each": lambda: one_by_one(sweep), "one": sweep.cells}, seconds=seconds, most=9)
    # The toy ends its answers after some twenty tokens; real ones go on for longer.
    model.generation_config.min_new_tokens = NEW_TOKENS
    full = interleave({"each": lambda: one_by_one(sweep), "one": sweep.cells}, seconds=seconds / 2, most=5)
    model.generation_config.min_new_tokens = None
    figures: dict[str, Any] = {
        "steering_ratio_full_length": ratio(full["each"], full["one"]),
        "steering_cells": len(one),
        "steering_ratio": ratio(times["each"], times["one"]),
        "steering_seconds_each": median_seconds(times["each"]),
        "steering_seconds_one": median_seconds(times["one"]),
    }
    overheads = {"tiny": model, "7M": random_model(num_hidden_layers=6)}
    return figures | {
        "steering_overhead": {name: overhead(some, seconds / 2) for name, some in overheads.items()}
    }


def a_sweep(model: Any, tokenizer: Any) -> Sweep:
    """Seven alphas on ten questions of the embedded model's own kind."""
    lines = tiny.HELDOUT.read_text(encoding="utf-8").splitlines()[:QUESTIONS]
    rows = [json.loads(line)["messages"] for line in lines]
    turns = [[turn for turn in row if turn["role"] == "user"][:1] for row in rows]
    torch.manual_seed(0)
    sae = StandardSAE(model.config.hidden_size, 8)
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn_like(sae.W_dec))
        sae.W_dec.mul_(residual_norm(model, tokenizer, turns) / sae.W_dec.norm(dim=1, keepdim=True))
    settings = GenerationSettings(max_new_tokens=NEW_TOKENS)
    chat, questions = ChatTokenizer(tokenizer, DataSection(), "model"), [Dialogue(each) for each in turns]
    return Sweep(model, chat, sae, LAYER, [3], questions, NORM_ALPHAS, control=False, settings=settings)


@torch.no_grad()
def residual_norm(model: Any, tokenizer: Any, questions: Any) -> float:
    """Mean norm of the residual stream after ``LAYER``, the first token left out."""
    norms: list[Tensor] = []
    handle = model.model.layers[LAYER].register_forward_hook(
        lambda module, args, output: norms.append(output[0, 1:].norm(dim=-1))
    )
    for turns in questions:
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        model(ids["input_ids"])
    handle.remove()
    return float(torch.cat(norms).mean())


def one_by_one(sweep: Sweep) -> list[tuple[int, ...]]:
    """The tokens of every cell, from a call of ``generate`` for each."""
    model, tokenizer = sweep.model, sweep.tokenizer
    found = []
    for question in sweep.questions:
        prompt = tokenizer.apply_chat_template(
            question.turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        for alpha in sweep.alphas:
            with steer(model, sweep.sae, {3: alpha}, layer=LAYER):
                out = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id or 0,
                )
            found.append(tuple(out[0, prompt.shape[1] :].tolist()))
    return found


def overhead(model: Any, seconds: float) -> Any:
    """Time of steered tokens over that of others, one row, with a cache."""
    sae = StandardSAE(model.config.hidden_size, 8)
    prompt = torch.arange(1, 33)[None]

    def generate() -> None:
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )

    def steered() -> None:
        with steer(model, sae, {3: 1.0}, layer=LAYER):
            generate()

    times = interleave({"steered": steered, "plain": generate}, seconds=seconds, most=60)
    return ratio(times["steered"], times["plain"])
