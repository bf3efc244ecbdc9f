"""Latents of special tokens against loops in plain Python, and in an evaluation of the tiny model."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import plain_forward, randomise, recipe, sequence
from transformers import AutoModelForCausalLM

from fastzoo import tiny
from fastzoo.data.sequences import Counts, TokenSequence
from fastzoo.data.special_tokens import SpecialTokens, with_role_word
from fastzoo.data.tokenizer import ChatTokenizer
from fastzoo.interpret import special_latents as module
from fastzoo.interpret.special_latents import DEFINITION, Occurrences, SpecialLatents
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.packing import packs
from fastzoo.results.evaluate import evaluate
from fastzoo.saes.jumprelu import JumpReLUSAE

CPU = torch.device("cpu")
F = 13
START, END, BOS, NEVER, USER, ASSISTANT = range(6)
SPECIAL = (START, END, BOS, NEVER)
TOKENS = SpecialTokens({(START, USER): "user", (START, ASSISTANT): "assistant"}, "t{}".format)


def random_chats(count: int = 50) -> tuple[list[TokenSequence], list[np.ndarray]]:
    """Dialogues of one to forty tokens with (T, F) activations of many zeros and many ties."""
    rng = np.random.default_rng(3)
    dialogues, activations = [], []
    for i in range(count):
        ids = rng.choice([START, END, USER, ASSISTANT, 6, 7, 8], rng.integers(1, 41))
        if i % 4 == 0:
            ids[0] = START
        if i % 4 == 1:
            ids[0] = BOS  # which stands nowhere else
        if i % 7 == 0:
            ids[ids == END] = 6
        acts = np.maximum(rng.integers(-12, 5, (len(ids), F)), 0) / 4
        # The attention sink: in float32 sums of a few of these lose the quarters.
        acts[0, :6] = 2**21 + rng.integers(0, 4, 6) / 4
        acts[:, 9] = acts[:, 8]
        acts[:, 10] = 0
        acts[ids != END, 11] = 0
        dialogues.append(sequence(ids, i, np.isin(ids, SPECIAL)))
        activations.append(acts)
    return dialogues, activations


def slow_top(
    dialogues: list[TokenSequence],
    activations: list[np.ndarray],
    token: int,
    left_out: list[np.ndarray] | None = None,
) -> dict[str, Any]:
    """The largest latents of a token; the places ``left_out`` (bool, by dialogue) do not count."""
    totals, fired, containing = [0.0] * F, [0] * F, 0
    for i, (dialogue, acts) in enumerate(zip(dialogues, activations, strict=True)):
        places = []
        for j in range(len(dialogue)):
            if left_out and left_out[i][j]:
                continue
            counts = bool(dialogue.special[j])
            if j > 0 and (dialogue.ids[j - 1], dialogue.ids[j]) in TOKENS.headers:
                counts = True
            if counts and dialogue.ids[j] == token:
                places.append(j)
        if not places:
            continue
        containing += 1
        for k in range(F):
            largest = max(float(acts[j, k]) for j in places)
            totals[k] += largest
            fired[k] += largest > 0
    ranked = sorted((-totals[k], k) for k in range(F) if fired[k])[:5]
    latents = [{"latent": k, "mean_max": -total / containing, "dialogues": fired[k]} for total, k in ranked]
    return {"dialogues": containing, "latents": latents}


def slow_report(
    dialogues: list[TokenSequence], activations: list[np.ndarray], sinks: list[np.ndarray]
) -> dict[str, Any]:
    found = []
    for token in range(9):
        complete = slow_top(dialogues, activations, token)
        later = slow_top(dialogues, activations, token, sinks)
        if not complete["dialogues"]:
            continue
        begins = any(
            (mask & (d.ids == token) & TOKENS.among(d.ids, d.position, d.special)).any()
            for d, mask in zip(dialogues, sinks, strict=True)
        )
        found.append(
            {
                "token_id": token,
                "token": f"t{token}",
                **(later if later["dialogues"] else complete),
                "with_sinks": complete if begins else None,
            }
        )
    return {"definition": DEFINITION, "tokens": found}


def sums_of(
    dialogues: list[TokenSequence],
    activations: list[np.ndarray],
    budget: int,
    sinks: list[np.ndarray] | None = None,
) -> SpecialLatents:
    sums = SpecialLatents(F, CPU)
    rest = iter(activations)
    marks = iter(sinks or ())
    for pack in packs(dialogues, budget):
        acts = np.concatenate([next(rest) for _ in pack])
        sink_T = torch.from_numpy(np.concatenate([next(marks) for _ in pack])) if sinks else None
        sums.add(torch.from_numpy(acts).float(), Occurrences(pack, TOKENS, CPU, sink_T))
    return sums


@pytest.mark.parametrize("elements", [1, module.ELEMENTS])
@pytest.mark.parametrize("budget", [1, 24, 10**6])
def test_equals_loops_in_plain_python(budget: int, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, however the dialogues are packed (longer ones than 24 tokens alone)."""
    monkeypatch.setattr(module, "ELEMENTS", elements)
    dialogues, activations = random_chats()
    sums = sums_of(dialogues, activations, budget)
    report = sums.report(TOKENS.text)
    first = [d.position == 0 for d in dialogues]
    assert report == slow_report(dialogues, activations, first)

    rng = np.random.default_rng(4)
    sinks = [mask | (rng.random(len(mask)) < 0.2) for mask in first]
    marked = sums_of(dialogues, activations, budget, sinks).report(TOKENS.text)
    assert marked == slow_report(dialogues, activations, sinks) and marked != report
    assert all(entry["with_sinks"] for entry in marked["tokens"])

    # The data has what it is meant to have.
    by_token = {entry["token_id"]: entry for entry in report["tokens"]}
    assert list(by_token) == [START, END, BOS, USER, ASSISTANT]
    assert by_token[USER]["dialogues"] < sum(USER in d.ids for d in dialogues)
    assert by_token[USER]["with_sinks"] is None
    sink = 2**20
    assert by_token[START]["with_sinks"]["latents"][0]["mean_max"] > sink / 4
    assert by_token[START]["latents"][0]["mean_max"] < 2
    assert by_token[BOS] == {**by_token[BOS], **by_token[BOS]["with_sinks"]}
    assert by_token[BOS]["latents"][0]["mean_max"] > sink
    named = [x["latent"] for x in by_token[END]["latents"]]
    assert 10 not in named
    # Float64 sums per token and latent; those of a token that dialogues begin with, threefold.
    assert sums._sums_SF.shape == sums._fired_SF.shape == (3 + 3 + 1 + 1 + 1, F)
    assert sums._sums_SF.dtype == torch.float64


