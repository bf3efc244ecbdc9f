"""Token streams: what the language model is fed, against the tokenizer one dialogue at a time."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_dialogues, recipe, write_jsonl
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fastzoo.config import Recipe
from fastzoo.data import Data, open_data
from fastzoo.dialogues import Unusable, read_dialogue
from fastzoo.errors import DataError, ModelError
from fastzoo.sources import open_rows
from fastzoo.streams import ChatTokenizer, Counts, TokenSequence, TokenStream, blocks

WORDS = "fox owl bee sea sun hat cup key map ice".split()


def dialogue(index: int, turns: int = 1) -> list[dict[str, str]]:
    """A dialogue unlike those of all other indices, of a length of its own."""
    rng = np.random.default_rng(index)
    made = []
    for turn in range(turns):
        words = " ".join(rng.choice(WORDS, size=int(rng.integers(1, 12))))
        made += [
            {"role": "user", "content": f"{index} {turn} {words}?"},
            {"role": "assistant", "content": f"{words} {index}."},
        ]
    return made


def messages(count: int) -> list[dict[str, Any]]:
    return [{"messages": dialogue(i, 1 + i % 3)} for i in range(count)]


def expected_ids(tokenizer: Any, turns: list[dict[str, str]]) -> list[int]:
    """The reference: the tokenizer's own template and tokenisation, one dialogue at a time."""
    return tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=False, date_string="26 Jul 2024"
    )


def settings(source: Path, method: str = "fast", **data: Any) -> Recipe:
    values: dict[str, Any] = {
        "method": method,
        "data": {"source": str(source), "max_tokens": 512, "block_tokens": 48, **data},
    }
    if method == "bt-p":
        values["text"] = {"source": str(source)}
    return recipe(**values)


def stream_of(run: Recipe, tokenizer: Any, **more: Any) -> TokenStream:
    """A training stream without held-out rows."""
    section = run.text if run.method == "bt-p" else run.data
    chat = ChatTokenizer(tokenizer, run.data, "test model")
    return TokenStream(run, chat, open_rows(section, run.seed), **more)


def take(stream: Any, count: int) -> list[TokenSequence]:
    return list(islice(iter(stream), count))


def joined(sequences: list[TokenSequence], field: str) -> np.ndarray:
    return np.concatenate([getattr(s, field) for s in sequences])


@pytest.fixture(scope="module")
def bos_tokenizer() -> Any:
    """Adds a BOS by itself, and its template starts with one: the trap of a double BOS.

    The template also prints today's date and insists on alternating turns.
    """
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2}
    for character in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .?:\n":
        vocabulary[character] = len(vocabulary)
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.add_special_tokens(["<s>", "</s>"])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.chat_template = (
        "{{ bos_token }}{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}\n"
        "{%- for m in messages -%}"
        "{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{- raise_exception('roles must alternate') -}}{%- endif -%}"
        "{{- m['role'] + ': ' + m['content'] + '</s>' -}}"
        "{%- endfor -%}"
    )
    return made


# --- fast ---------------------------------------------------------------------------------------


def test_fast_equals_the_tokenizer_one_dialogue_at_a_time(tmp_path: Path, tokenizer: Any) -> None:
    rows = messages(150)
    run = settings(write_jsonl(tmp_path / "d.jsonl", rows))
    stream = stream_of(run, tokenizer)
    found = take(stream, len(rows))
    assert sorted({int(s.dialogue[0]) for s in found}) == list(range(150))
    for made in found:
        index = int(made.dialogue[0])
        ids = expected_ids(tokenizer, rows[index]["messages"])
        assert made.ids.tolist() == ids
        assert made.position.tolist() == list(range(len(ids)))
        assert set(made.dialogue.tolist()) == {index}
        names = tokenizer.convert_ids_to_tokens(ids)
        assert made.special.tolist() == [n in ("<|im_start|>", "<|im_end|>") for n in names]
        assert made.special.sum() == 2 * len(rows[index]["messages"])
    assert (stream.counts.used, stream.counts.truncated) == (150, 0)
    assert stream.counts.tokens == sum(len(s) for s in found)
    assert not stream.counts.skipped


