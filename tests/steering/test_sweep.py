"""A sweep's cells are single runs; controls, ends, memory and bad questions."""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import WIDTH, randomise, small_model
from tiny_families import VARIANTS, tiny_config, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fastzoo import tiny
from fastzoo.config.recipe import DataSection
from fastzoo.core.errors import DataError, InputError
from fastzoo.core.threads import one_thread
from fastzoo.data.dialogues import Dialogue
from fastzoo.data.tokenizer import ChatTokenizer
from fastzoo.lm.lengths import LengthRules
from fastzoo.lm.padding import padding_is_exact
from fastzoo.saes import architecture
from fastzoo.steering.generate import GenerationSettings, write_answers
from fastzoo.steering.hooks import steer
from fastzoo.steering.sweep import Sweep
from fastzoo.steering.sweep_rows import rows_that_fit

ALPHAS = (0.0, 2.0, 9.0, -9.0)
TEXTS = ("Hello!", "What does a cat eat, and where does it live?", "Count to three.")
QUESTIONS = [Dialogue([{"role": "user", "content": text}]) for text in TEXTS]


SPOKEN = (
    "Hello! What does a cat eat, and where it live? Count to three. Say nothing but this Be brief.".split()
)


PLAIN = "{% for m in messages %}{{ m.content ~ ' ' }}{% endfor %}"


def words(template: str = PLAIN, special: str | None = None) -> ChatTokenizer:
    """For the random models: one token for each word, no special ones but the end."""
    vocabulary = ["<pad>", "</s>", *SPOKEN]
    vocabulary += [f"w{n}" for n in range(len(vocabulary), 96)]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", chat_template=template)
    if special:
        made.add_special_tokens({"additional_special_tokens": [special]})
    return ChatTokenizer(made, DataSection(), "words")


def ids_of(text: str) -> list[int]:
    return words().tokenize([text])[0].tolist()


@pytest.fixture(scope="module")
def sae() -> Any:
    found = randomise(architecture("jumprelu")(WIDTH, 24), seed=3)
    return found.requires_grad_(False)


def make(model: Any, sae: Any, **more: Any) -> Sweep:
    settings = {"max_new_tokens": 12, **more.pop("settings", {})}
    values = {"chat": words(), "layer": 1, "latents": [7], "questions": QUESTIONS}
    values |= {"alphas": ALPHAS, "settings": GenerationSettings(**settings), **more}
    return Sweep(model=model, sae=sae, **values)


@pytest.mark.parametrize("mode", ["add", "clamp"])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma2", "opt"])
def test_cells_are_single_runs(kind: str, mode: str, sae: Any) -> None:
    model = small_model(kind)
    cells = make(model, sae, mode=mode, control=False).cells()
    assert [(c.question, c.alpha) for c in cells] == [(q, a) for q in range(3) for a in ALPHAS]
    for cell in cells:
        prompt = ids_of(TEXTS[cell.question])
        ids = torch.tensor([prompt])
        with steer(model, sae, {7: cell.alpha}, layer=1, mode=mode):
            out = model.generate(
                input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=1
            )
        tokens = out[0, ids.shape[1] :].tolist()
        assert list(cell.ids) == tokens and cell.ended == (tokens[-1] == 1)
    for rows in (1, 5):
        assert make(model, sae, mode=mode, control=False, settings={"rows": rows}).cells() == cells


SYSTEM = {"role": "system", "content": "Say nothing but this"}


def test_controls_run_beside_it(sae: Any) -> None:
    model = small_model("qwen2")
    cells = make(model, sae, wish="Say nothing but this").cells()
    by = {arm: [c for c in cells if c.arm == arm] for arm in ("latent", "random", "prompt")}
    assert [len(found) for found in by.values()] == [12, 12, 3]
    for latent, other in zip(by["latent"], by["random"], strict=True):
        assert (latent.ids == other.ids) == (latent.alpha == 0)
    told = make(
        model, sae, control=False, alphas=[0.0], questions=[Dialogue([SYSTEM, *q.turns]) for q in QUESTIONS]
    )
    assert [c.ids for c in by["prompt"]] == [c.ids for c in told.cells()]
    clamped = make(model, sae, mode="clamp", wish="Say nothing but this").cells()
    assert [c.ids for c in clamped if c.arm == "prompt"] == [c.ids for c in by["prompt"]]
    length = float(sae.W_dec[7].norm())
    sweep = make(model, sae)
    rows = {row.alpha: row.edit.values_RX[row.index] for row in sweep.rows() if row.arm == "random"}
    for alpha, delta in rows.items():
        assert float(delta.norm()) == pytest.approx(abs(alpha) * length, abs=1e-5)
    torch.testing.assert_close(rows[9.0], -rows[-9.0])


