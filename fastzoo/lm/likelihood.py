"""How likely answers are under a language model: many answers in few forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fastzoo.lm.lengths import LengthRules, forget
from fastzoo.lm.padding import batch_key, inputs_of

BATCH_TOKENS = 8_192
"""Tokens of a forward pass, padding included; a longer answer is a batch of its own."""

BATCH_LOGITS = 1 << 26
"""Logits of a forward pass (256 MB in float32); a single answer may need more."""


@torch.no_grad()
def answer_nlls(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Negative log-likelihood in nats of every token of every answer, given its prompt.

    Answers of similar length go through the model together, padded on the left and masked, with the
    same results as one at a time up to rounding. Equal pairs go through once: weak alphas change few
    answers. An empty answer gives an empty array.

    Args:
        prompts: token ids, one prompt per answer, none empty.
        answers: token ids without padding; the token that ends the turn is scored like any other.
    """
    if not all(map(len, prompts)):
        raise ValueError("an empty prompt: nothing predicts the first token of its answer")
    pairs = [(tuple(p), tuple(a)) for p, a in zip(prompts, answers, strict=True)]
    found = dict.fromkeys(pairs, np.zeros(0))
    unique = list(found)
    vocabulary = int(model.config.get_text_config().vocab_size)
    rules = LengthRules.of(model.config)
    for rows in _batches([(len(p), len(a)) for p, a in unique], vocabulary, batch_key(model)):
        part = [unique[row] for row in rows]
        if rules.remembers:
            forget(model)
        found.update(zip(part, _forward(model, part), strict=True))
    return [found[pair] for pair in pairs]


def _batches(
    lengths: Sequence[tuple[int, int]], vocabulary: int, key: Callable[[int, int], tuple[int, ...] | None]
) -> Iterator[list[int]]:
    """Rows with an answer, in batches within the bounds and of lengths that may be together."""
    keys = [key(sum(both), sum(both)) for both in lengths]
    rows = [row for row, (_, n) in enumerate(lengths) if n]
    rows.sort(key=lambda r: (keys[r] or (), lengths[r][::-1]))
    batch: list[int] = []
    for row in rows:
        wider = [*batch, row]
        width = max(sum(lengths[r]) for r in wider)
        kept = lengths[row][1] + 1  # the longest answer comes last
        apart = batch and (keys[row] is None or keys[row] != keys[batch[-1]])
        if apart or (batch and len(wider) * max(width / BATCH_TOKENS, kept * vocabulary / BATCH_LOGITS) > 1):
            yield batch
            wider = [row]
        batch = wider
    if batch:
        yield batch


def _forward(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[np.ndarray]:
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    kept = max(len(answer) for _, answer in pairs) + 1
    ids = torch.zeros(len(pairs), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(pairs):
        whole = torch.tensor([*prompt, *answer], dtype=torch.int64)
        ids[row, width - len(whole) :] = whole
        mask[row, width - len(whole) :] = 1
    how = {"use_cache": False, "logits_to_keep": kept}
    logits = model(**inputs_of(model, ids, mask), **how).logits[:, -kept:]
    for row, (_, answer) in enumerate(pairs):
        targets = ids[row, width - len(answer) :].to(logits.device)
        # Row by row, because the whole batch in float32 would take as much memory again.
        nlls = F.cross_entropy(logits[row, -len(answer) - 1 : -1].float(), targets, reduction="none")
        yield nlls.double().cpu().numpy()
