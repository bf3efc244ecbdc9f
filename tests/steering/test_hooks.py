"""Steering against hooks written out by hand, on random models of several families."""

from __future__ import annotations

import contextvars
import copy
import gc
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import VOCABULARY, WIDTH, randomise, small_model
from torch import Tensor

from fastzoo.core.errors import InputError, ModelError
from fastzoo.data.special_tokens import roles
from fastzoo.saes import architecture
from fastzoo.saes.base import Sinks
from fastzoo.saes.formats import LoadedSAE
from fastzoo.saes.topk import TopKSAE
from fastzoo.steering.edits import make_edit
from fastzoo.steering.hooks import Steering, steer

LATENTS = 24
KINDS = ("qwen2", "llama", "gemma2")


@pytest.fixture(scope="module")
def sae() -> Any:
    found = randomise(architecture("jumprelu")(WIDTH, LATENTS), seed=3)
    with torch.no_grad():
        found.W_dec.div_(found.W_dec.norm(dim=1, keepdim=True))
    return found.requires_grad_(False)


def hook_by_hand(model: Any, layer: int, edit: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    stack = getattr(model.model, "decoder", model.model)
    return stack.layers[layer].register_forward_hook(hook)


def prompts(rows: int = 3, longest: int = 9, seed: int = 0) -> dict[str, Tensor]:
    """Left-padded prompts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (rows, longest), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : 2 * row] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def generate(model: Any, inputs: dict[str, Tensor], **more: Any) -> list[list[int]]:
    out = model.generate(
        **inputs, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None, **more
    )
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def alone(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row without its padding."""
    kept = inputs["attention_mask"][row].bool()
    return {name: value[row : row + 1, kept] for name, value in inputs.items()}


def hooks_of(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(
    ("kind", "attention"), [*((kind, "eager") for kind in KINDS), ("qwen2", "sdpa"), ("llama", "sdpa")]
)
def test_cells_of_a_batch_are_single_runs_with_and_without_cache(kind: str, attention: str, sae: Any) -> None:
    model, inputs = small_model(kind, attention), prompts()
    alphas = [0.0, 3.0, -40.0]
    free = [generate(model, alone(inputs, row))[0] for row in range(3)]
    single = []
    for row, alpha in enumerate(alphas):
        handle = hook_by_hand(model, 1, lambda h, a=alpha: h + a * sae.W_dec[7])
        single.append(generate(model, alone(inputs, row))[0])
        handle.remove()
    assert single[0] == free[0] and single[1:] != free[1:]
    for use_cache in (True, False):
        with steer(model, sae, {7: alphas}, layer=1):
            assert generate(model, inputs, use_cache=use_cache) == single
    assert hooks_of(model) == 0
    assert [generate(model, alone(inputs, row))[0] for row in range(3)] == free


def test_alpha_0_is_the_unhooked_model_to_the_bit(sae: Any) -> None:
    for kind in KINDS:
        for dtype in (torch.float32, torch.bfloat16):
            model, inputs = small_model(kind).to(dtype), prompts()
            plain = model(**inputs).logits
            with steer(model, sae, {7: 0.0, 3: 0.0}, layer=2):
                assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk"])
def test_other_modes_keep_the_error_of_the_reconstruction(kind: str) -> None:
    model, inputs = small_model("qwen2"), prompts()
    sae = TopKSAE(WIDTH, LATENTS, k=5) if kind == "topk" else architecture(kind)(WIDTH, LATENTS)
    sae = randomise(sae, seed=1).requires_grad_(False)
    latents, values = [2, 11], torch.tensor([1.5, 4.0])

    def by_decoding(change: Callable[[Tensor], Tensor]) -> Tensor:
        def edit(hidden: Tensor) -> Tensor:
            acts = sae.encode(hidden)
            error = hidden - sae.decode(acts)
            acts[..., latents] = change(acts[..., latents])
            return sae.decode(acts) + error

        handle = hook_by_hand(model, 1, edit)
        logits = model(**inputs).logits
        handle.remove()
        return logits

    plain = model(**inputs).logits
    expected = {
        "clamp": by_decoding(lambda acts: values.expand_as(acts)),
        "scale": by_decoding(lambda acts: values * acts),
        "ablate": by_decoding(torch.zeros_like),
    }
    for mode, logits in expected.items():
        with steer(model, sae, dict(zip(latents, values.tolist(), strict=True)), layer=1, mode=mode):
            found = model(**inputs).logits
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=2e-4)
        assert not torch.allclose(found, plain, atol=1e-2), mode


@pytest.mark.parametrize("mode", ["add", "clamp", "scale", "ablate"])
def test_only_add_touches_sinks_that_the_sae_skips(mode: str, sae: Any) -> None:
    model, inputs = small_model("qwen2"), prompts()

    def stream() -> Tensor:
        return model(**inputs, output_hidden_states=True).hidden_states[3]  # after layer 2

    def steered(sinks: Sinks | None) -> Tensor:
        marked = copy.deepcopy(sae)
        marked.sinks = sinks
        with steer(model, marked, {7: 1.5, 3: 2.0}, layer=2, mode=mode):
            return stream()

    plain = stream()
    limit = plain.norm(dim=-1).median().item()
    sink_BT = plain.norm(dim=-1) > limit
    everywhere = steered(None)
    assert not torch.equal(everywhere[sink_BT], plain[sink_BT])
    assert torch.equal(steered(Sinks(limit, limit / 10, False)), everywhere)
    passed = steered(Sinks(limit, limit / 10, True))
    assert torch.equal(passed[~sink_BT], everywhere[~sink_BT])
    assert torch.equal(passed[sink_BT], (everywhere if mode == "add" else plain)[sink_BT])


def test_units(sae: Any) -> None:
    model, inputs = small_model("llama"), prompts()
    statistics = SimpleNamespace(residual_norm=5.0, mean_max_F=torch.arange(LATENTS) + 1.0)
    long = randomise(architecture("standard")(WIDTH, LATENTS), seed=2)  # rows of any length

    def logits(weights: Any, alpha: float, **how: Any) -> Tensor:
        with steer(model, weights, {7: alpha}, layer=1, **how):
            return model(**inputs).logits

    known = {"statistics": statistics}
    assert torch.equal(logits(sae, 2.0, units="max", **known), logits(sae, 16.0))
    length = float(long.W_dec[7].detach().norm())
    torch.testing.assert_close(
        logits(long, 2.0, units="norm", **known), logits(long, 10.0 / length), rtol=1e-4, atol=1e-4
    )


# --- positions -----------------------------------------------------------------------------------


def by_full_forwards(model: Any, ids: Tensor, delta: Tensor, wanted: Any, steps: int = 8) -> list[int]:
    """Greedy tokens, each from a forward of the whole sequence, steered where ``wanted`` says."""
    length = ids.shape[1]
    for _ in range(steps):
        mask = torch.tensor([[wanted(i, int(t), length) for i, t in enumerate(ids[0])]])
        handle = hook_by_hand(model, 1, lambda h, m=mask: h + m[..., None] * delta)
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        handle.remove()
    return ids[0, length:].tolist()


# OPT's base model is not entered when the model is.
@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "opt"])
def test_positions_are_those_of_the_sequence(kind: str, sae: Any) -> None:
    model = small_model(kind)
    some = {5, 17, 40, *range(60, 80)}
    cases: dict[str, tuple[Any, Any]] = {
        "prompt": ("prompt", lambda i, token, length: i < length),
        "generated": ("generated", lambda i, token, length: i >= length),
        "tokens": (some, lambda i, token, length: token in some),
        "function": (lambda known: known % 2 == 0, lambda i, token, length: token % 2 == 0),
        "all": ("all", lambda i, token, length: True),
    }
    delta = 25 * sae.W_dec[7]
    found = {}
    for name, (positions, wanted) in cases.items():
        # A second prompt in the same block starts anew.
        both = [prompts(1, 6 + seed, seed)["input_ids"] for seed in (0, 1)]
        expected = [by_full_forwards(model, ids, delta, wanted) for ids in both]
        for use_cache in (True, False):
            with steer(model, sae, {7: 25.0}, layer=1, positions=positions):
                for seed, ids in enumerate(both):
                    got = model.generate(
                        input_ids=ids,
                        max_new_tokens=8,
                        do_sample=False,
                        pad_token_id=0,
                        eos_token_id=None,
                        use_cache=use_cache,
                    )[0, ids.shape[1] :].tolist()
                    found[name, seed] = got
                    assert got == expected[seed], (name, use_cache)
    assert len({tuple(found[name, 0]) for name in cases}) > 3, "the cases differ"


