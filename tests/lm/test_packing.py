"""Packed forwards against the unmodified transformers model, one dialogue at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LAYERS, VOCABULARY, plain_forward, random_dialogues, sequence, small_model
from torch import Tensor

from fastzoo.core.errors import TrainingError
from fastzoo.data.sequences import TokenSequence, concatenate, cut
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.packing import packs

BUDGET = 32
LENGTHS = [7, 1, 7, 23, 2, 1, 40, 13, 1, 9, 9, 31, 5]
"""Ragged; one dialogue of 40 is longer than the budget, and several are of equal length."""

KERNELS = [
    ("qwen2", "eager"),
    ("qwen2", "sdpa"),
    ("qwen2-window", "eager"),
    ("qwen2-window", "sdpa"),
    ("qwen3", "eager"),
    ("qwen3", "sdpa"),
    ("llama", "eager"),
    ("llama", "sdpa"),
    ("gemma2", "eager"),  # transformers has no sdpa with soft-capping
]


def cut_up(dialogues: list[TokenSequence], budget: int = BUDGET) -> list[list[TokenSequence]]:
    return list(packs(dialogues, budget))


def read_all(
    reader: ResidualReader, dialogues: list[TokenSequence], layers: list[int]
) -> dict[int, dict[int, Tensor]]:
    """Activations by dialogue index and layer."""
    found: dict[int, dict[int, Tensor]] = {}
    for pack in reader.packs(dialogues):
        acts = reader.read(pack, layers)
        start = 0
        for part in pack.sequences:
            index = int(part.dialogue[0])
            assert index not in found
            found[index] = {n: acts[n][start : start + len(part)] for n in layers}
            start += len(part)
    return found


def reference(kind: str, attention: str, dialogues: list[TokenSequence]) -> dict[int, list[Tensor]]:
    """Each dialogue alone through a model that fastzoo never touched."""
    model = small_model(kind, attention)
    return {int(s.dialogue[0]): plain_forward(model, s.ids)[0] for s in dialogues}


def relative_error(acts: Tensor, alone: Tensor) -> float:
    """The worst position's, each by its own norm: large activations hide nothing elsewhere."""
    return ((acts - alone).norm(dim=1) / alone.norm(dim=1)).max().item()


def assert_equal(found: dict[int, dict[int, Tensor]], expected: dict[int, list[Tensor]]) -> None:
    assert set(found) == set(expected)
    for index, layers in found.items():
        for layer, acts in layers.items():
            alone = expected[index][layer]
            assert acts.shape == alone.shape
            error = relative_error(acts, alone)
            assert error < 1e-5, (index, layer, error)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, logger="fastzoo.lm.packing"):
        yield caplog


def fell_back(caplog: pytest.LogCaptureFixture) -> bool:
    return "one by one" in caplog.text


@pytest.mark.parametrize(("kind", "attention"), KERNELS)
def test_packed_equals_alone_at_every_position_and_layer(
    kind: str, attention: str, warnings: pytest.LogCaptureFixture
) -> None:
    dialogues = random_dialogues(LENGTHS)
    reader = ResidualReader(small_model(kind, attention), pack_tokens=BUDGET)
    found = read_all(reader, dialogues, list(range(LAYERS)))
    assert not fell_back(warnings), "nothing was packed"
    assert_equal(found, reference(kind, attention, dialogues))


