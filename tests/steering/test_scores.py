"""Scores of steered answers: exact against brute force, right on adversarial and on real answers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, small_model, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from fastzoo import tiny
from fastzoo.core.errors import FastzooError
from fastzoo.data.special_tokens import TokenTexts
from fastzoo.lm import likelihood
from fastzoo.lm.likelihood import answer_nlls
from fastzoo.steering.questions import MAX_CHARACTERS, MAX_QUESTIONS, load_questions
from fastzoo.steering.scoring.degenerate import Answer
from fastzoo.steering.scoring.language import FUNCTION_WORDS, NAMES, detect, language_share, switched_share
from fastzoo.steering.scoring.repeats import (
    counting_mask,
    distinct,
    longest_immediate_repetition,
    longest_repeated_span,
    loop_mask,
    repeated_mask,
    rouge_l,
)
from fastzoo.steering.scoring.scores import (
    Cell,
    CellScores,
    concept_of_language,
    concept_of_words,
    score_cell,
    score_cells,
)
from fastzoo.tiny import corpus

Ids = list[int]


def find_fault(*answer: Any, **more: Any) -> str | None:
    return Answer(*answer, **more).fault


few_tokens = st.lists(st.integers(0, 3), max_size=24)


# --- repeats, against brute force ----------------------------------------------------------------


def spans(ids: Ids, n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


@given(few_tokens)
def test_spans_are_those_of_brute_force(ids: Ids) -> None:
    for n in (1, 2, 3, 5):
        grams = spans(ids, n)
        assert distinct(ids, n) == (len(set(grams)) / len(grams) if grams else None)
        mask = [False] * len(ids)
        for i, gram in enumerate(grams):
            if gram in grams[:i]:
                mask[i : i + n] = [True] * n
        assert repeated_mask(ids, n).tolist() == mask
    repeated = [n for n in range(1, len(ids)) if len(set(spans(ids, n))) < len(spans(ids, n))]
    assert longest_repeated_span(ids) == max(repeated, default=0)


@given(few_tokens)
def test_loops_are_those_of_brute_force(ids: Ids) -> None:
    mask = [False] * len(ids)
    for start in range(len(ids)):
        for unit in range(1, len(ids) // 3 + 1):
            end = start + unit
            while end < len(ids) and ids[end] == ids[end - unit]:
                end += 1
            if end - start >= 3 * unit:
                mask[start:end] = [True] * (end - start)
    assert loop_mask(ids).tolist() == mask
    same = [n for n in range(1, len(ids) + 1) if any(len(set(s)) == 1 for s in spans(ids, n))]
    assert longest_immediate_repetition(ids) == max(same, default=0)


@given(st.lists(st.sampled_from([0, 1, 100, 101, 102, 103]), max_size=24))
def test_loops_that_count_are_those_of_brute_force(ids: Ids) -> None:
    def alike(i: int, j: int) -> bool:
        return abs(ids[i] - ids[j]) <= (min(ids[i], ids[j]) >= 100)

    mask = [False] * len(ids)
    for unit in range(2, len(ids) // 3 + 1):
        for start in range(len(ids) - unit):
            if start and alike(start - 1, start - 1 + unit):
                continue  # it starts further on the left
            end = start + unit
            while end < len(ids) and alike(end, end - unit):
                end += 1
            steps = sum(ids[i] != ids[i - unit] for i in range(start + unit, end))
            if end - start >= 3 * unit and 0 < steps <= (end - start) // unit:
                mask[start:end] = [True] * (end - start)
    assert counting_mask(ids, 100).tolist() == mask


@given(few_tokens, few_tokens)
def test_rouge_l_is_that_of_the_textbook(a: Ids, b: Ids) -> None:
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    expected = 2 * table[-1, -1] / (len(a) + len(b)) if a and b else float(a == b)
    assert rouge_l(a, b) == pytest.approx(expected)


def test_an_answer_of_two_thousand_tokens_is_scored_in_no_time() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 400, (2, 2_000))
    start = time.perf_counter()
    assert 0.05 < rouge_l(one, other) < 0.2
    assert longest_repeated_span(np.concatenate([one[:1000], one[:1000]])) == 1_000
    assert find_fault("word " * 8_000, one.tolist(), True) == "loop"
    for letters in ("abcdefgh ", "ab", "1. ", ".;'\u0301"):
        find_fault("".join(map(letters.__getitem__, rng.integers(0, len(letters), 40_000))), [], False)
    assert time.perf_counter() - start < 8  # 1 s where nothing else runs


# --- the unsteered model's opinion ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2", "qwen2-window", "llama", "gemma2"])
def test_many_answers_at_once_have_the_likelihoods_of_one_at_a_time(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    lengths = [(5, 9), (1, 1), (40, 3), (3, 40), (7, 0), (12, 12), (2, 30), (60, 60)]
    prompts = [rng.integers(0, VOCABULARY, p).tolist() for p, _ in lengths]
    answers = [rng.integers(0, VOCABULARY, a).tolist() for _, a in lengths]
    prompts += prompts[:3]  # an answer twice, and the same answer to another prompt
    answers += [answers[0], answers[3], answers[2]]
    model = small_model(kind, "eager" if kind == "gemma2" else "sdpa")
    whole = answer_nlls(model, prompts, answers)
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 130)  # some together, some alone
    parts = answer_nlls(model, prompts, answers)
    for prompt, answer, nlls, again in zip(prompts, answers, whole, parts, strict=True):
        assert len(nlls) == len(answer)
        if not answer:
            continue
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        alone = [-logits[i, t].item() for i, t in zip(places, answer, strict=True)]
        np.testing.assert_allclose(nlls, alone, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(again, alone, atol=1e-5, rtol=1e-5)


def test_likelihoods_need_a_prompt() -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        answer_nlls(small_model("llama"), [[]], [[1]])


# --- languages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "script", "language"),
    [
        ("The cat sleeps on the roof of the old house.", "latin", "en"),
        ("Le chat dort sur le toit de la vieille maison.", "latin", "fr"),
        ("Die Katze schläft auf dem Dach und es regnet nicht.", "latin", "de"),
        ("El gato duerme en el tejado de la casa y no llueve.", "latin", "es"),
        ("Il gatto dorme sul tetto della casa e non piove più.", "latin", "it"),
        ("O gato dorme no telhado da casa e não chove.", "latin", "pt"),
        ("De kat slaapt op het dak van het huis en het regent niet.", "latin", "nl"),
        ("Кошка спит на крыше.", "cyrillic", None),
        ("猫は屋根の上で眠っています。", "east-asian", None),
        ("6 + 3 = 9", None, None),
        ("Tokyo!", "latin", None),
    ],
)
def test_languages_are_told_apart(text: str, script: str | None, language: str | None) -> None:
    assert (detect(text).script, detect(text).language) == (script, language)


def test_the_little_worlds_languages_are_told_apart() -> None:
    r = Random(7)
    topics, weights = zip(*corpus.TOPICS, strict=True)
    drawn = [r.choices(topics, weights)[0](r)[0] for _ in range(300)]
    turns = [turn for turn in drawn if turn.again]  # the others' answers are in both languages
    for here, code in ((corpus.EN, "en"), (corpus.FR, "fr")):
        for turn in turns:
            assert language_share(turn.answer[here], code) == 1
            assert switched_share(turn.answer[here], turn.answer[1 - here]) == 1
            assert switched_share(turn.answer[here], turn.answer[here]) == 0
        for style in (corpus.PIRATE, corpus.EXCITED):
            voiced = [corpus.voiced(turn, here, style, r) for turn in turns]
            plain = [turn.answer[here] for turn in turns]
            shares = [switched_share(v, p) for v, p in zip(voiced, plain, strict=True)]
            assert np.mean(np.array(shares) >= 0.2) < 0.1


def test_every_language_has_a_name() -> None:
    assert NAMES.keys() == FUNCTION_WORDS.keys()


def test_a_switch_in_the_middle_is_seen() -> None:
    english = "The owl is a bird. It lives in the forest and eats mice."
    half = "The owl is a bird. Elle vit dans la forêt et mange des souris."
    assert switched_share(english, english) == 0
    assert 0.5 < switched_share(half, english) < 0.8
    assert switched_share("Сова живёт в лесу.", english) == 1
    assert switched_share("", english) == switched_share("42", english) == 0
    assert switched_share("Tokyo!", english) == 0
    # Chinese has no blanks: its sentence counts by its signs.
    chinese = "The owl is a bird that lives in the forest. 猫头鹰生活在森林里，夜间捕食老鼠。"
    assert 0.5 < switched_share(chinese, english) < 0.7


# --- degenerate or not ---------------------------------------------------------------------------

TABLE = "| n | square |\n|---|---|\n" + "".join(f"| {n} | {n * n} |\n" for n in range(1, 13))
TIMES = "\n".join(f"{n} x 7 = {7 * n}" for n in range(1, 11))
LIST = "Here is what you need:\n- two eggs\n- two cups of milk\n- two spoons of sugar\n- salt\n"
CODE = '''def mirrored(words):
    """The words that read the same backwards."""
    found = []
    for word in words:
        if word == word[::-1]:
            found.append(word)
    return found


assert mirrored(["level", "cat"]) == ["level"]
assert mirrored(["noon", "dog"]) == ["noon"]
assert mirrored(["kayak", "cow"]) == ["kayak"]
assert mirrored([]) == []
'''
LONG = " ".join(
    text.replace("\n\n", " ") for text in corpus.texts(12, seed=3)
)  # some thousand tokens, half of it French

STORY = (
    "The owl is a bird that lives in the forest and hunts at night. Mice are its food. In winter many of "
    "them starve. The nest is in the hole of a tree, and the young leave it in May, a month after they have "
    "hatched. Some people are afraid of owls, but others keep pictures of them on their walls. "
)

FINE = {
    "an answer": "The owl is a bird that lives in the forest.",
    "one token": "Paris",
    "a number": "1000000",
    "big numbers": "The result is 111111111111, or 1,000,000,000,000 if you round it.",
    "French": "Le hibou est un oiseau qui vit dans la forêt et qui mange des souris.",
    "Japanese with names": "私はPythonでコードを書きます。TensorFlowも使います。",
    "a translation": "In Russian, 'cat' is «кошка» and 'dog' is «собака».",
    "a table": TABLE,
    "times table": TIMES,
    "counting": "I count: " + ", ".join(map(str, range(1, 41))) + ".",
    "a list": LIST,
    "code": CODE,
    "a long text": LONG,
    "emphasis": "No, no, no! That is very, very bad. Ha ha ha! Please stop it at once.",
    "rule": "Title\n" + "-" * 40 + "\nThe text under the title is here.",
    "an exclamation": "Yo ho ho! Hooray!",
    "triple letters": "Die Schifffahrt",
    "steps": "".join(f"Step {n}: {w} the box.\n" for n, w in enumerate("open fill close tape".split())),
    "sums": "1 plus 1 is 2. 2 plus 1 is 3. 3 plus 1 is 4. 4 plus 1 is 5. 5 plus 1 is 6.",
    "opening hours": "Monday: closed\nTuesday: closed\nWednesday: closed\nThursday: open\nFriday: open",
    "three scripts": "The Russian word for cat is кошка, and for dog it is собака. The Greek ones are γάτα "
    "and σκύλος.",
    "greetings": "- English: Hello\n- Russian: Привет\n- Greek: Γεια σου\n- Hindi: नमस्ते\n- Thai: สวัสดี",
    "a formula": "ΔG = ΔH - TΔS and v = Δx / Δt",
    "a list of words": "кошка - cat, собака - dog, дом - house, лес - forest, вода - water",
    "Chinese with names": "我用 Python 写 code 因为 Python 很好 而且 NumPy 也 很快",
    "a phrase of doubles": "Knock knock! Who is there? Very very good friends, and so so many of them.",
    "emoji": "Happy birthday! 🎉🎂🥳 I hope that you have a great day! 🎈",
}

DEGENERATE = {
    "the the the": "the the the",
    "more of it": "the " * 30,
    "glued": "user" * 15,
    "letters": "aaaa",
    "many letters": "aaaaaaaaaaaaaaaaaaaaaaaa",
    "sentences": "The owl lives. " * 6,
    "empty": "",
    "blank": "  \n\t \n",
    "line breaks after a word": "Hello" + "\n" * 60,
    "no words": "!!! ... ---",
    "punctuation": ". , . ; ! , . ? ; . ,",
    "mixed scripts": "the сов привет 猫 है hello мир 東 ok ค",
    "mixed words": "hтe qυick brоωn fοx сat",
    "broken bytes": "a\ufffd\ufffd b\ufffd c",
    "control": "a\x00\x01b\x02",
    "good start, endless end": "The owl is a bird that lives in the forest. " + "and so on " * 20,
    "counting items": "".join(f"{n}. The owl has 2 eyes.\n" for n in range(1, 9)),
    "counting letters": "".join(f"{n}. a " for n in range(1, 15)),
    "counting down": "".join(f"In {n} days I see you. " for n in range(9, 2, -1)),
    "counting rows": "".join(f'{{"id": {n}, "name": "owl", "age": 5}},\n' for n in range(12)),
    "a loop that ends": STORY + " user" * 25,
    "a loop in the middle": STORY + "and so on " * 20 + "\n" + "-" * 80 + "\n" + STORY[::-1],
    "stutter": "The the owl owl is is a a bird bird that that lives lives in in the the forest forest",
    "many emoji": "Hello! " + "".join("😀😂🤣😍😎🤖🎉🔥"[n * n * n % 19 % 8] for n in range(40)),
    "private use": "A " + "".join(map(chr, range(0xE000, 0xE010))),
    "two scripts": "the сова is птица that живёт in лесу of дом and мышь",
    "twice and a half": (LONG[:700] + " ") * 2 + LONG[:350],
}


@pytest.mark.parametrize("ended", [True, False])
def test_fluent_answers_are_not_degenerate(tokenizer: Any, ended: bool) -> None:
    faults = {name: find_fault(text, tokenizer.encode(text), ended) for name, text in FINE.items()}
    assert {name: fault for name, fault in faults.items() if fault} == {}


@pytest.mark.parametrize("ended", [True, False])
def test_degenerate_answers_are_found(tokenizer: Any, ended: bool) -> None:
    missed = [
        name for name, text in DEGENERATE.items() if not find_fault(text, tokenizer.encode(text), ended)
    ]
    assert missed == []


def word(token: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(token))


@given(
    st.lists(st.integers(300, 900), min_size=1, max_size=7),
    st.integers(24, 200),
    st.lists(st.integers(300, 900), max_size=24),
)
def test_every_cycle_is_found(cycle: Ids, length: int, before: Ids) -> None:
    ids = before + (cycle * length)[:length]
    text = " ".join(map(word, ids))
    assert find_fault(text, ids, ended=length % 2 == 0) in ("loop", "repeats", "babble")


@given(st.lists(st.sampled_from([300, 301, 302]), min_size=64, max_size=200))
def test_babble_without_a_cycle_is_found(ids: Ids) -> None:
    assert find_fault(" ".join(map(word, ids)), ids, ended=True)


# --- real answers of the embedded model ----------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny.MODEL, dtype=torch.float32).eval()


Generate = Callable[..., list[Cell]]
QUESTIONS = 100


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[Ids]:
    """The first questions of held-out dialogues, with their system prompts."""
    found = []
    for line in tiny.HELDOUT.read_text(encoding="utf-8").splitlines()[:QUESTIONS]:
        messages = json.loads(line)["messages"]
        first = [m["role"] for m in messages].index("user")
        found.append(
            tokenizer.apply_chat_template(
                messages[: first + 1], add_generation_prompt=True, return_dict=False
            )
        )
    return found


@pytest.fixture(scope="module")
def generate(model: Any, tokenizer: Any) -> Generate:
    def answers(prompts: list[Ids], push: torch.Tensor | None = None, alpha: float = 0) -> list[Cell]:
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")

        def hook(module: Any, args: Any, output: Any) -> Any:
            return output if push is None else output + push

        handle = model.model.layers[1].register_forward_hook(hook)
        try:
            out = model.generate(**batch, max_new_tokens=48, do_sample=False)
        finally:
            handle.remove()
        cells = []
        for question, row in enumerate(out[:, batch["input_ids"].shape[1] :].tolist()):
            ended = tokenizer.eos_token_id in row
            ids = row[: row.index(tokenizer.eos_token_id) + 1] if ended else row
            text = tokenizer.decode(ids, skip_special_tokens=True)
            cells.append(Cell(question, alpha, tuple(ids), ended, text))
        return cells

    return answers


@pytest.fixture(scope="module")
def unsteered(generate: Generate, prompts: list[Ids]) -> list[Cell]:
    return generate(prompts)


def test_unsteered_answers_are_never_degenerate(
    model: Any, tokenizer: Any, prompts: list[Ids], unsteered: list[Cell]
) -> None:
    scores = score_cells(
        unsteered, unsteered, model, prompts, end_ids=[tokenizer.eos_token_id], tokenizer=tokenizer
    )
    assert [s.fault for s in scores] == [None] * QUESTIONS
    assert all(s.kept == 1 and s.switched == 0 for s in scores)
    assert np.mean([s.nll for s in scores]) < 0.3
    first = unsteered[0]
    assert scores[0].tokens == len(first.ids) - 1  # without the end of turn
    assert scores[0].perplexity == pytest.approx(math.exp(scores[0].nll))
    json.dumps([asdict(s) for s in scores], allow_nan=False)


def test_answers_pushed_off_the_map_are_always_degenerate(
    model: Any, tokenizer: Any, prompts: list[Ids], unsteered: list[Cell], generate: Generate
) -> None:
    with torch.no_grad():
        states = model(torch.tensor([prompts[0]]), output_hidden_states=True).hidden_states[2]
    norm = states[0, 1:].norm(dim=1).mean().item()
    cells: list[Cell] = []
    for multiple in (3, 5, 10):
        for seed in range(3):
            direction = torch.randn(128, generator=torch.Generator().manual_seed(seed))
            push = direction / direction.norm() * norm * multiple
            cells += generate(prompts[:20], push, multiple * norm)
    scores = score_cells(cells, unsteered, model, prompts, end_ids=[tokenizer.eos_token_id])
    assert len(scores) == 180
    assert [s for s in scores if not s.degenerate] == []
    assert max(s.kept for s in scores) < 0.3


def test_random_tokens_are_word_salad(
    model: Any, tokenizer: Any, prompts: list[Ids], unsteered: list[Cell]
) -> None:
    rng = np.random.default_rng(0)
    words = [i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip().isalpha()]
    drawn = [rng.choice(words, n).tolist() for n in (4, 8, 20, 60, 150) for _ in range(10)]
    cells = [Cell(i, 1.0, tuple(ids), False, tokenizer.decode(ids)) for i, ids in enumerate(drawn)]
    scores = score_cells(cells, unsteered, model, prompts)
    assert all(s.degenerate for s in scores)
    assert sum(s.fault == "word salad" for s in scores) > 45


def test_salad_is_found_within_a_fluent_answer() -> None:
    text = "one two three four five six seven eight nine ten"
    fluent = np.full(100, 0.2)
    assert find_fault(text, range(100), True, fluent) is None
    fluent[[0, 1, 30, 31, 60, 61, 90]] = 9  # where something new begins
    assert find_fault(text, range(100), True, fluent) is None
    fluent[50:62:2] = 9
    assert find_fault(text, range(100), True, fluent) == "word salad"
    assert find_fault("Oui !", [1, 2], True, np.array([9.0, 9.0])) is None  # too short to tell
    spread = np.where(np.arange(35) % 5, 0.2, 9.0)  # seven of them, never six in twelve
    assert find_fault(text, range(35), True, spread) == "word salad"
    assert find_fault(text, range(30), True, spread[:30]) is None


PIRATE = "arr ahoy matey shiver timbers aye yo ho be ye yer".split()


def test_another_language_or_style_is_not_degenerate(model: Any, tokenizer: Any, generate: Generate) -> None:
    """What steering is to reach: fluent answers that the plain prompt did not ask for."""
    questions = [q.messages.turns for q in load_questions(tiny=True)[:10]]
    plain = [chat(tokenizer, messages) for messages in questions]
    before = generate(plain)

    def asked(wish: str, concept: Any) -> list[CellScores]:
        told = [chat(tokenizer, [{"role": "system", "content": wish}, *m]) for m in questions]
        return score_cells(
            generate(told),
            before,
            model,
            plain,
            end_ids=[tokenizer.eos_token_id],
            tokenizer=tokenizer,
            concept=concept,
        )

    french = asked("Answer in French.", concept_of_language("fr"))
    pirate = asked("Talk like a pirate.", concept_of_words(PIRATE))
    # One of them begins "Lisbonne", where the plain prompt has "Lisbon": a name that changes with the language
    # reads like a broken word to a model that expects the other one.
    assert [s.fault for s in french + pirate if s.fault] == ["broken words"]
    assert all(s.language_switch and s.concept == 1 for s in french)
    assert all(s.concept is not None and s.concept > 0 for s in pirate)
    assert np.mean([s.kept for s in french]) < 0.5 < np.mean([s.kept for s in pirate])


def chat(tokenizer: Any, messages: list[dict[str, str]]) -> Ids:
    ids: Ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return ids


def test_special_tokens_that_the_text_does_not_show_are_a_fault(
    model: Any, tokenizer: Any, prompts: list[Ids], unsteered: list[Cell]
) -> None:
    end, start = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    cells = []
    for ids in ((*unsteered[0].ids[:-1], start, end), (start, start), unsteered[0].ids):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        cells.append(Cell(0, 5.0, ids, ids[-1] == end, text))

    def faults(unsteered: list[Cell]) -> list[str | None]:
        found = score_cells(cells, unsteered, model, prompts, end_ids=[end], tokenizer=tokenizer)
        return [score.fault for score in found]

    assert cells[0].text == unsteered[0].text
    assert faults(unsteered) == ["special tokens", "special tokens", None]
    # A template whose plain answers have it, too.
    assert faults([*unsteered[:-1], cells[0]]) == [None, "empty", None]


def test_words_that_are_none_are_broken(
    model: Any, tokenizer: Any, prompts: list[Ids], unsteered: list[Cell]
) -> None:
    end = tokenizer.eos_token_id

    number = sorted(range(QUESTIONS), key=lambda i: len(unsteered[i].ids))[QUESTIONS // 2]
    ids = list(unsteered[number].ids)
    texts = TokenTexts(tokenizer)
    place = int(np.flatnonzero(texts.inside_words(ids))[0])

    def score(ids: list[int], **more: Any) -> CellScores:
        cell = Cell(number, 1.0, tuple(ids), True, tokenizer.decode(ids[:-1]))
        (found,) = score_cells([cell], unsteered, model, prompts, end_ids=[end], **more)
        return found

    assert score(ids, tokenizer=tokenizer).broken_words == 0
    ids[place] = tokenizer.convert_tokens_to_ids("x")
    broken = score(ids, tokenizer=tokenizer)
    assert broken.broken_words and broken.fault == "broken words", tokenizer.decode(ids)
    assert score(ids).fault is None, "not without the tokenizer"
    # In a long answer one of them is none.
    words = " ".join(f"w{chr(97 + i)} {chr(97 + i)}{chr(98 + i)}v" for i in range(25))
    for count, fault in ((1, None), (2, "broken words")):
        assert find_fault(words, range(80), True, broken_words=count) == fault


def test_tokens_that_go_on_with_a_word(tokenizer: Any) -> None:
    for text in ("The chat miaule, 12th.", "getName a-b\nLe"):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in encoded["offset_mapping"]]
        expected = [s > 0 and text[s].islower() and text[s - 1].isalpha() for s in starts]
        assert TokenTexts(tokenizer).inside_words(encoded["input_ids"]).tolist() == expected
        assert any(expected)
    metaspace = SimpleNamespace(
        convert_ids_to_tokens=["▁in", "side", "▁", "Out", "er", "7th"].__getitem__,
        decode=lambda ids, **_: ["in", "side", "", "Out", "er", "7th"][ids[0]],
    )
    assert TokenTexts(metaspace).inside_words(range(6)).tolist() == [
        False, True, False, False, True, False,
    ]  # fmt: skip


def test_a_model_that_overflows_says_nothing(unsteered: list[Cell]) -> None:
    cell = unsteered[0]
    for bad in (np.nan, np.inf):
        score = score_cell(cell, cell.ids, np.array([bad, 1.0]), cell.text, cell.ids)
        assert (score.nll, score.perplexity, score.surprising) == (None, None, None)
        json.dumps(asdict(score), allow_nan=False)


def test_an_empty_answer_has_scores_without_a_nan(
    model: Any, tokenizer: Any, prompts: list[Ids], unsteered: list[Cell]
) -> None:
    end = tokenizer.eos_token_id
    cells = [Cell(0, 5.0, (), False, ""), Cell(1, 5.0, (end,), True, "")]
    for score in score_cells(
        cells, unsteered, model, prompts, end_ids=[end], concept=concept_of_words(["owl"])
    ):
        assert (score.tokens, score.nll, score.perplexity, score.distinct_1) == (0, None, None, None)
        assert (score.kept, score.concept, score.fault) == (0, 0, "empty")
        json.dumps(asdict(score), allow_nan=False)


def test_the_share_of_concept_words() -> None:
    share = concept_of_words(["Ahoy", "matey", "l'abordage"])
    assert share("Ahoy, MATEY! Two more.") == 1
    assert share("Ahoy! " + "And so it went on. " * 20) == pytest.approx(1 / 101 / 0.05)
    assert share("") == share("42") == 0


# --- questions -----------------------------------------------------------------------------------


def test_our_questions() -> None:
    ours, toy = load_questions(), load_questions(tiny=True)
    assert len(ours) == len({q.kind for q in ours}) == 10 and len(toy) == 24
    assert len({q.text for q in ours + toy}) == 34


def test_the_users_questions(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_bytes("\ufeffWho are you?\r\n\r\n  Où est Paris ?\n".encode())
    assert [q.text for q in load_questions(text)] == ["Who are you?", "Où est Paris ?"]
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    rows = write_jsonl(tmp_path / "a.jsonl", [{"question": "Hi?", "kind": "x"}, {"messages": turns}])
    first, second = load_questions(rows)
    assert (first.kind, first.messages.turns) == ("x", [{"role": "user", "content": "Hi?"}])
    assert second.messages.turns == turns and second.text == "Hello"
    listed = tmp_path / "b.yaml"
    listed.write_text("- Who?\n- question: Where?\n", encoding="utf-8")
    assert [q.text for q in load_questions(listed)] == ["Who?", "Where?"]


@pytest.mark.parametrize(
    ("name", "content", "mentions"),
    [
        ("a.txt", b"\n \n", "no question"),
        ("a.txt", b"fine\n\xff\n", "line 2: not UTF-8"),
        ("a.txt", b"x" * (MAX_CHARACTERS + 1), f"line 1: {MAX_CHARACTERS + 1} characters"),
        ("a.txt", b"why?\n" * (MAX_QUESTIONS + 1), f"up to {MAX_QUESTIONS}"),
        ("a.txt", b"x" * (5 << 20), "more than"),
        ("a.csv", b"why?", ".jsonl"),
        ("a.jsonl", b'{"question": "a"}\n{"question"\n', "line 2: not valid JSON"),
        ("a.jsonl", b'{"question": "a"}\n\n["b"]\n', "line 3: not an object"),
        ("a.jsonl", b'{"text": "a"}\n', "line 1: needs one of 'question' and 'messages'"),
        ("a.jsonl", b'{"question": 3}\n', "line 1: the question is not a text"),
        ("a.jsonl", b'{"question": "a", "kind": 3}\n', "line 1: 'kind' is not a text"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "line 1: malformed"),
        ("a.jsonl", b'{"messages": [{"role": "assistant", "content": "a"}]}\n', "line 1: the last turn"),
        ("a.yaml", b"questions: [a]\n", "not a list"),
        ("a.yaml", b"- a\n- 3\n", "question 2: neither"),
        ("a.yaml", b"- &x a\n- *x\n", "line 1"),
        ("missing.txt", None, "no such file"),
    ],
)
def test_a_file_that_is_none_is_refused_in_a_line(
    tmp_path: Path, name: str, content: bytes | None, mentions: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FastzooError) as caught:
        load_questions(tmp_path / name)
    assert name in str(caught.value) and mentions in str(caught.value)
    assert "\n" not in str(caught.value)