def test_positions_of_a_padded_batch_and_of_beams(sae: Any) -> None:
    model, inputs = small_model("llama"), prompts()
    for positions in ("prompt", "generated", {3, 4, 5, *range(30, 60)}):
        with steer(model, sae, {7: 30.0}, layer=1, positions=positions):
            batch = generate(model, inputs)
            assert batch == [generate(model, alone(inputs, row))[0] for row in range(3)]
            generate(model, inputs, num_beams=3)
    alphas = [0.0, 20.0, -20.0]
    with steer(model, sae, {7: alphas}, layer=1):
        beams = generate(model, inputs, num_beams=3)
    for row, alpha in enumerate(alphas):
        with steer(model, sae, {7: alpha}, layer=1):
            assert generate(model, alone(inputs, row), num_beams=3)[0] == beams[row]


@pytest.mark.parametrize("positions", ["prompt", "generated"])
def test_positions_however_the_tokens_come(positions: str, sae: Any) -> None:
    model = small_model("llama")
    ids = prompts(1, 12)["input_ids"] % 9 + 1
    ids[0, 6:] = ids[0, :6]  # so that a look-up in the prompt finds something
    # The prompt ends within a piece, and with one.
    ways: list[dict[str, Any]] = [{"prefill_chunk_size": size} for size in (5, 6)]
    ways.append({"prompt_lookup_num_tokens": 3})
    wanted = {"prompt": lambda i, n: i < n, "generated": lambda i, n: i >= n}[positions]
    expected = by_full_forwards(model, ids, 25 * sae.W_dec[7], lambda i, token, length: wanted(i, length), 12)
    with steer(model, sae, {7: 25.0}, layer=1, positions=positions):
        for how in ways:
            assert generate(model, {"input_ids": ids}, **how) == [expected], how
        # A loop of one's own, whose cache the model makes.
        found, out = [], model(input_ids=ids, use_cache=True)
        for _ in range(12):
            token = out.logits[:, -1:].argmax(-1)
            found.append(int(token))
            out = model(input_ids=token, past_key_values=out.past_key_values)
        assert found == expected
        beams = [generate(model, {"input_ids": ids}, num_beams=3, use_cache=cache) for cache in (True, False)]
        assert beams[0] == beams[1]
        with pytest.raises(InputError, match="embeddings have no token ids"):
            model(inputs_embeds=model.get_input_embeddings()(ids))


