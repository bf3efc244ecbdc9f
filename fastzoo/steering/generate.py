"""Answers of many rows at once, one token after another; rows that have ended leave the batch.

transformers' ``generate`` prepares everything (generation config, cache, processors of the logits, ends)
and then calls this loop instead of its own, which keeps every row until the last one has ended.

Shape suffixes: B rows still in the batch, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastzoo.core.threads import one_thread
from fastzoo.lm.lengths import LengthRules, forget
from fastzoo.lm.padding import padding_is_exact, positions_of
from fastzoo.lm.stack import accepted

ENDED_SHARE = 1 / 8
"""Ended rows leave once they are this share of the batch, since leaving copies the cache."""

TOY_PARAMETERS, TOY_PRODUCTS = 1 << 24, 1 << 28
"""A forward pass of a model this small with this few multiplications runs in one thread on a CPU: up to
twice as fast as two threads that sleep between operations (0.8M parameters, 1 to 256 rows; 7M, 1 to 16)."""

OBEYED = frozenset(
    "bos_token_id decoder_start_token_id use_cache min_new_tokens bad_words_ids sequence_bias suppress_tokens "
    "begin_suppress_tokens forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty "
    "remove_invalid_values renormalize_logits watermarking_config".split()
)
"""What a model's own generation config may say: which tokens it suppresses, biases or forces. Everything
else has the value that transformers gives it by default: penalties would hide what large alphas do,
and how tokens are drawn and where answers end is for the caller to say."""

Step = list[tuple[int, int]]
"""(row, token) of the rows that were not finished before."""


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated."""

    max_new_tokens: int = 200
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    seed: int = 0
    rows: int | None = None
    """Rows of one call; by default what memory allows."""

    def arguments(self) -> dict[str, Any]:
        """As ``generate`` takes them."""
        sampled = self.temperature > 0
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        how = drawn if sampled else dict.fromkeys(drawn)
        return {"max_new_tokens": self.max_new_tokens, "do_sample": sampled, **how}