def test_embedded_dialogues_equal_the_tokenizer(tokenizer: Any) -> None:
    run = recipe(data={"max_tokens": 512, "block_tokens": 256})
    rows = dict(open_rows(run.data, run.seed).held_out())
    for made in take(stream_of(run, tokenizer), 70):
        turns = rows[int(made.dialogue[0])]["messages"]
        assert made.ids.tolist() == expected_ids(tokenizer, turns)


def test_never_a_double_bos(tmp_path: Path, bos_tokenizer: Any) -> None:
    rows = messages(20)
    rendered = bos_tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False)
    assert bos_tokenizer(rendered)["input_ids"][:2] == [0, 0], "the trap is no longer one"
    run = settings(write_jsonl(tmp_path / "d.jsonl", rows))
    for made in take(stream_of(run, bos_tokenizer), 20):
        turns = rows[int(made.dialogue[0])]["messages"]
        assert made.ids.tolist() == expected_ids(bos_tokenizer, turns)
        assert (made.ids == 0).nonzero()[0].tolist() == [0]
        assert bos_tokenizer.decode(made.ids[1:12]).replace(" ", "") == "26Jul2024"
        assert made.special[0]
        assert made.special.sum() == 1 + len(turns)
        assert np.array_equal(made.special, (made.ids == 0) | (made.ids == 1))


def test_truncation_keeps_the_start_and_is_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = messages(60)
    lengths = [len(expected_ids(tokenizer, r["messages"])) for r in rows]
    limit = sorted(lengths)[40]
    run = settings(write_jsonl(tmp_path / "d.jsonl", rows), max_tokens=limit)
    stream = stream_of(run, tokenizer)
    for made in take(stream, 60):
        ids = expected_ids(tokenizer, rows[int(made.dialogue[0])]["messages"])
        assert made.ids.tolist() == ids[:limit]
        assert len(made.special) == len(made.position) == len(made)
    assert stream.counts.truncated == sum(n > limit for n in lengths) > 5
    assert stream.counts.used == 60


def test_sharegpt_rows_are_the_same_dialogues(tmp_path: Path, tokenizer: Any) -> None:
    names = {"user": "human", "assistant": "gpt"}
    sharegpt = [
        {
            "conversations": [
                {"from": names[t["role"]], "value": t["content"]} for t in row["messages"]
            ]
        }
        for row in messages(30)
    ]
    one = write_jsonl(tmp_path / "m.jsonl", messages(30))
    other = write_jsonl(tmp_path / "s.jsonl", sharegpt)
    for a, b in zip(
        take(stream_of(settings(one), tokenizer), 30),
        take(stream_of(settings(other), tokenizer), 30),
        strict=True,
    ):
        assert np.array_equal(a.ids, b.ids)
        assert np.array_equal(a.dialogue, b.dialogue)


def test_parquet_rows_are_the_same_dialogues(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(messages(30)), path)
    jsonl = write_jsonl(tmp_path / "d.jsonl", messages(30))
    found = take(stream_of(settings(path), tokenizer), 30)
    expected = take(stream_of(settings(jsonl), tokenizer), 30)
    assert [s.ids.tolist() for s in found] == [s.ids.tolist() for s in expected]


def test_a_column_of_another_name_is_found_when_named(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"messages": None, "chosen": row["messages"]} for row in messages(10)]
    run = settings(write_jsonl(tmp_path / "d.jsonl", rows), column="chosen")
    made = take(stream_of(run, tokenizer), 1)[0]
    assert made.ids.tolist() == expected_ids(tokenizer, rows[int(made.dialogue[0])]["chosen"])


# --- blocks -------------------------------------------------------------------------------------


def assert_blocks(found: list[TokenSequence], whole: list[tuple[int, list[int]]]) -> None:
    """Blocks of 48 tokens that are, end to end, the documents ``(index, ids)`` in their order."""
    assert {len(s) for s in found} == {48}
    n = 48 * len(found)
    assert joined(found, "ids").tolist() == [t for _, ids in whole for t in ids][:n]
    assert joined(found, "dialogue").tolist() == [i for i, ids in whole for _ in ids][:n]
    assert (
        joined(found, "position").tolist() == [p for _, ids in whole for p in range(len(ids))][:n]
    )