def test_roles(tokenizer: Any) -> None:
    turns = [
        {"role": "user", "content": "say user assistant"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "why"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    shown = {
        role: tokenizer.decode(ids[0][roles(tokenizer, role)(ids)[0]]).split("<|im_start|>")[1:]
        for role in ("user", "assistant")
    }
    assert [part.split()[0] for part in shown["user"]] == ["user", "user"]
    assert "say user assistant" in shown["user"][0] and "why" in shown["user"][1]
    assert [part.split()[0] for part in shown["assistant"]] == ["assistant", "assistant"]
    both = roles(tokenizer, ["user", "assistant"])(ids)
    start = text.index("<|im_start|>user")
    assert not both[0, : len(tokenizer(text[:start], add_special_tokens=False)["input_ids"])].any()
    with pytest.raises(InputError, match="roles are user and assistant"):
        roles(tokenizer, "system")


@pytest.mark.parametrize("whole", [True, False], ids=["one token", "several tokens"])
@pytest.mark.parametrize(
    ("start", "end", "assistant", "head"),
    [
        ("<|start_header_id|>", "<|eot_id|>", "assistant", "<|end_header_id|>\n\n"),
        ("<start_of_turn>", "<end_of_turn>\n", "model", "\n"),
    ],
    ids=["llama-3", "gemma"],
)
def test_roles_of_other_templates(
    start: str, end: str, assistant: str, head: str, whole: bool, tokenizer: Any
) -> None:
    chat = copy.deepcopy(tokenizer)
    added = [text.strip() for text in (start, end, head) if text.strip()]
    chat.add_special_tokens({"additional_special_tokens": added})
    if whole:
        chat.add_tokens([assistant])
    one = f"{start!r} + names.get(turn.role, turn.role) + {head!r} + turn.content + {end!r}"
    chat.chat_template = f"{{% set names = {{'assistant': {assistant!r}}} %}}{{% for turn in messages %}}{{{{ {one} }}}}{{% endfor %}}"
    said = ["say user model", "no assistant", "why", "user, so"]
    turns = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(said)]
    lengths = [0]
    for i in range(1, 5):
        text = chat.apply_chat_template(turns[:i], tokenize=False)
        lengths.append(len(chat(text, add_special_tokens=False)["input_ids"]))
    ids = torch.tensor([chat(text, add_special_tokens=False)["input_ids"]])
    for parity, role in enumerate(("user", "assistant")):
        expected = [i % 2 == parity for i in range(4) for _ in range(lengths[i], lengths[i + 1])]
        assert roles(chat, role)(ids).tolist() == [expected]


# --- the model afterwards, nesting, threads --------------------------------------------------------


def test_the_model_is_as_before_whatever_ends_the_block(sae: Any) -> None:
    model, inputs = small_model("qwen2"), prompts()
    plain = model(**inputs).logits

    def untouched() -> bool:
        return hooks_of(model) == 0 and torch.equal(model(**inputs).logits, plain)

    for error in (RuntimeError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), steer(model, sae, {7: 9.0}, layer=1):
            raise error
        assert untouched()
    three = steer(model, sae, {7: [1.0, 2.0, 3.0]}, layer=1)
    with pytest.raises(InputError, match="3 rows do not fit a batch of 2"), three:
        model(input_ids=inputs["input_ids"][:2])
    assert untouched()

    def answers() -> Iterator[Tensor]:
        with steer(model, sae, {7: 9.0}, layer=1):
            while True:
                yield model(**inputs).logits

    abandoned = answers()
    assert not torch.equal(next(abandoned), plain)
    del abandoned
    gc.collect()
    assert untouched()
    # Closed in another thread than it was begun in.
    abandoned = answers()
    next(abandoned)
    closer = threading.Thread(target=abandoned.close)
    closer.start()
    closer.join()
    assert untouched()
    once = steer(model, sae, {7: 1.0}, layer=1)
    with once:
        model(**inputs)
    with pytest.raises(InputError, match="entered before"), once:
        pass
    assert untouched()


def test_nested_blocks_act_together_and_end_one_by_one(sae: Any) -> None:
    model, inputs = small_model("qwen2"), prompts()

    def by_hand(*edits: tuple[int, Tensor]) -> Tensor:
        handles = [hook_by_hand(model, layer, lambda h, d=d: h + d) for layer, d in edits]
        logits = model(**inputs).logits
        for handle in handles:
            handle.remove()
        return logits

    first, second = (1, 9 * sae.W_dec[7]), (2, -5 * sae.W_dec[3])
    expected = [by_hand(first, second), by_hand(first)]
    with steer(model, sae, {7: 9.0}, layer=1):
        with steer(model, sae, {3: -5.0}, layer=2):
            assert torch.equal(model(**inputs).logits, expected[0])
        assert torch.equal(model(**inputs).logits, expected[1])
    both = by_hand((1, 9 * sae.W_dec[7] - 5 * sae.W_dec[3]))
    with steer(model, sae, {7: 9.0, 3: -5.0}, layer=1):
        torch.testing.assert_close(model(**inputs).logits, both, rtol=1e-4, atol=1e-4)


def test_hooks_of_others_see_the_steered_stream(sae: Any) -> None:
    model, inputs = small_model("llama"), prompts()
    seen: list[Tensor] = []
    handle = model.model.layers[1].register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    model(**inputs)
    with steer(model, sae, {7: 9.0}, layer=1):
        model(**inputs)
    model(**inputs)
    torch.testing.assert_close(seen[1], seen[0] + 9 * sae.W_dec[7])
    assert torch.equal(seen[2], seen[0])
    handle.remove()


def test_200_interleavings_of_blocks_exceptions_and_threads(sae: Any) -> None:
    model, inputs = small_model("qwen2"), prompts(1, 5)
    expected: dict[float, Tensor] = {}
    for alpha in (0.0, 4.0, -8.0, 16.0):
        with steer(model, sae, {7: alpha}, layer=1):
            expected[alpha] = model(**inputs).logits
    wrong: list[Any] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(25):
            alpha = draw.choice(list(expected))
            try:
                with steer(model, sae, {7: alpha}, layer=1):
                    if draw.random() < 0.3:
                        raise ZeroDivisionError
                    if not torch.equal(model(**inputs).logits, expected[alpha]):
                        wrong.append((seed, alpha))
                    if draw.random() < 0.3:
                        with steer(model, sae, {7: -alpha}, layer=1):
                            if not torch.allclose(model(**inputs).logits, expected[0.0], atol=1e-4):
                                wrong.append((seed, "nested", alpha))
            except ZeroDivisionError:
                pass
            if not torch.equal(model(**inputs).logits, expected[0.0]):
                wrong.append((seed, "after"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong and hooks_of(model) == 0
    assert torch.equal(model(**inputs).logits, expected[0.0])


def test_a_thread_without_the_blocks_context_is_not_steered_and_that_is_said(sae: Any) -> None:
    model, inputs = small_model("qwen2"), prompts()
    plain, found = model(**inputs).logits, []

    def work() -> None:
        found.append(model(**inputs).logits)

    with pytest.warns(UserWarning, match=r"steering\.stream"), steer(model, sae, {7: 9.0}, layer=1):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    with steer(model, sae, {7: 9.0}, layer=1):
        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        thread.join()
    assert torch.equal(found[0], plain) and not torch.equal(found[1], plain)


def test_streams(sae: Any) -> None:
    model, inputs = small_model("llama"), prompts()
    how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with steer(model, sae, {7: [0.0, 9.0, 30.0]}, layer=1) as steering:
        expected = generate(model, inputs)
        steps = list(steering.stream(**inputs, **how))
        assert [list(row) for row in zip(*steps, strict=True)] == expected
        before = threading.active_count()
        for _ in steering.stream(**inputs, **{**how, "max_new_tokens": 100}):
            break
        assert threading.active_count() == before
        with pytest.raises(ValueError, match="max_new_tokens"):
            list(steering.stream(**inputs, **{**how, "max_new_tokens": -1}))
    with pytest.raises(InputError, match="inside the block"):
        next(steering.stream(**inputs))


def test_a_model_split_over_devices(sae: Any, tmp_path: Any) -> None:
    from accelerate import dispatch_model

    inputs = prompts()
    plain = small_model("qwen2")
    split = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    split |= {f"model.layers.{i}": "cpu" if i % 2 else "disk" for i in range(4)} | {"lm_head": "cpu"}
    model = dispatch_model(small_model("qwen2"), split, offload_dir=str(tmp_path))
    for layer in (0, 1):  # one that is kept on the disk, one that is not
        for mode in ("add", "clamp"):
            with steer(plain, sae, {7: 9.0}, layer=layer, mode=mode):
                expected = generate(plain, inputs)
            with steer(model, sae, {7: 9.0}, layer=layer, mode=mode):
                assert generate(model, inputs) == expected


def test_a_compiled_model(sae: Any) -> None:
    plain, inputs = small_model("qwen2"), prompts()
    with steer(plain, sae, {7: 9.0}, layer=1):
        expected = plain(**inputs).logits
    model = torch.compile(small_model("qwen2"), backend="eager")
    before = model(**inputs).logits
    with steer(model, sae, {7: 9.0}, layer=1), steer(model, sae, {3: 0.0}, layer=2):
        assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(model(**inputs).logits, before)
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_an_sae_in_bfloat16(sae: Any) -> None:
    model, inputs = small_model("qwen2"), prompts()
    narrow = copy.deepcopy(sae).to(torch.bfloat16)
    wide = copy.deepcopy(narrow).float()
    for mode in ("clamp", "scale", "ablate"):
        found = []
        for weights in (narrow, wide):
            with steer(model, weights, {7: 3.0, 4: 2.0}, layer=1, mode=mode):
                found.append(model(**inputs).logits)
        torch.testing.assert_close(found[0], found[1], rtol=0.1, atol=0.3)


def test_what_is_refused_before_anything_is_generated(sae: Any) -> None:
    model = small_model("qwen2")
    wide = architecture("standard")(WIDTH + 1, LATENTS)
    silent = SimpleNamespace(mean_max_F=torch.zeros(LATENTS))
    refusals: list[tuple[type[Exception], str, Any, dict[int, Any], dict[str, Any]]] = [
        (InputError, "there is no latent 24", sae, {24: 1.0}, {}),
        (InputError, "there is no latent -1", sae, {-1: 1.0}, {}),
        (InputError, "no latent is given", sae, {}, {}),
        (InputError, "layer 4: the model has 0 to 3", sae, {1: 1.0}, {"layer": 4}),
        (InputError, "which layer", sae, {1: 1.0}, {"layer": None}),
        (InputError, "finite", sae, {1: float("nan")}, {}),
        (InputError, "finite", sae, {1: "much"}, {}),
        (InputError, "latent 1 fires nowhere", sae, {1: 1.0}, {"units": "max", "statistics": silent}),
        (InputError, "different numbers of rows", sae, {1: [1.0, 2.0], 2: [1.0] * 3}, {}),
        (InputError, "mode 'push'", sae, {1: 1.0}, {"mode": "push"}),
        (InputError, "with scale they are raw", sae, {1: 1.0}, {"mode": "scale", "units": "max"}),
        (InputError, "need statistics", sae, {1: 1.0}, {"units": "norm"}),
        (InputError, "positions 'some'", sae, {1: 1.0}, {"positions": "some"}),
        (InputError, "positions are", sae, {1: 1.0}, {"positions": [1.5]}),
        (ModelError, "width 33", wide, {1: 1.0}, {}),
        (ModelError, "not a language model", sae, {1: 1.0}, {"model": torch.nn.Linear(3, 3)}),
    ]
    for kind, says, weights, latents, how in refusals:
        how = {"layer": 1, "model": model, **how}
        with pytest.raises(kind, match=says):
            steer(how.pop("model"), weights, latents, **how)
    model.name_or_path = "/cache/models--Qwen--Qwen2.5-7B-Instruct/snapshots/abc"
    loaded = LoadedSAE(sae, None, "saelens", 1, "Qwen/Qwen2.5-7B-Instruct")  # type: ignore[arg-type]
    assert isinstance(steer(model, loaded, {1: 1.0}), Steering)
    loaded.model_name = "meta-llama/Llama-3.1-8B-Instruct"
    with pytest.raises(InputError, match=r"trained on meta-llama.*force=True"):
        steer(model, loaded, {1: 1.0})
    steer(model, loaded, {1: 1.0}, force=True)
    # TransformerLens takes the mean out of what a LayerNorm reads, and leaves what an RMSNorm reads.
    loaded.model_name, loaded.centred = None, True
    steer(model, loaded, {1: 1.0})
    with pytest.raises(InputError, match="centred by TransformerLens"):
        steer(small_model("opt"), loaded, {1: 1.0})
    assert hooks_of(model) == 0
    # Gemma 3n's layers pass on several streams side by side.
    with pytest.raises(ModelError, match="not one residual"), steer(model, sae, {1: 1.0}, layer=0):
        model.model.layers[0].register_forward_hook(lambda m, args, out: out[None], prepend=True)
        model(**prompts())


def test_edits_are_sums_of_decoder_rows(sae: Any) -> None:
    edit = make_edit(sae, {7: 2.0, 3: [1.0, -1.0]}, layer=0)
    expected = torch.stack([2 * sae.W_dec[7] + s * sae.W_dec[3] for s in (1.0, -1.0)])
    torch.testing.assert_close(edit.values_RX, expected)