def write_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    ends: Collection[int],
    pad: int,
    told: Callable[[Step], None] | None,
    kept: Callable[[Tensor], None],
    is_over: Callable[[Sequence[int]], bool] = lambda tokens: False,
) -> list[list[int]]:
    """The answer to each prompt, up to and including the token that ends it.

    The tokens of a row are those of a ``generate`` call of its own: greedy ones up to rounding, and
    sampled ones, since each row draws as if ``torch.manual_seed(seed)`` came before its call. torch's
    own generator is left alone. Of the model's generation config only ``OBEYED`` counts. That holds for
    prompts that may be together (``lm.padding``), whatever the model wrote before.

    Args:
        told: called after each step with (row, token) of the rows that go on.
        kept: called with the places (1-d int64, in the batch before) of the rows that stay when others leave.
        is_over: whether an answer's tokens so far end it, besides ``ends``.
    """
    device = model.get_input_embeddings().weight.device
    if device.type == "meta":  # accelerate fetches the weights, and brings the tokens there
        device = torch.device("cpu")
    longest = max(map(len, prompts))
    ids_BT = torch.tensor(
        [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device
    )
    mask_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    draws = (
        [torch.Generator(device).manual_seed(settings.seed) for _ in prompts] if settings.temperature else []
    )
    batch = _Batch(mask_BT, draws, told, kept, is_over)
    model.generate(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        custom_generate=batch.run,
        **_defaults() | settings.arguments(),
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
    )
    return batch.answers


def _defaults() -> dict[str, Any]:
    """transformers' default of every generation setting that is neither obeyed nor given. They go to ``generate``
    one by one: what a config of our own leaves open, it would fill in from the model's."""
    from transformers import GenerationConfig

    empty = GenerationConfig()
    neutral = vars(empty) | getattr(empty, "_get_default_generation_params", dict)()
    neutral |= {"max_length": None, "min_length": None}
    left = OBEYED | {"pad_token_id", "eos_token_id", "transformers_version"}
    return {k: v for k, v in neutral.items() if k not in left and k[0] != "_"}


class _Batch:
    """The rows that go on, with their tokens so far and their cache; and the answers of all rows."""

    def __init__(
        self,
        mask_BT: Tensor,
        draws: Sequence[torch.Generator],
        told: Callable[[Step], None] | None,
        kept: Callable[[Tensor], None],
        is_over: Callable[[Sequence[int]], bool],
    ) -> None:
        self.answers: list[list[int]] = [[] for _ in mask_BT]
        self._rows = list(range(len(mask_BT)))  # those in the batch; some may have ended
        self._going = set(self._rows)
        self._mask_BT, self._draws, self._told, self._kept = mask_BT, draws, told, kept
        self._is_over = is_over

    def run(
        self, model: Any, ids_BT: Tensor, logits_processor: Any, stopping_criteria: Any, **inputs: Any
    ) -> Tensor:
        """The loop that ``generate`` calls instead of its own."""
        if (rules := LengthRules.of(model.config)).remembers:
            forget(model)
        self._switches = bool(rules.sides)
        self._model, self._ids_BT, self._mask_BT = model, ids_BT, self._mask_BT.to(ids_BT.device)
        self._padded = not bool(self._mask_BT.all())
        known = inspect.signature(type(model).forward).parameters
        cached = inputs.get("use_cache") and "past_key_values" in known
        self._cache: Any = inputs.get("past_key_values") if cached else None
        self._inputs = {k: v for k, v in inputs.items() if k in ("logits_to_keep", "use_cache")}
        self._fresh = ids_BT.shape[1]
        self._parameters = sum(parameter.numel() for parameter in model.parameters())
        self._placed = bool(accepted(model, {"position_ids": None}))
        while self._going:
            logits_BV = self._logits().to(dtype=torch.float32, device=ids_BT.device, copy=True)
            tokens_B = self._choose(logits_processor(self._ids_BT, logits_BV))
            self._ids_BT = torch.cat([self._ids_BT, tokens_B[:, None]], 1)
            self._mask_BT = torch.nn.functional.pad(self._mask_BT, (0, 1), value=1)
            self._end(tokens_B.tolist(), stopping_criteria(self._ids_BT, None).tolist())
        return self._ids_BT

    def _logits(self) -> Tensor:
        """(B, V) of the next token."""
        if self._switches and self._cache is not None and self._fresh == 1:
            self._switch()
        new = self._fresh if self._cache is not None else self._ids_BT.shape[1]
        inputs = dict(self._inputs)
        if self._cache is not None:
            inputs["past_key_values"] = self._cache
        if self._placed:
            inputs["position_ids"] = positions_of(self._mask_BT)[:, -new:]
        products = self._parameters * len(self._ids_BT) * new
        toy = self._parameters <= TOY_PARAMETERS and products <= TOY_PRODUCTS
        with one_thread() if toy and self._ids_BT.device.type == "cpu" else nullcontext():
            logits_BTV: Tensor = self._model(
                input_ids=self._ids_BT[:, -new:],
                attention_mask=self._mask_BT if self._padded else None,
                return_dict=True,
                **inputs,
            ).logits
        self._fresh = 1
        return logits_BTV[:, -1]

    def _switch(self) -> None:
        """Begin anew, without the cache, where the model's own ``generate`` does: at a switching length (Phi-3)."""
        inputs = {"attention_mask": self._mask_BT, "past_key_values": self._cache, "use_cache": True}
        # How many tokens are not in the cache; the first transformers 5 want to know which.
        place = torch.tensor([self._ids_BT.shape[1] - 1], device=self._ids_BT.device)
        given = self._model.prepare_inputs_for_generation(
            self._ids_BT, next_sequence_length=1, cache_position=place, **inputs
        )
        if given.get("past_key_values") is None:
            self._begin_anew(given["input_ids"].shape[1])

    def _begin_anew(self, tokens: int) -> None:
        """Give the next forward so many tokens, and an empty cache."""
        self._cache, self._fresh = type(self._cache)(config=self._model.config), tokens

    def _choose(self, scores_BV: Tensor) -> Tensor:
        """(B,) the likeliest tokens, or those that each row draws by its own generator."""
        tokens_B = scores_BV.argmax(-1)
        if self._draws:
            probs_BV = torch.nn.functional.softmax(scores_BV, dim=-1)
            sound = probs_BV.isfinite().all(-1).tolist()  # others stay greedy
            for place, row in enumerate(self._rows):
                if sound[place]:
                    tokens_B[place] = torch.multinomial(probs_BV[place], 1, generator=self._draws[row])[0]
        return tokens_B

    def _end(self, tokens: list[int], ended: list[bool]) -> None:
        """Note a step's tokens, and let rows leave once enough of them have ended."""
        step = [(row, token) for row, token in zip(self._rows, tokens, strict=True) if row in self._going]
        for row, token in step:
            self.answers[row].append(token)
        if self._told is not None:
            self._told(step)
        self._going -= {row for row, end in zip(self._rows, ended, strict=True) if end}
        self._going -= {row for row in self._going if self._is_over(self.answers[row])}
        if not self._going or len(self._rows) - len(self._going) < ENDED_SHARE * len(self._rows):
            return
        stay = [place for place, row in enumerate(self._rows) if row in self._going]
        self._rows = [self._rows[place] for place in stay]
        places_B = torch.tensor(stay, device=self._ids_BT.device)
        self._ids_BT, self._mask_BT = self._ids_BT[places_B], self._mask_BT[places_B]
        self._padded = not bool(self._mask_BT.all())
        if self._cache is not None and padding_is_exact(self._model):
            self._cache.reorder_cache(places_B)
        elif self._cache is not None:  # such a model may have states outside the cache (RecurrentGemma)
            self._begin_anew(self._ids_BT.shape[1])
        self._kept(places_B)
