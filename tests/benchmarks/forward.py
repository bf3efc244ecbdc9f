"""Activations: fastzoo's packed forward beside the three other ways of reading them.

Every variant runs a model up to the same layer and produces the residual stream after it:

* ``alone``: plain transformers (sdpa), one dialogue per call.
* ``padded``: plain transformers, dialogues sorted by length, right-padded batches.
* ``packed``: ``ResidualReader.columns`` on packs of dialogues, as training with ``fast`` does.
* ``blocks``: the same on dialogues joined and cut into blocks, as block training (``bt-f``) does.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import tee
from typing import Any

import numpy as np
import torch
from memory import QWEN, SMALL
from rounds import Ratio, interleave, median_seconds, ratio
from torch import Tensor, nn

from fastzoo import tiny
from fastzoo.config.recipe import DataSection, ModelSection
from fastzoo.data.sequences import Counts, TokenSequence
from fastzoo.data.streams import blocks
from fastzoo.data.tokenizer import ChatTokenizer
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.load import find_model, load_model, load_tokenizer
from fastzoo.lm.packing import packs
from fastzoo.lm.stack import decoder_layers

PADDED_TOKENS = 2048
"""Tokens per forward pass of ``padded``, padding included."""

Part = tuple[list[TokenSequence], Tensor]
"""Some sequences, and their activations (T, D) in the same order."""


@dataclass(frozen=True)
class Result:
    """One model with its dialogues."""

    tokens_per_second: dict[str, float]
    padding: dict[str, float]
    """Share of the computed tokens that is padding."""
    packed_over_alone: Ratio
    packed_over_blocks: Ratio


def measure(*, quick: bool) -> dict[str, Any]:
    """All figures of this benchmark, ratios as ``Ratio``."""
    seconds = 0.5 if quick else 45.0
    dialogues = tiny_dialogues(20 if quick else 160)
    tiny_model = load_model(find_model(ModelSection()), ModelSection(), torch.device("cpu"))
    toy = compare(tiny_model, dialogues, layer=2, block=512, seconds=seconds)
    lengths = ragged_lengths(5 if quick else 30, longest=256 if quick else 2048)
    model = random_model(num_hidden_layers=2 if quick else 6)
    big = compare(
        model,
        random_dialogues(lengths, model.config.vocab_size),
        layer=model.config.num_hidden_layers - 1,
        block=max(lengths) if quick else 2048,
        seconds=seconds * 1.6,
    )
    figures = {
        "packed_over_alone_tiny": toy.packed_over_alone,
        "packed_over_alone_ragged": big.packed_over_alone,
        "packed_over_blocks": {"tiny": toy.packed_over_blocks, "ragged": big.packed_over_blocks},
        "tokens_per_second": toy.tokens_per_second,
        "tokens_per_second_ragged": big.tokens_per_second,
        "padding": toy.padding,
        "padding_ragged": big.padding,
        "dialogue_tokens": describe([len(s) for s in dialogues]),
        "dialogue_tokens_ragged": describe(lengths),
    }
    return figures | (on_gpu(quick=quick) if torch.cuda.is_available() else {})


def on_gpu(*, quick: bool, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """The same with a model of Qwen2.5-0.5B's configuration, random weights, on a GPU."""
    shape = SMALL if quick else QWEN
    model = random_model(**shape).to(device, dtype)
    lengths = ragged_lengths(5 if quick else 400, longest=256 if quick else 2048)
    result = compare(
        model,
        random_dialogues(lengths, model.config.vocab_size),
        layer=model.config.num_hidden_layers - 1,
        block=max(lengths) if quick else 2048,
        seconds=0.5 if quick else 60.0,
    )
    return {
        "packed_over_alone_cuda": result.packed_over_alone,
        "packed_over_blocks_cuda": result.packed_over_blocks,
        "tokens_per_second_cuda": result.tokens_per_second,
    }


def compare(model: Any, sequences: list[TokenSequence], *, layer: int, block: int, seconds: float) -> Result:
    """Time the four variants on one model.

    Raises:
        RuntimeError: the variants' activations are not the same.
    """
    reader = ResidualReader(model)
    cut = list(blocks(sequences, block))
    variants: dict[str, Callable[[], Iterable[Part]]] = {
        "alone": partial(alone, model, sequences, layer),
        "padded": partial(padded, model, sequences, layer),
        "packed": partial(read, reader, sequences, layer),
        "blocks": partial(read, reader, cut, layer),
    }
    for name in ("padded", "packed"):
        check(variants["alone"](), variants[name](), name)
    times = interleave({name: partial(exhaust, make) for name, make in variants.items()}, seconds=seconds)
    tokens = sum(map(len, sequences))
    done = dict.fromkeys(variants, tokens) | {"blocks": sum(map(len, cut))}
    reader.computed_tokens = 0
    exhaust(variants["packed"])
    in_packs = reader.computed_tokens
    reader.computed_tokens = 0
    exhaust(variants["blocks"])
    in_blocks = reader.computed_tokens
    in_rows = sum(len(rows) * len(rows[-1]) for rows in padded_batches(sequences))
    return Result(
        {name: done[name] / median_seconds(times[name]) for name in variants},
        {
            "alone": 0.0,
            "padded": 1 - tokens / in_rows,
            "packed": 1 - tokens / in_packs,
            "blocks": 1 - done["blocks"] / in_blocks,
        },
        ratio(times["alone"], times["packed"]),
        ratio(times["blocks"], times["packed"], tokens / done["blocks"]),
    )


