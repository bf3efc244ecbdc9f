"""Forwards that go on from kept states, against whole forwards of an unmodified model."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
from conftest import CONFIGS, LAYERS, VOCABULARY, WIDTH, _shape, random_dialogues, small_model
from torch import Tensor

from fastzoo.config.recipe import ModelSection
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.load import find_model, load_model
from fastzoo.lm.packing import Pack

GEMMA3 = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
    "query_pre_attn_scalar": 5,
}
KINDS = [*CONFIGS, "gemma3", "tiny-chat"]


def a_model(kind: str) -> Any:
    if kind == "tiny-chat":
        return load_model(find_model(ModelSection()), ModelSection(), torch.device("cpu"))
    if kind != "gemma3":
        return small_model(kind, "eager" if kind == "gemma2" else "sdpa")
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(**_shape(**GEMMA3), attn_implementation="sdpa")
    return Gemma3ForCausalLM(config).eval().requires_grad_(False)


def counted(model: Any) -> list[int]:
    """Grows by a layer's number whenever that layer's attention is computed."""
    computed: list[int] = []
    for index, layer in enumerate(ResidualReader(model).layers):
        layer.self_attn.register_forward_hook(lambda *args, index=index: computed.append(index))
    return computed


@pytest.mark.parametrize("kind", KINDS)
def test_a_restarted_forward_is_a_whole_one_with_the_states_edited(kind: str) -> None:
    model = a_model(kind)
    forwards = [vars(layer).get("forward") for layer in ResidualReader(model).layers]
    reader = ResidualReader(model, pack_tokens=64)
    layers = range(len(reader.layers))
    torch.manual_seed(1)
    (pack,) = reader.packs(random_dialogues([9, 1, 26, 5, 5], seed=3))
    acts, final_TD = reader.read_to_end(pack, layers)
    assert torch.equal(final_TD, reader.final_states(pack))
    for layer, acts_TD in reader.read(pack, layers).items():
        assert torch.equal(acts_TD, acts[layer])
    computed = counted(model)
    for layer in layers:
        changed_TD = acts[layer] + torch.randn_like(acts[layer])
        whole_TD = reader.final_states(pack, (layer, lambda x_TD, changed_TD=changed_TD: changed_TD))
        assert (whole_TD - final_TD).abs().max() > 0.01
        computed.clear()
        found_TD = reader.restarted(pack, layer, changed_TD)
        assert computed == list(layers)[layer + 1 :]
        assert torch.equal(found_TD, whole_TD)
    assert [vars(layer).get("forward") for layer in reader.layers] == forwards
    assert torch.equal(reader.final_states(pack), final_TD)


def test_layers_that_return_tuples_are_left_out_too() -> None:
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    config = FalconConfig(**shape, num_attention_heads=4, bos_token_id=1, eos_token_id=1)
    reader = ResidualReader(FalconForCausalLM(config).eval().requires_grad_(False))
    computed: list[int] = []
    for index, layer in enumerate(reader.layers):
        layer.mlp.register_forward_hook(lambda *args, index=index: computed.append(index))
    (pack,) = reader.packs(random_dialogues([12]))
    acts, _ = reader.read_to_end(pack, [1])
    whole_TD = reader.final_states(pack, (1, lambda x_TD: acts[1] * 2))
    computed.clear()
    assert torch.equal(reader.restarted(pack, 1, acts[1] * 2), whole_TD)
    assert computed == [2, 3]


@pytest.mark.parametrize("how", ["fails", "differs"])
def test_a_model_whose_layers_share_more_than_states_is_computed_whole(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model("llama")
    kept: dict[str, Tensor] = {"first": torch.zeros(())}

    def keep(module: Any, args: Any, output: Tensor) -> None:
        kept["first"] = output

    def use(module: Any, args: Any, output: Tensor) -> Tensor:
        if how == "fails":
            return output + kept.pop("first")
        return output + kept.pop("first", torch.zeros(()))

    model.model.layers[0].mlp.register_forward_hook(keep)
    model.model.layers[2].mlp.register_forward_hook(use)
    reader = ResidualReader(model)
    (pack,) = reader.packs(random_dialogues([12]))
    with caplog.at_level(logging.WARNING):
        acts, final_TD = reader.read_to_end(pack, [1, 2])
        reader.read_to_end(pack, [1, 2])
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("the model cannot go on from layer 1, and is computed whole for every SAE there: ")
    for layer in (1, 2):
        changed_TD = acts[layer] * 2
        whole_TD = reader.final_states(pack, (layer, lambda x_TD, changed_TD=changed_TD: changed_TD))
        assert torch.equal(reader.restarted(pack, layer, changed_TD), whole_TD)
        assert torch.equal(reader.restarted(pack, layer, acts[layer]), final_TD)


def test_forwards_in_other_threads_are_not_affected() -> None:
    model = small_model("qwen2", "sdpa")
    reader, other = ResidualReader(model), ResidualReader(model)  # they share what is put into the model
    for each in (reader, other):
        each.alone = "the test wants it"  # with attention as in the model's own forward
    (pack,) = reader.packs(random_dialogues([20]))
    other.read_to_end(pack, [3])
    with torch.inference_mode():
        logits = model(pack.input_ids).logits
    acts, final_TD = reader.read_to_end(pack, [1, 3])
    entered, leave = threading.Event(), threading.Event()

    def wait(module: Any, args: Any, output: Any) -> None:
        if threading.current_thread() is restarting:
            entered.set()
            assert leave.wait(60)

    found: dict[str, Tensor] = {}
    restarting = threading.Thread(
        target=lambda: found.update(zeros=reader.restarted(pack, 1, torch.zeros_like(acts[1])))
    )
    handle = model.model.layers[2].register_forward_hook(wait)
    restarting.start()
    assert entered.wait(60)
    try:  # In the middle of a restarted forward: a plain one, and restarted ones that end before it.
        with torch.inference_mode():
            assert torch.equal(model(pack.input_ids).logits, logits)
        for each in (reader, other):
            assert torch.equal(each.restarted(pack, 3, acts[3]), final_TD)
    finally:
        leave.set()
        restarting.join()
    handle.remove()
    assert torch.equal(found["zeros"], reader.final_states(pack, (1, torch.zeros_like)))
    assert "forward" not in vars(model.model.layers[0])


def test_a_forward_of_a_layer_s_own_is_put_back() -> None:
    model = small_model("qwen2")
    own, calls = model.model.layers[0].forward, []
    model.model.layers[0].forward = mine = lambda *a, **k: calls.append(1) or own(*a, **k)
    reader = ResidualReader(model)
    pack = Pack.of(random_dialogues([5]), reader.device)
    acts, _ = reader.read_to_end(pack, [1])
    count = len(calls)
    reader.restarted(pack, 1, acts[1])
    assert model.model.layers[0].forward is mine and len(calls) == count