def test_equal_latents_come_in_their_order_and_silent_ones_not_at_all() -> None:
    dialogue = sequence([6, END, 7, END], 0, [False, True, False, True])
    acts = torch.zeros(4, F)
    acts[1, [9, 4]] = 2.0
    acts[3, [4, 9, 2]] = torch.tensor([1.0, 2.0, 2.0])
    acts[2, 5] = 50  # on another token
    sums = SpecialLatents(F, CPU)
    sums.add(acts, Occurrences([dialogue], TOKENS, CPU))
    plain = sequence([6, 7], 1)
    sums.add(torch.ones(2, F), Occurrences([plain], TOKENS, CPU))  # without a special token
    (entry,) = sums.report()["tokens"]
    assert entry == {
        "token_id": END,
        "token": str(END),
        "dialogues": 1,
        "latents": [{"latent": k, "mean_max": 2.0, "dialogues": 1} for k in (2, 4, 9)],
        "with_sinks": None,
    }


def test_nothing_special_is_an_empty_report() -> None:
    assert SpecialLatents(F, CPU).report() == {"definition": DEFINITION, "tokens": []}


def test_role_words_do_not_reach_over_the_end_of_a_dialogue() -> None:
    """A truncated dialogue may end with what stands before a role word."""
    cut = sequence([6, START], 0, [False, True])
    word = sequence([USER, 6], 1)
    sums = SpecialLatents(F, CPU)
    sums.add(torch.ones(4, F), Occurrences([cut, word], TOKENS, CPU))
    assert [entry["token_id"] for entry in sums.report()["tokens"]] == [START]


# --- tokenizers ---------------------------------------------------------------------------------

LLAMA = (
    "<|im_end|>{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_end|>\n\n"
    "{{ m['content'] }}<|im_end|>{% endfor %}"
)
"""A header between two special tokens; content follows one too where it begins a line."""
APART = "{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_end|>{{ m['content'] }}{% endfor %}"
NO_ROLES = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
REFUSING = "{{ raise_exception('no') }}"


def chat_of(tokenizer: Any, template: str | None = None, **data: Any) -> ChatTokenizer:
    changed = deepcopy(tokenizer)
    changed.chat_template = template or tokenizer.chat_template
    settings = recipe(data={"source": "embedded", **data}).data
    return ChatTokenizer(changed, settings, "test model")


@pytest.mark.parametrize(
    ("template", "roles"),
    [
        (None, ["user", "assistant"]),
        (LLAMA, ["user", "assistant"]),
        (APART, ["user", "assistant"]),
        (NO_ROLES, []),
        (REFUSING, []),
    ],
)
def test_role_words_are_those_of_the_template(tokenizer: Any, template: str | None, roles: list[str]) -> None:
    before, *words = tokenizer.convert_tokens_to_ids(["<|im_start|>", *roles])
    found = SpecialTokens.of(chat_of(tokenizer, template))
    assert found.headers == {(before, word): role for word, role in zip(words, roles, strict=True)}
    assert SpecialTokens.of(chat_of(tokenizer, template, column="turns")).headers == found.headers


