"""Answers of many rows at once, one token after another; rows that have ended leave the batch.

transformers' ``generate`` prepares everything (generation config, cache, processors of the logits, ends)
and then calls this loop instead of its own, which keeps every row until the last one has ended.

Shape suffixes: B rows still in the batch, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fastzoo.core.threads import one_thread

ENDED_SHARE = 1 / 8
"""Ended rows leave when they are so many of the batch: it costs a copy of the cache."""

TOY_PARAMETERS, TOY_PRODUCTS = 1 << 24, 1 << 28
"""A pass of so small a model with so few multiplications runs in one thread on a CPU: up to twice as fast
as two threads that sleep between operations (0.8M parameters, 1 to 256 rows; 7M, 1 to 16 rows)."""

NOT_OBEYED: dict[str, Any] = {
    # Penalties would hide what large alphas do, and depend on the padding.
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    # How tokens are drawn is for the caller to say.
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": None,
    # So is where answers end.
    "max_length": None,
    "min_length": None,
    "max_time": None,
    "stop_strings": None,
    # One answer to each prompt as it is, token by token.
    "num_beams": 1,
    "num_return_sequences": 1,
    "guidance_scale": None,
    "token_healing": False,
    "prompt_lookup_num_tokens": None,
    "is_assistant": False,
    # The cache must let rows leave.
    "cache_implementation": None,
    "max_cache_len": None,
}
"""What a model's own generation config may say, and what is done instead. What it says of the tokens
themselves (suppressed, biased or forced ones, the least number of new ones) is obeyed."""


def write_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Collection[int] = (),
    pad: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    told: Callable[[list[tuple[int, int]]], None] | None = None,
    kept: Callable[[Tensor], None] | None = None,
) -> list[list[int]]:
    """The answer to each prompt, up to and with the token that ends it.

    The tokens of a row are those of a ``generate`` call of its own: greedy ones up to rounding, and
    sampled ones, since each row draws as if ``torch.manual_seed(seed)`` came before its call. torch's
    own generator is left alone. See ``NOT_OBEYED`` for what such a call would take from the model's
    generation config besides.

    Args:
        told: called after each step with (row, token) of the rows that go on.
        kept: called with the places (1-d int64, of the rows in the batch before) of those that stay
            when others leave.
    """
    device = model.get_input_embeddings().weight.device
    if device.type == "meta":  # accelerate fetches the weights, and brings the tokens there
        device = torch.device("cpu")
    longest = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), longest), pad)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    answers: list[list[int]] = [[] for _ in prompts]
    draws = [torch.Generator(device).manual_seed(seed) for _ in prompts] if temperature else []

    def loop(
        model: Any,
        ids_BT: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **inputs: Any,
    ) -> Tensor:
        batch = _Batch(model, ids_BT, mask_BT.to(ids_BT.device), inputs)
        rows = list(range(len(prompts)))  # those in the batch
        open_rows = set(rows)
        while True:
            logits_BV = batch.logits().to(dtype=torch.float32, device=ids_BT.device, copy=True)
            scores_BV = logits_processor(batch.ids_BT, logits_BV)
            tokens_B = scores_BV.argmax(-1)
            if draws:
                tokens_B = _draw(scores_BV, tokens_B, [draws[row] for row in rows])
            batch.append(tokens_B)
            ended = stopping_criteria(batch.ids_BT, None).tolist()
            step = [
                (row, token)
                for row, token in zip(rows, tokens_B.tolist(), strict=True)
                if row in open_rows
            ]
            for row, token in step:
                answers[row].append(token)
            if told is not None:
                told(step)
            open_rows -= {row for row, end in zip(rows, ended, strict=True) if end}
            if not open_rows:
                return batch.ids_BT
            if len(rows) - len(open_rows) >= ENDED_SHARE * len(rows):
                stay = [place for place, row in enumerate(rows) if row in open_rows]
                rows = [rows[place] for place in stay]
                places_B = torch.tensor(stay, device=ids_BT.device)
                batch.keep(places_B)
                if kept is not None:
                    kept(places_B)

    how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    model.generate(
        input_ids=ids_BT.to(device),
        attention_mask=mask_BT.to(device),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
        custom_generate=loop,
        # Of this version of transformers: what it does not know it would refuse.
        **{k: v for k, v in NOT_OBEYED.items() if hasattr(model.generation_config, k)},
        **how,
    )
    return answers


class _Batch:
    """The rows that go on: their tokens so far and their cache."""

    def __init__(self, model: Any, ids_BT: Tensor, mask_BT: Tensor, inputs: dict[str, Any]) -> None:
        self._model, self.ids_BT, self._mask_BT = model, ids_BT, mask_BT
        self._padded = not bool(mask_BT.all())
        self._cache = inputs.get("past_key_values") if inputs.get("use_cache") else None
        self._inputs = {k: v for k, v in inputs.items() if k in ("logits_to_keep", "use_cache")}
        self._fresh = ids_BT.shape[1]
        self._parameters = sum(parameter.numel() for parameter in model.parameters())
        self._placed = "position_ids" in inspect.signature(model.forward).parameters

    def logits(self) -> Tensor:
        """(B, V) of the next token."""
        new = self._fresh if self._cache is not None else self.ids_BT.shape[1]
        inputs = dict(self._inputs)
        if self._cache is not None:
            inputs["past_key_values"] = self._cache
        if self._placed:
            places_BT = (self._mask_BT.cumsum(1) - 1).clamp(min=0)
            inputs["position_ids"] = places_BT[:, -new:]
        products = self._parameters * len(self.ids_BT) * new
        toy = self._parameters <= TOY_PARAMETERS and products <= TOY_PRODUCTS
        with one_thread() if toy and self.ids_BT.device.type == "cpu" else nullcontext():
            logits_BTV: Tensor = self._model(
                input_ids=self.ids_BT[:, -new:],
                attention_mask=self._mask_BT if self._padded else None,
                return_dict=True,
                **inputs,
            ).logits
        self._fresh = 1
        return logits_BTV[:, -1]

    def append(self, tokens_B: Tensor) -> None:
        self.ids_BT = torch.cat([self.ids_BT, tokens_B[:, None]], 1)
        self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(tokens_B)[:, None]], 1)

    def keep(self, places_B: Tensor) -> None:
        self.ids_BT, self._mask_BT = self.ids_BT[places_B], self._mask_BT[places_B]
        self._padded = not bool(self._mask_BT.all())
        if self._cache is not None:
            self._cache.reorder_cache(places_B)


def _draw(scores_BV: Tensor, greedy_B: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """(B,) sampled, each row by its own generator; the greedy token where a row has NaN or infinity."""
    probs_BV = torch.nn.functional.softmax(scores_BV, dim=-1)
    sound = probs_BV.isfinite().all(-1).tolist()
    return torch.stack(
        [
            torch.multinomial(probs_BV[row : row + 1], 1, generator=generator)[0, 0]
            if sound[row]
            else greedy_B[row]
            for row, generator in enumerate(generators)
        ]
    )