ENDS = list(range(1, 96, 12))
"""So many that some answers end soon and others do not."""


def alone(model: Any, sae: Any, cell: Any, how: dict[str, Any], generate: dict[str, Any]) -> Any:
    """The tokens of one cell, from a plain ``generate`` of its own."""
    ids = torch.tensor([ids_of(TEXTS[cell.question])])
    torch.manual_seed(5)
    with steer(model, sae, {7: cell.alpha}, layer=1, **how):
        out = model.generate(input_ids=ids, max_new_tokens=60, pad_token_id=0, eos_token_id=ENDS, **generate)
    return tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize(
    ("kind", "how", "sampled", "cache"),
    [
        ("llama", {}, False, True),
        ("gemma2", {}, True, True),
        ("qwen2", {}, True, False),
        ("gemma2", {"positions": "generated"}, False, True),
        ("qwen2", {"positions": "prompt"}, False, False),
        ("llama", {"positions": range(2, 50)}, True, True),
        ("qwen2", {"positions": "generated", "mode": "clamp"}, True, True),
    ],
)
def test_rows_that_end_leave_and_change_no_other(
    kind: str, how: dict[str, Any], sampled: bool, cache: bool, sae: Any
) -> None:
    model = small_model(kind)
    model.generation_config.use_cache = cache
    model.generation_config.eos_token_id = ENDS
    assert padding_is_exact(model)
    sizes: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    settings = {"max_new_tokens": 60, "seed": 5, "temperature": 0.9 if sampled else 0.0}
    cells = make(model, sae, control=False, settings={**settings, "top_p": 0.95}, **how).cells()
    assert sizes[0] == 12 and 0 < sizes[-1] < 12 and sizes == sorted(sizes, reverse=True)
    generate: dict[str, Any] = {"do_sample": False}
    if sampled:
        generate = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 0}
    for cell in cells:
        assert cell.ids == alone(model, sae, cell, how, generate)


LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16}
LONGROPE |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 5.0, 7.0]}
SWITCHING: dict[str, dict[str, Any]] = {
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    "llama": {"rope_parameters": LONGROPE},
}
"""Rotary embeddings that the longest row of a batch decides about."""


@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
@pytest.mark.parametrize("kind", SWITCHING)
def test_rows_on_both_sides_of_a_switching_length(kind: str, positions: str, sae: Any) -> None:
    """Short all along, crossing it, and long from the start."""
    model, told = small_model(kind, **SWITCHING[kind]), Counter[int]()
    chat, lengths, edited = words(), (3, 5, 9, 16, 17, 40), {"latents": [7], "alphas": [0.0, 9.0]}
    prompts = [[2 + (7 * n + i * i) % 90 for i in range(n)] for n in lengths]
    questions = [Dialogue([{"role": "user", "content": str(n)}]) for n in range(len(lengths))]
    chat.prompt = lambda question: prompts[int(question.turns[0]["content"])]
    sweep = make(model, sae, chat=chat, questions=questions, control=False, positions=positions, **edited)
    found = sweep.cells(lambda step: told.update(row for row, _ in step))
    for row, cell in enumerate(found):
        fresh, ids = small_model(kind, **SWITCHING[kind]), torch.tensor([prompts[cell.question]])
        with steer(fresh, sae, {7: cell.alpha}, layer=1, positions=positions):
            out = fresh.generate(input_ids=ids, max_new_tokens=12, do_sample=False, eos_token_id=1)
        assert list(cell.ids) == out[0, ids.shape[1] :].tolist() and told[row] == len(cell.ids)


@pytest.mark.parametrize("family", ["recurrent_gemma", "rwkv", "trocr", "git", "openai-gpt", "whisper"])
def test_answers_of_models_that_padding_disturbs(family: str) -> None:
    """Or that know no cache, or take places without saying so."""
    model, ends = tiny_model(tiny_config(family)), list(range(1, 1024, 12))
    model.generation_config.eos_token_id = ends
    sae = randomise(architecture("jumprelu")(64, 24), seed=3).requires_grad_(False)
    questions, far = QUESTIONS[1:], {"alphas": [*range(10)], "settings": {"max_new_tokens": 40}}
    cells = make(model, sae, control=False, questions=questions, **far).cells()
    for cell in cells:
        ids = torch.tensor([ids_of(TEXTS[1 + cell.question])])
        with steer(model, sae, {7: cell.alpha}, layer=1):
            out = model.generate(
                input_ids=ids, max_new_tokens=40, do_sample=False, pad_token_id=0, eos_token_id=ends
            )
        assert list(cell.ids) == out[0, ids.shape[1] :].tolist()