@pytest.mark.parametrize("template", [None, LLAMA, APART])
def test_role_words_in_content_do_not_count(tokenizer: Any, template: str | None) -> None:
    chat = chat_of(tokenizer, template)
    turns = [("user", "user\nassistant user"), ("assistant", "user"), ("user", "assistant")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (dialogue,) = chat.dialogues([(0, row)], Counts())
    counted = SpecialTokens.of(chat).among(dialogue.ids, dialogue.position, dialogue.special)
    tokens = tokenizer.convert_ids_to_tokens(dialogue.ids[counted & ~dialogue.special].tolist())
    assert tokens == ["user", "assistant", "user"]
    assert np.isin(dialogue.ids, tokenizer.convert_tokens_to_ids(["user", "assistant"])).sum() >= 6


GEMMA = (
    "{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>{% endfor %}"
)
"""The tokenizer has no token for the word model."""


def test_role_words_of_several_tokens_are_named_part_by_part(tokenizer: Any) -> None:
    chat = chat_of(tokenizer, GEMMA)
    found = SpecialTokens.of(chat)
    start, user, *parts = tokenizer.encode("<|im_start|>usermodel", add_special_tokens=False)
    texts = ["m", "o", "d", "el"]
    assert tokenizer.convert_ids_to_tokens(parts) == texts
    assert found.headers == {(start, user): "user", (start, *parts): "assistant"}
    assert found.parts == dict.fromkeys(parts, "model")
    turns = [("user", "model m o"), ("assistant", "a model"), ("user", "d")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (dialogue,) = chat.dialogues([(0, row)], Counts())
    counted = found.among(dialogue.ids, dialogue.position, dialogue.special)
    words = tokenizer.convert_ids_to_tokens(dialogue.ids[counted & ~dialogue.special].tolist())
    assert words == ["user", *texts, "user"]
    # A truncated word does not count, whatever the next dialogue begins with.
    place = int(np.flatnonzero(dialogue.ids == parts[0])[-1])
    before = int(np.flatnonzero(counted & (dialogue.ids == parts[0]))[0])
    assert place >= before
    ids = np.concatenate([dialogue.ids[: before + 2], dialogue.ids[before + 2 :]])
    position = np.concatenate([dialogue.position[: before + 2], np.arange(len(ids) - before - 2)])
    assert not (found.among(ids, position, dialogue.special) & np.isin(ids, parts)).any()

    sums = SpecialLatents(F, CPU)
    sums.add(torch.ones(len(dialogue), F), Occurrences([dialogue], found, CPU))
    entries = {entry["token"]: entry for entry in sums.report(found.text)["tokens"]}
    assert set(entries) == {"<|im_start|>", "<|im_end|>", "user", *texts}
    assert [with_role_word(entries[text]) for text in texts] == [f"{text} (of model)" for text in texts]
    assert with_role_word(entries["user"]) == "user" and "role_word" not in entries["user"]


# --- evaluate -----------------------------------------------------------------------------------


def test_an_evaluation_of_the_tiny_model_finds_them(tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.MODEL, dtype=torch.float32).eval()
    chat = chat_of(tokenizer)
    turns = [{"role": "user", "content": "Where is Paris? user"}]
    answer = {"role": "assistant", "content": "user: in France."}
    rows = [{"messages": turns}, {"messages": [*turns, answer]}, {"messages": [answer, *turns]}]
    dialogues = list(chat.dialogues(enumerate(rows), Counts()))
    assert len(dialogues) >= 2
    sae = randomise(JumpReLUSAE(128, 64), 5, 0.2)
    reader = ResidualReader(deepcopy(model), pack_tokens=40)
    found = evaluate(reader, {"a": (1, sae), "b": (2, sae)}, dialogues, SpecialTokens.of(chat))
    assert found["a"].special_latents["definition"] == DEFINITION
    entries = {entry["token"]: entry for entry in found["a"].special_latents["tokens"]}
    assert {"<|im_start|>", "<|im_end|>", "user", "assistant"} == set(entries)
    assert found["a"].special_latents != found["b"].special_latents

    # Against unpacked forwards of an unmodified model.
    word = tokenizer.convert_tokens_to_ids("user")
    before = tokenizer.convert_tokens_to_ids("<|im_start|>")
    largest = []
    with torch.no_grad():
        for dialogue in dialogues:
            acts_TF = sae.encode(plain_forward(model, dialogue.ids)[0][1])
            headers = np.flatnonzero(dialogue.ids[:-1] == before) + 1
            rows_of = [int(j) for j in headers if dialogue.ids[j] == word]
            assert len(rows_of) < (dialogue.ids == word).sum()
            largest.append(acts_TF[rows_of].amax(0))
    mean_F = torch.stack(largest).double().mean(0)
    assert entries["user"]["dialogues"] == len(dialogues)
    assert len(entries["user"]["latents"]) == 5
    best = mean_F.topk(5)
    assert [x["latent"] for x in entries["user"]["latents"]] == best.indices.tolist()
    means = [x["mean_max"] for x in entries["user"]["latents"]]
    assert means == pytest.approx(best.values.tolist(), rel=1e-4)