@pytest.mark.parametrize("kind", ["qwen2-window", "gemma2"])
def test_the_reference_windows_and_caps_do_something(kind: str) -> None:
    """Without the window or the cap the same weights give other activations."""
    ids = random_dialogues([40])[0].ids
    with_it = plain_forward(small_model(kind), ids)[0][-1]
    changes: list[dict[str, Any]] = [{"sliding_window": 100}]
    if kind == "gemma2":
        changes.append({"attn_logit_softcapping": None})
    for change in changes:
        model = small_model(kind)
        for module in model.modules():
            for name, value in change.items():
                if hasattr(module, name):
                    setattr(module, name, value)
        for name, value in change.items():
            setattr(model.config, name, value)
        without = plain_forward(model, ids)[0][-1]
        assert (with_it - without).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_layers_are_the_residual_stream_and_the_last_is_before_the_final_norm(kind: str) -> None:
    dialogue = random_dialogues([11])[0]
    plain = small_model(kind)
    hidden = plain(input_ids=torch.from_numpy(dialogue.ids)[None], output_hidden_states=True)
    states = [h[0] for h in hidden.hidden_states]
    found = read_all(ResidualReader(small_model(kind)), [dialogue], list(range(LAYERS)))[0]
    for layer in range(LAYERS - 1):
        assert relative_error(found[layer], states[layer + 1]) < 1e-5
    assert (found[LAYERS - 1] - states[LAYERS]).abs().max() > 0.1
    assert relative_error(plain.model.norm(found[LAYERS - 1]), states[LAYERS]) < 1e-5


@pytest.mark.parametrize(("kind", "attention"), KERNELS)
def test_changing_one_dialogue_changes_no_other(kind: str, attention: str) -> None:
    dialogues = random_dialogues([9, 4, 12, 4, 3])
    changed = 2
    others = [sequence((s.ids + 1) % VOCABULARY, i) if i == changed else s for i, s in enumerate(dialogues)]
    reader = ResidualReader(small_model(kind, attention), pack_tokens=64)
    before = read_all(reader, dialogues, [LAYERS - 1])
    after = read_all(reader, others, [LAYERS - 1])
    for index in range(len(dialogues)):
        same = torch.equal(before[index][LAYERS - 1], after[index][LAYERS - 1])
        assert same == (index != changed)


def test_a_dialogue_is_read_causally() -> None:
    """Changing the last token of a dialogue changes nothing before it."""
    dialogues = random_dialogues([9, 12])
    ids = dialogues[1].ids.copy()
    ids[-1] = (ids[-1] + 1) % VOCABULARY
    reader = ResidualReader(small_model("llama", "sdpa"), pack_tokens=64)
    before = read_all(reader, dialogues, [2])[1][2]
    after = read_all(reader, [dialogues[0], sequence(ids, 1)], [2])[1][2]
    assert torch.equal(before[:-1], after[:-1])
    assert not torch.equal(before[-1], after[-1])


def test_blocks_are_one_segment_each_with_positions_from_zero() -> None:
    """bt-f: a block that starts in the middle of a dialogue is a sequence of its own."""
    whole = concatenate(random_dialogues([30, 30, 36]))
    blocks = [cut(whole, i, i + 24) for i in range(0, 96, 24)]
    reader = ResidualReader(small_model("qwen2"), pack_tokens=48)
    plain = small_model("qwen2")
    found = [reader.read(pack, [3])[3] for pack in reader.packs(blocks)]
    expected = [plain_forward(plain, block.ids)[0][3] for block in blocks]
    assert relative_error(torch.cat(found), torch.cat(expected)) < 1e-5


def test_columns_carry_the_bookkeeping_of_the_same_tokens() -> None:
    dialogues = random_dialogues(LENGTHS)
    expected = reference("qwen2", "sdpa", dialogues)
    reader = ResidualReader(small_model("qwen2", "sdpa"), pack_tokens=BUDGET)
    tokens = 0
    groups = list(packs(dialogues, BUDGET))
    for group, columns in zip(groups, reader.columns(cut_up(dialogues), [2, 0]), strict=True):
        assert list(columns) == ["L0", "L2", "position", "special"]
        alone = torch.cat([expected[int(s.dialogue[0])][2] for s in group])
        assert relative_error(columns["L2"], alone) < 1e-5
        assert columns["position"].tolist() == [p for s in group for p in range(len(s))]
        assert columns["special"].tolist() == [f for s in group for f in s.special.tolist()]
        tokens += len(columns["position"])
    assert tokens == sum(LENGTHS)