PHI = next(own for family, _, own in VARIANTS if family == "phi3")
MSCALES = {"short_mscale": 1.1, "long_mscale": 1.3}


@pytest.mark.parametrize(
    ("family", "own"),
    [
        ("phimoe", PHI | {"rope_parameters": PHI["rope_parameters"] | MSCALES}),
        ("phi4_multimodal", PHI),  # which begins anew at every token beyond
        *((family, own) for family, _, own in VARIANTS[:3]),
    ],
)
def test_an_answer_across_a_switching_length_is_that_of_generate(family: str, own: dict[str, Any]) -> None:
    config = tiny_config(family, **own)
    (switch,) = LengthRules.of(config).sides or (LengthRules.of(config).scaled_beyond,)
    for before in (5, 0, -1):
        ids = torch.arange(3, 3 + switch - before)[None]
        how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": 1}
        expected = tiny_model(config).generate(input_ids=ids, **how)[0, ids.shape[1] :].tolist()
        settings = GenerationSettings(12)
        found = write_answers(tiny_model(config), ids.tolist(), settings, [1], 0, None, lambda places: None)
        assert found == [expected]


def test_what_a_model_remembers_of_longer_dialogues_counts_no_more() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    prompt, answers = [2 + (i * i) % 90 for i in range(40)], []
    for before in (1, 90):
        model = small_model("llama", max_position_embeddings=32, rope_parameters=rope)
        model(input_ids=torch.arange(before)[None])
        answers += write_answers(model, [prompt], GenerationSettings(12), [1], 0, None, lambda places: None)
    assert answers[0] == answers[1]


SHIPPED: dict[str, Any] = {
    "do_sample": True,
    "top_k": 3,
    "min_p": 0.3,
    "typical_p": 0.5,
    "top_h": 0.3,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "repetition_penalty": 1.5,
    "encoder_repetition_penalty": 1.5,
    "no_repeat_ngram_size": 2,
    "penalty_alpha": 0.6,
    "max_length": 20,
    "min_length": 40,
    "max_time": 0.001,
    "stop_strings": ["a"],
    "num_beams": 4,
    "num_return_sequences": 3,
    "guidance_scale": 1.5,
    "token_healing": True,
    "prompt_lookup_num_tokens": 3,
    "is_assistant": True,
    "cache_implementation": "quantized",
    "prefill_chunk_size": 2,
    "return_dict_in_generate": True,
    "output_scores": True,
}
"""Of models' generation configs: what an answer of a sweep does without."""


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_what_a_models_generation_config_says(
    temperature: float, sae: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"max_new_tokens": 30, "temperature": temperature}
    expected = make(small_model("llama"), sae, settings=settings).cells()
    model = small_model("llama")
    for name, value in SHIPPED.items():
        assert hasattr(model.generation_config, name)
        setattr(model.generation_config, name, value)
    logger = logging.getLogger("transformers")  # its records go no further
    logger.addHandler(caplog.handler)
    try:
        assert make(model, sae, settings=settings).cells() == expected
        assert not caplog.records
    finally:
        logger.removeHandler(caplog.handler)
    # What it says of the tokens themselves is obeyed.
    model.generation_config.suppress_tokens = list({*expected[0].ids})
    said = make(model, sae, settings=settings).cells()
    assert said[0].ids and not {*said[0].ids} & {*expected[0].ids}