def test_bt_f_blocks_are_the_concatenated_dialogues(tmp_path: Path, tokenizer: Any) -> None:
    rows = messages(200)
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    order = [int(s.dialogue[0]) for s in take(stream_of(settings(path), tokenizer), 200)]
    assert sorted(order) == list(range(200))
    whole = [(i, expected_ids(tokenizer, rows[i]["messages"])) for i in order]
    count = sum(len(ids) for _, ids in whole) // 48
    stream = stream_of(settings(path, "bt-f"), tokenizer)
    found = take(stream, count)
    assert_blocks(found, whole)
    assert stream.counts.tokens == 48 * count
    special = set(tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]))
    assert joined(found, "special").tolist() == [t in special for t in joined(found, "ids")]
    # The last, incomplete block is carried on into the next epoch, not dropped or padded.
    after = take(stream_of(settings(path, "bt-f"), tokenizer), count + 1)[-1]
    rest = [t for _, ids in whole for t in ids][48 * count :]
    assert after.ids.tolist()[: len(rest)] == rest


def test_bt_p_blocks_are_the_concatenated_texts(tmp_path: Path, tokenizer: Any) -> None:
    texts = [" ".join(turn["content"] for turn in dialogue(i, 1 + i % 4)) for i in range(120)]
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": text} for text in texts])
    run = settings(path, "bt-p")
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    count = sum(map(len, ids)) // 48
    found = take(stream_of(run, tokenizer), count)
    # The order of the documents is read off the blocks; that it is a permutation is checked.
    order = list(dict.fromkeys(joined(found, "dialogue").tolist()))
    assert len(set(order)) == len(order) >= 118
    assert order != sorted(order)
    assert_blocks(found, [(i, ids[i]) for i in order])
    assert not joined(found, "special").any()


def test_texts_get_no_bos_of_the_tokenizer_s_own(tmp_path: Path, bos_tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "abc def. " * 8}] * 9)
    found = take(stream_of(settings(path, "bt-p"), bos_tokenizer), 6)
    assert not (joined(found, "ids") == 0).any()


def test_a_document_longer_than_many_blocks_and_blocks_of_many_documents(
    tmp_path: Path, tokenizer: Any
) -> None:
    texts = ["the sea " * 300, "sun", "ice", "owl"]
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": t} for t in texts])
    found = take(stream_of(settings(path, "bt-p"), tokenizer), 14)
    assert {len(s) for s in found} == {48}
    starts = joined(found, "position") == 0
    assert np.array_equal(starts[1:], np.diff(joined(found, "dialogue")) != 0)


@pytest.mark.parametrize("size", [2, 7, 48, 60, 61])
def test_all_whole_blocks_of_a_finite_source_are_cut(size: int) -> None:
    dialogues = random_dialogues([30, 1, 20, 9])
    found = list(blocks(dialogues, size))
    assert [len(s) for s in found] == [size] * (60 // size)
    whole = joined(dialogues, "ids")
    assert [t for s in found for t in s.ids] == whole[: len(found) * size].tolist()


# --- what is skipped, and why -------------------------------------------------------------------


def test_unusable_rows_are_skipped_and_counted_by_reason(
    tmp_path: Path, bos_tokenizer: Any
) -> None:
    good = messages(5)
    bad = [
        {"messages": []},
        {"messages": None},
        {"messages": [{"role": "user", "content": "  "}]},
        {"messages": "hello"},
        {"messages": ["hello"]},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "user", "content": ["a", "list"]}]},
        {"messages": [{"role": "wizard", "content": "hm"}]},
        {"messages": [{"role": "assistant", "content": "starts"}]},
        {"prompt": "no such column"},
        ["not", "an", "object"],
        7,
        {"messages": [{"role": "user", "content": "half a character: \ud800"}]},
    ]
    path = write_jsonl(tmp_path / "d.jsonl", bad + good)
    stream = stream_of(settings(path, shuffle=False), bos_tokenizer)
    found = take(stream, 5)
    assert [int(s.dialogue[0]) for s in found] == [13, 14, 15, 16, 17]
    counts = stream.counts
    assert counts.rows == 18
    assert dict(counts.skipped) == {
        "empty": 3,
        "malformed: turns are not a list": 1,
        "malformed: a turn is not an object": 1,
        "malformed: a turn without role": 1,
        "malformed: content is not text": 1,
        "unknown role": 1,
        "refused by the chat template: roles must alternate": 1,
        "malformed: no column messages or conversations": 1,
        "malformed: not an object": 2,
        "malformed: not valid Unicode": 1,
    }
    assert counts.used + sum(counts.skipped.values()) == counts.rows
    assert "hello" not in str(counts.as_dict())