def test_packs_keep_to_the_budget_and_lose_nothing() -> None:
    dialogues = random_dialogues(LENGTHS)
    groups = list(packs(dialogues, BUDGET))
    sizes = [sum(map(len, group)) for group in groups]
    assert [size for size in sizes if size > BUDGET] == [40]
    assert sorted(int(s.dialogue[0]) for g in groups for s in g) == list(range(len(LENGTHS)))
    # Greedy and in order: which pack a dialogue is in depends on those before it alone.
    flat = [sorted(int(s.dialogue[0]) for s in group) for group in groups]
    assert [i for group in flat for i in group] == list(range(len(LENGTHS)))
    first = [len(dialogues[group[0]]) for group in flat]
    assert all(size + extra > BUDGET for size, extra in zip(sizes, first[1:], strict=False))
    assert list(packs([], BUDGET)) == []


def test_computed_tokens_are_real_tokens() -> None:
    """No padding: after the check of the first pack, exactly the dialogues' tokens are computed."""
    dialogues = random_dialogues(LENGTHS)
    model = small_model("qwen2", "sdpa")
    reader = ResidualReader(model, pack_tokens=BUDGET)
    list(reader.columns(cut_up(dialogues), [1]))
    before = reader.computed_tokens
    seen: list[int] = []
    handle = model.model.layers[0].register_forward_hook(
        lambda module, args, output: seen.append(args[0].shape[0] * args[0].shape[1])
    )
    list(reader.columns(cut_up(dialogues), [1]))
    handle.remove()
    assert reader.computed_tokens - before == sum(LENGTHS)
    assert sum(seen) == sum(LENGTHS)
    assert len(seen) == len(list(packs(dialogues, BUDGET)))


@pytest.mark.parametrize("last", range(LAYERS))
def test_nothing_runs_after_the_last_hooked_layer(last: int) -> None:
    dialogues = random_dialogues(LENGTHS)
    model = small_model("llama", "sdpa")
    heads: list[str] = []
    model.lm_head.register_forward_hook(lambda *args: heads.append("head"))
    reader = ResidualReader(model, pack_tokens=BUDGET)
    list(reader.columns(cut_up(dialogues), [0]))  # the first pack is checked at the last layer
    ran: list[str] = []

    def count(name: str) -> Any:
        return lambda *args: ran.append(name)

    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(count(f"{number}"))
    model.model.norm.register_forward_pre_hook(count("norm"))
    list(reader.columns(cut_up(dialogues), [0, last]))
    assert set(ran) == {str(n) for n in range(last + 1)}
    assert len(set(map(ran.count, ran))) == 1
    assert not heads


@pytest.mark.parametrize(("kind", "attention"), [("qwen2", "sdpa"), ("gemma2", "eager")])
def test_the_model_is_as_before(kind: str, attention: str) -> None:
    model, ids = small_model(kind, attention), random_dialogues([20])[0].ids
    before = plain_forward(model, ids)
    list(ResidualReader(model).columns(cut_up(random_dialogues(LENGTHS)), [1]))
    assert model.config._attn_implementation == attention
    assert model.model.config._attn_implementation == attention
    after = plain_forward(model, ids)
    assert torch.equal(before[1], after[1])
    assert not any(m._forward_hooks for m in model.modules())


def test_the_model_is_as_before_after_an_error_in_the_middle() -> None:
    model = small_model("qwen2", "sdpa")
    reader = ResidualReader(model, pack_tokens=BUDGET)
    columns = reader.columns(cut_up(random_dialogues(LENGTHS)), [2])
    next(columns)

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        list(columns)
    handle.remove()
    assert model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks for m in model.modules())


def test_the_model_is_as_before_when_no_one_reads_on() -> None:
    model = small_model("qwen2", "sdpa")
    columns = ResidualReader(model).columns(cut_up(random_dialogues(LENGTHS)), [2])
    next(columns)
    columns.close()  # type: ignore[attr-defined]
    assert model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("threads", [1, 2, 6])