def test_toys_decode_in_one_thread_and_leave_torch_its_threads(
    sae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, threads = small_model("llama"), torch.get_num_threads()
    assert padding_is_exact(model)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(3)
    try:
        expected = make(model, sae).cells()
        assert set(seen) == {1} and torch.get_num_threads() == 3
        with one_thread(), ThreadPoolExecutor(1) as other:
            assert other.submit(make(model, sae).cells).result() == expected
            with one_thread():
                pass
        assert torch.get_num_threads() == 3
        seen.clear()
        monkeypatch.setattr("fastzoo.steering.generate.TOY_PARAMETERS", 1)
        make(model, sae).cells()
        assert set(seen) == {3}
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_wish_goes_where_the_template_has_room_for_it(role: str, sae: Any) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    no_system = words(refuses + PLAIN)  # as Gemma 2's
    system = Dialogue([{"role": role, "content": "Be brief."}, *QUESTIONS[0].turns])

    def prompt(question: Dialogue, chat: ChatTokenizer) -> list[int]:
        how = {"questions": [question], "wish": "Say nothing", "chat": chat}
        return [row.prompt for row in make(small_model("qwen2"), sae, **how).rows()][-1]

    assert prompt(QUESTIONS[0], words()) == ids_of("Say nothing Hello!")
    assert prompt(QUESTIONS[0], no_system) == ids_of("Say nothing Hello!")
    assert prompt(system, words()) == ids_of("Be brief. Say nothing Hello!")
    with pytest.raises(DataError, match="question 1: refused by the chat template: no system turns"):
        prompt(system, no_system)


def test_what_is_asked_twice_is_answered_once(sae: Any) -> None:
    model, sizes = small_model("llama"), []
    assert padding_is_exact(model)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    assert len(make(model, sae).cells()) == 24 and sizes[0] == 21, "alpha 0 of both arms"
    sizes.clear()
    found = make(model, sae).many([3, 7])
    assert sizes[0] == 21 and [len(cells) for cells in found.values()] == [12, 12]


def test_logits_that_are_no_numbers_end_nothing(sae: Any) -> None:
    model = small_model("qwen2").to(torch.float16)
    far = {"alphas": [0.0, 1e30], "settings": {"temperature": 1.0}}
    assert all(cell.ids for cell in make(model, sae, **far).cells())


def test_sampling_is_repeatable_and_leaves_torchs_generator_alone(sae: Any) -> None:
    model, sampled = small_model("qwen2"), {"temperature": 1.0, "seed": 5}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = make(model, sae, settings=sampled).cells()
    assert torch.equal(torch.get_rng_state(), state)
    assert make(model, sae, settings=sampled).cells() == first
    assert make(model, sae, settings={**sampled, "seed": 6}).cells() != first


def test_every_token_is_told_once(sae: Any) -> None:
    told: dict[int, list[int]] = {}

    def watch(step: list[tuple[int, int]]) -> None:
        for row, token in step:
            told.setdefault(row, []).append(token)

    model = small_model("llama")
    cells = make(model, sae, settings={"rows": 7}).cells(watch)
    assert [tuple(told[row]) for row in range(len(cells))] == [cell.ids for cell in cells]
    told.clear()

    def limited(module: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > 8 and len(told.get(0, ())) == 5:
            raise torch.OutOfMemoryError("made up")

    model.register_forward_pre_hook(limited, with_kwargs=True)
    assert make(model, sae).cells(watch) == cells
    assert [tuple(told[row]) for row in range(len(cells))] == [cell.ids for cell in cells]


def test_too_little_memory_means_smaller_calls(sae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("qwen2")
    expected, sizes = make(model, sae).cells(), []
    generate = model.generate

    def limited(**how: Any) -> Any:
        assert how["max_new_tokens"] == 12
        sizes.append(len(how["input_ids"]))
        if sizes[-1] > 8:
            raise torch.OutOfMemoryError("made up")
        return generate(**how)

    monkeypatch.setattr(model, "generate", limited)
    assert make(model, sae).cells() == expected
    assert sizes == [21, 10, 5, 5, 5, 5, 1]


def test_memory_of_models_without_heads_or_with_layers_that_differ(sae: Any) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    shape: dict[str, Any] = {"vocab_size": 96, "hidden_size": WIDTH, "num_hidden_layers": 2}
    headless = MambaForCausalLM(MambaConfig(**shape, bos_token_id=None)).eval()
    assert len(make(headless, sae, alphas=[0.0, 5.0], control=False).cells()) == 6
    model = small_model("qwen2")
    one = rows_that_fit(model, 1 << 17, 12)
    # As Gemma 3n has it.
    object.__setattr__(model.config, "intermediate_size", [48, 48, 48 << 9, 48])
    assert rows_that_fit(model, 1 << 17, 12) < one


def test_bad_questions_and_alphas(sae: Any, tokenizer: Any) -> None:
    model = small_model("qwen2")
    for more in ({"questions": []}, {"alphas": []}, {"alphas": [float("inf")]}):
        with pytest.raises(InputError):
            make(model, sae, **more).cells()
    with pytest.raises(DataError, match="question 2 has 200 tokens"):
        long = Dialogue([{"role": "user", "content": "word " * 200}])
        make(model, sae, questions=[QUESTIONS[0], long]).cells()
    mpt = tiny_model(tiny_config("mpt", max_seq_len=64))
    wide = randomise(architecture("standard")(64, 24), seed=3).requires_grad_(False)
    far = {"questions": QUESTIONS[1:2], "settings": {"max_new_tokens": 60}}
    with pytest.raises(DataError, match=r"question 1 has 10 tokens; .* more than the model's 64 positions"):
        make(mpt, wide, **far).cells()
    chat = ChatTokenizer(tokenizer, DataSection(), "tiny-chat")
    refused = [Dialogue([{"role": "nobody"}])]
    with pytest.raises(DataError, match=r"question 1: refused by the chat template: .*unknown role"):
        make(model, sae, questions=refused, chat=chat).cells()


@pytest.mark.parametrize("rows", [1, None])
def test_no_answer_goes_on_as_the_next_turn(rows: int | None, sae: Any) -> None:
    """Whatever the configuration says ends a text, the template ends turns with a token, or begins them with words."""
    model = small_model("llama")
    settings = {"max_new_tokens": 60, "rows": rows}
    free = make(model, sae, control=False, settings=settings).cells()
    ids = next(cell.ids for cell in free if len(cell.ids) > 40)
    place = next(i for i in range(5, 40) if ids[i] not in ids[:i] and ids[i] > 1)
    name, before = words().tokenizer.convert_ids_to_tokens([ids[place], ids[place - 1]])
    ended = words("{% for m in messages %}{{ m.content }} " + name + " {% endfor %}", special=name)
    header = words("{% for m in messages %}" + f"{before} {name} " + "{{ m.content }} {% endfor %}")
    prompts = [ids_of(text) for text in TEXTS]
    for chat, whole in ((ended, (ids[place],)), (header, ids[place - 1 : place + 1])):
        chat.prompt = lambda question: prompts[QUESTIONS.index(question)]  # as without these words
        found = make(model, sae, control=False, chat=chat, settings=settings).cells()
        cut = 0
        for cell, other in zip(found, free, strict=True):
            size = len(whole)
            at = next((i for i in range(60) if other.ids[i : i + size] == whole), len(other.ids))
            kept = at + (1 if chat is ended else 0)
            assert cell.ids == other.ids[:kept]
            assert cell.ended == (at < len(other.ids) or other.ended)
            assert name not in cell.text.split() or chat is header
            cut += len(cell.ids) < len(other.ids)
        assert cut


def test_units_reach_the_rows(sae: Any) -> None:
    model = small_model("qwen2")
    statistics = SimpleNamespace(residual_norm=6.0, mean_max_F=torch.full((24,), 3.0))
    length = float(sae.W_dec[7].norm())
    raw = make(model, sae, alphas=[6.0 / length]).cells()
    norm = make(model, sae, alphas=[1.0], units="norm", statistics=statistics).cells()
    assert [c.ids for c in norm] == [c.ids for c in raw]
    maximum = make(model, sae, alphas=[3.0], units="max", statistics=statistics).cells()
    assert [c.ids for c in maximum] == [c.ids for c in make(model, sae, alphas=[9.0]).cells()]


def test_the_embedded_model_answers(tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.MODEL, dtype=torch.float32).eval()
    sae = randomise(architecture("standard")(128, 16), seed=0).requires_grad_(False)
    chat = ChatTokenizer(tokenizer, DataSection(), "tiny-chat")
    sweep = make(model, sae, chat=chat, settings={"max_new_tokens": 40}, alphas=[0.0, 50.0])
    answers = {(c.question, c.alpha): c for c in sweep.cells() if c.arm == "latent"}
    assert answers[0, 0.0].ended and answers[0, 0.0].text.strip()
    assert all(answers[q, 0.0].ids != answers[q, 50.0].ids for q in range(3))


def test_a_sweep_inside_a_block_and_blocks_inside_a_sweep(sae: Any) -> None:
    model = small_model("qwen2")
    model.generation_config.eos_token_id = ENDS
    far = {"control": False, "settings": {"max_new_tokens": 60}}
    with steer(model, sae, {3: 5.0}, layer=2, positions="generated"):
        within = make(model, sae, **far).cells()
        for cell in within:
            assert cell.ids == alone(model, sae, cell, {}, {"do_sample": False})
    plain = make(model, sae, **far).cells()
    assert plain != within

    def watch(step: list[tuple[int, int]]) -> None:
        if len(step) == 5:
            with steer(model, sae, {3: 9.0}, layer=1):
                model.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=3, pad_token_id=0)
            found.append(make(model, sae, **far).cells())

    found: list[Any] = []
    assert make(model, sae, **far).cells(watch) == plain and found[0] == plain
    rows = steer(model, sae, {7: [1.0, 2.0]}, layer=1)
    with pytest.raises(InputError, match="alphas per row is open"), rows:
        make(model, sae).cells()


def test_a_model_whose_weights_are_fetched_layer_by_layer(sae: Any) -> None:
    from accelerate import cpu_offload

    expected = make(small_model("llama"), sae).cells()
    model = cpu_offload(small_model("llama"), execution_device=torch.device("cpu"))
    assert make(model, sae).cells() == expected