def test_texts_that_are_not_text_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": ""}, {"text": 5}, {"other": "x"}, {"text": "the owl and the bee " * 40}]
    run = settings(write_jsonl(tmp_path / "t.jsonl", rows), "bt-p")
    run = run.model_copy(update={"text": run.text.model_copy(update={"shuffle": False})})
    stream = stream_of(run, tokenizer)
    take(stream, 1)
    assert dict(stream.counts.skipped) == {"empty": 1, "malformed: no text in column text": 2}


@pytest.mark.parametrize(
    ("role", "known"),
    [("human", "user"), ("GPT", "assistant"), ("chatgpt", "assistant"), ("System", "system")],
)
def test_roles_of_both_conventions(role: str, known: str) -> None:
    row = {"conversations": [{"from": role, "value": "x"}]}
    assert read_dialogue(row) == [{"role": known, "content": "x"}]
    with pytest.raises(Unusable, match="unknown role"):
        read_dialogue({"messages": [{"role": role + "s", "content": "x"}]})


@pytest.mark.parametrize("method", ["fast", "bt-f"])
def test_no_usable_row_is_an_error_that_shows_the_first(
    tmp_path: Path, tokenizer: Any, method: str
) -> None:
    rows = [{"messages": [{"role": "elf", "content": f"spell {i}"}]} for i in range(20)]
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError) as caught:
        next(iter(stream_of(settings(path, method, shuffle=False), tokenizer)))
    text = str(caught.value)
    assert "bad.jsonl" in text
    assert "unknown role: 20" in text
    assert "row 0" in text
    assert "spell 0" in text
    assert "\n" not in text
    with pytest.raises(DataError, match="spell"):
        open_data(settings(path, method), tokenizer, "test model")


def test_a_tokenizer_without_template_is_refused(tokenizer: Any) -> None:
    class NoTemplate:
        chat_template = None

    with pytest.raises(ModelError, match="no chat template"):
        ChatTokenizer(NoTemplate(), recipe().data, "org/base-model")