def test_packs_computed_side_by_side_come_in_order(threads: int) -> None:
    before = torch.get_num_threads()
    dialogues = random_dialogues(LENGTHS * 6)
    groups = cut_up(dialogues)
    model = small_model("qwen2", "sdpa")
    torch.set_num_threads(threads)
    try:
        reader = ResidualReader(model)
        found = list(reader.columns(groups, [0, 2]))
        assert torch.get_num_threads() == threads
        alone = list(reader.columns(groups, [0, 2], side_by_side=False))
    finally:
        torch.set_num_threads(before)
    assert len(found) == len(groups)
    for group, columns, expected in zip(groups, found, alone, strict=True):
        assert columns["position"].tolist() == [p for s in group for p in s.position]
        assert columns["special"].tolist() == [p for s in group for p in s.special]
        for layer in ("L0", "L2"):
            assert relative_error(columns[layer], expected[layer]) < 1e-5


def test_two_readers_of_one_model_do_not_disturb_each_other() -> None:
    model = small_model("qwen2", "sdpa")
    groups = cut_up(random_dialogues(LENGTHS))
    expected = list(ResidualReader(model).columns(groups, [2]))
    first, second = (ResidualReader(model).columns(groups, [layer]) for layer in (2, 0))
    for columns, want in zip(first, expected, strict=True):
        next(second)
        assert relative_error(columns["L2"], want["L2"]) < 1e-5


# --- models that cannot be packed ---------------------------------------------------------------


def drops_keywords(model: Any) -> None:
    """As a model whose layers do not pass unknown keyword arguments on to attention."""
    forward = model.model.forward

    def without(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **{k: v for k, v in kwargs.items() if not k.startswith("segment_")})

    model.model.forward = without


def mixes_neighbours(model: Any) -> None:
    """As a model with a convolution or a recurrence beside attention: tokens see the one before."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        shifted = torch.nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]
        mixed = hidden + 0.3 * shifted
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    model.model.layers[0].register_forward_hook(hook)


@pytest.mark.parametrize("change", [drops_keywords, mixes_neighbours])
@pytest.mark.parametrize("lengths", [LENGTHS, [40, 40, *LENGTHS]])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_models_that_cannot_be_packed_go_one_by_one_with_the_same_numbers(
    change: Any, lengths: list[int], attention: str, warnings: pytest.LogCaptureFixture
) -> None:
    """Also where the first packs hold a single dialogue each, which proves nothing about packing."""
    dialogues = random_dialogues(lengths)
    plain, model = small_model("qwen2", attention), small_model("qwen2", attention)
    change(model)
    if change is mixes_neighbours:
        change(plain)
    expected = {int(s.dialogue[0]): plain_forward(plain, s.ids)[0] for s in dialogues}
    found = read_all(ResidualReader(model, pack_tokens=BUDGET), dialogues, list(range(LAYERS)))
    assert_equal(found, expected)
    assert fell_back(warnings)
    assert model.config._attn_implementation == attention


def test_activations_that_are_not_finite_are_an_error_that_names_the_layer() -> None:
    model = small_model("qwen2", "sdpa")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 0] = float("nan")
    reader = ResidualReader(model)
    list(reader.columns(cut_up(random_dialogues(LENGTHS)), [1]))
    with pytest.raises(TrainingError, match=r"layer 2: .* NaN or infinity"):
        list(reader.columns(cut_up(random_dialogues(LENGTHS)), [1, 2]))


def test_positions_of_a_pack_start_again_with_each_dialogue() -> None:
    reader = ResidualReader(small_model("qwen2"))
    pack = next(reader.packs(random_dialogues([3, 1, 2])))
    assert pack.lengths == [3, 1, 2]
    assert pack.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert np.array_equal(pack.input_ids[0].numpy(), np.concatenate([s.ids for s in pack.sequences]))