# --- the variants ---


class _Stop(Exception):
    """Ends a forward pass at the hooked layer."""


@contextmanager
def stopping(model: Any, layer: int) -> Iterator[list[Tensor]]:
    """The list receives the layer's output (B, T, D); leaving the block swallows the stop."""
    found: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _Stop

    handle = decoder_layers(model)[layer].register_forward_hook(hook)
    try:
        yield found
    except _Stop:
        pass
    finally:
        handle.remove()


@torch.inference_mode()
def alone(model: Any, sequences: list[TokenSequence], layer: int) -> Iterator[Part]:
    for sequence in sequences:
        with stopping(model, layer) as found:
            ids = torch.from_numpy(sequence.ids)[None].to(model.device)
            model.base_model(input_ids=ids, use_cache=False)
        yield [sequence], found[0][0]


@torch.inference_mode()
def padded(model: Any, sequences: list[TokenSequence], layer: int) -> Iterator[Part]:
    for rows in padded_batches(sequences):
        ids = torch.zeros(len(rows), len(rows[-1]), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, sequence in enumerate(rows):
            ids[i, : len(sequence)] = torch.from_numpy(sequence.ids)
            mask[i, : len(sequence)] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        with stopping(model, layer) as found:
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        yield rows, found[0][mask.bool()]


def padded_batches(sequences: list[TokenSequence]) -> Iterator[list[TokenSequence]]:
    """Sequences of similar length, at most ``PADDED_TOKENS`` a batch with the padding."""
    rows: list[TokenSequence] = []
    for sequence in sorted(sequences, key=len):
        if rows and (len(rows) + 1) * len(sequence) > PADDED_TOKENS:
            yield rows
            rows = []
        rows.append(sequence)
    yield rows


def read(reader: ResidualReader, sequences: list[TokenSequence], layer: int) -> Iterator[Part]:
    groups, again = tee(packs(sequences, reader.pack_tokens))
    for group, columns in zip(again, reader.columns(groups, [layer]), strict=True):
        yield group, columns[f"L{layer}"]


def exhaust(make: Callable[[], Iterable[Part]]) -> None:
    for _ in make():
        pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def check(one: Iterable[Part], other: Iterable[Part], name: str) -> None:
    """Both produced the same activations for the same dialogues."""
    left, right = by_dialogue(one), by_dialogue(other)
    if left.keys() != right.keys():
        raise RuntimeError(f"{name}: other dialogues than alone")
    worst = max((left[i] - right[i]).abs().max().item() for i in left)
    scale = max(acts.abs().max().item() for acts in left.values())
    tolerance = 1e-4 if next(iter(left.values())).dtype == torch.float32 else 0.05
    if not worst <= tolerance * max(1.0, scale):
        raise RuntimeError(f"{name}: activations differ from alone by {worst:.2g}")


def by_dialogue(parts: Iterable[Part]) -> dict[int, Tensor]:
    return {
        int(sequence.dialogue[0]): acts
        for sequences, joined in parts
        for sequence, acts in zip(sequences, joined.split([len(s) for s in sequences]), strict=True)
    }


# --- the data ---


def tiny_dialogues(count: int) -> list[TokenSequence]:
    """The first held-out dialogues of the embedded model."""
    tokenizer = load_tokenizer(find_model(ModelSection()))
    chat = ChatTokenizer(tokenizer, DataSection(), "tiny-chat")
    lines = tiny.HELDOUT.read_text(encoding="utf-8").splitlines()[:count]
    return list(chat.dialogues(enumerate(map(json.loads, lines)), Counts()))


def ragged_lengths(count: int, longest: int) -> list[int]:
    """Log-normal lengths of median 200 and mean about 300, evenly spread and shuffled."""
    normal = statistics.NormalDist(math.log(200), math.sqrt(2 * math.log(1.5)))
    lengths = [min(longest, max(8, round(math.exp(normal.inv_cdf((i + 0.5) / count))))) for i in range(count)]
    random.Random(0).shuffle(lengths)
    return lengths


def random_dialogues(lengths: list[int], vocabulary: int) -> list[TokenSequence]:
    generator = np.random.default_rng(0)
    return [
        TokenSequence(
            generator.integers(0, vocabulary, length),
            np.arange(length, dtype=np.int32),
            np.full(length, index, dtype=np.int64),
            np.zeros(length, dtype=bool),
        )
        for index, length in enumerate(lengths)
    ]


def random_model(**shape: int) -> Any:
    """A Qwen2 of random weights; 7.0M parameters with 6 layers and nothing else changed."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    ragged = {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    }
    config = Qwen2Config(**ragged | shape, tie_word_embeddings=True, attn_implementation="sdpa")
    return Qwen2ForCausalLM(config).eval().requires_grad_(False)


def describe(lengths: list[int]) -> dict[str, float]:
    return {
        "dialogues": len(lengths),
        "tokens": sum(lengths),
        "median": statistics.median(lengths),
        "mean": round(statistics.mean(lengths), 1),
        "max": max(lengths),
    }