# --- order and held-out rows --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fast", "bt-f"])
def test_same_seed_same_stream_other_seed_another(
    tmp_path: Path, tokenizer: Any, method: str
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", messages(40))

    def ids(seed: int) -> list[list[int]]:
        run = settings(path, method).model_copy(update={"seed": seed})
        return [s.ids.tolist() for s in take(stream_of(run, tokenizer), 60)]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_each_epoch_has_every_row_once_in_an_order_of_its_own(
    tmp_path: Path, tokenizer: Any
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", messages(40))
    stream = stream_of(settings(path), tokenizer)
    order = [int(s.dialogue[0]) for s in take(stream, 120)]
    epochs = [order[:40], order[40:80], order[80:]]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert stream.counts.epochs == 2  # complete ones
    unshuffled = stream_of(settings(path, shuffle=False), tokenizer)
    assert [int(s.dialogue[0]) for s in take(unshuffled, 80)] == [*range(40), *range(40)]


def test_held_out_dialogues_are_never_trained_on(tmp_path: Path, tokenizer: Any) -> None:
    rows = messages(80)
    rows += rows[:30]  # 30 dialogues stand twice
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    run = settings(path).model_copy(
        update={"evaluation": recipe(evaluation={"dialogues": 9}).evaluation}
    )
    data: Data = open_data(run, tokenizer, "test model")
    held = {int(s.dialogue[0]) for s in data.held_out}
    held_ids = {tuple(s.ids.tolist()) for s in data.held_out}
    assert len(held) == 9
    assert data.held_out_counts.used == 9
    for made in data.held_out:
        turns = rows[int(made.dialogue[0])]["messages"]
        assert made.ids.tolist() == expected_ids(tokenizer, turns)
    # Twins of held-out dialogues, themselves not held out: the rows that must be skipped.
    twins = {
        i
        for i, row in enumerate(rows)
        if i not in held and tuple(expected_ids(tokenizer, row["messages"])) in held_ids
    }
    assert twins
    left = 110 - 9 - len(twins)
    found = take(data.stream, 2 * left + 1)
    assert sorted(int(s.dialogue[0]) for s in found[:left]) == sorted(
        set(range(110)) - held - twins
    )
    assert not held_ids & {tuple(s.ids.tolist()) for s in found}
    assert data.stream.counts.skipped["identical to a held-out dialogue"] >= 2 * len(twins)
    counts = data.stream.counts
    assert counts.used + sum(counts.skipped.values()) == counts.rows
    assert counts.used == len(found)


def test_at_most_a_tenth_of_a_source_is_held_out(tmp_path: Path, tokenizer: Any) -> None:
    data = open_data(settings(write_jsonl(tmp_path / "d.jsonl", messages(50))), tokenizer, "m")
    assert len(data.held_out) == 5


def test_when_everything_left_is_identical_to_a_held_out_dialogue_that_is_said(
    tmp_path: Path, tokenizer: Any
) -> None:
    path = write_jsonl(tmp_path / "same.jsonl", [messages(1)[0]] * 12)
    with pytest.raises(DataError) as caught:
        open_data(settings(path), tokenizer, "test model")
    assert "identical to a held-out dialogue: 11" in str(caught.value)
    assert "None" not in str(caught.value)


def test_one_row_leaves_nothing_to_train_on(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "one.jsonl", messages(1))
    with pytest.raises(DataError, match=r"one\.jsonl: no row is left for training"):
        open_data(settings(path), tokenizer, "test model")


def test_evaluation_source_leaves_all_rows_for_training(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", messages(20))
    other = write_jsonl(tmp_path / "e.jsonl", [{"messages": dialogue(i)} for i in range(500, 540)])
    section = recipe(evaluation={"dialogues": 3, "source": str(other)}).evaluation
    run = settings(path).model_copy(update={"evaluation": section})
    data = open_data(run, tokenizer, "test model")
    assert data.held_out_info.name == "e.jsonl"
    assert len(data.held_out) == 3
    assert {int(s.dialogue[0]) for s in take(data.stream, 20)} == set(range(20))


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ['{"messages": [', "not json", '{"a": 1} {"b": 2}', "\ud800"])
def test_a_broken_line_names_file_and_line(tmp_path: Path, tokenizer: Any, broken: str) -> None:
    path = write_jsonl(tmp_path / "broken.jsonl", messages(9))
    lines = path.read_bytes().splitlines()
    lines[4] = broken.encode("utf-8", "surrogatepass")
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"broken\.jsonl, line 5: not valid JSON") as caught:
        open_rows(settings(path).data, 1)
    assert "\n" not in str(caught.value)


def test_blank_lines_are_no_rows(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", messages(3))
    path.write_text(path.read_text().replace("\n", "\n\n  \n"))
    stream = stream_of(settings(path), tokenizer)
    assert len({int(s.dialogue[0]) for s in take(stream, 3)}) == 3
    assert stream.counts.rows == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "holds no row"),
        ("d.csv", b"a,b\n", "'.csv' are not read; .jsonl and .parquet are"),
        ("d.parquet", b"PAR1 but nothing else", "not a readable Parquet file"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_rows(settings(tmp_path / name).data, 1)
    assert name in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl' is not there"):
        open_rows(settings(tmp_path / "gone.jsonl").data, 1)


def test_the_record_of_a_file_is_its_name_and_hash_never_its_folder(tmp_path: Path) -> None:
    import hashlib

    path = write_jsonl(tmp_path / "d.jsonl", messages(3))
    info = open_rows(settings(path).data, 1).info
    assert (info.name, info.kind, info.rows) == ("d.jsonl", "file", 3)
    assert info.revision == hashlib.sha256(path.read_bytes()).hexdigest()


def test_counts_start_empty() -> None:
    assert Counts().as_dict() == {
        "rows": 0,
        "used": 0,
        "truncated": 0,
        "special_text": 0,
        "tokens": 0,
        "epochs": 0,
        "skipped": {},
    }
