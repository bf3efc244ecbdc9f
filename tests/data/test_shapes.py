"""The shapes of rows that people have, and what is said of those that have no one right reading."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastzoo.data.dialogues import Unusable, read_dialogue, text_of

ASKED = [("user", "Hi?"), ("assistant", "Hello.")]
TURNS = [{"role": role, "content": text} for role, text in ASKED]
SHARED = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]


def plain(row: Any, column: str | None = None) -> list[tuple[str, str]]:
    return [(turn["role"], text_of(turn)) for turn in read_dialogue(row, column).turns]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"conversations": SHARED, "id": 1},
        {"conversation": [turn | {"language": "en", "toxic": False} for turn in TURNS], "turn": 1},
        {"dialogue": TURNS},
        {"dialog": TURNS},
        {"turns": TURNS},
        {"chat": TURNS},
        {"Messages": TURNS},
        TURNS,
        {"messages": json.dumps(TURNS)},
        {"messages": str(TURNS)},  # as pandas writes it
        {"turns": 1, "prompt": "Hi?", "completion": "Hello."},
        {"instruction": "Hi?", "input": "", "output": "Hello."},
        {"instruction": "Hi?", "context": None, "response": "Hello."},
        {"prompt": "Hi?", "completion": "Hello."},
        {"prompt": "Hi?", "response": "Hello."},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"question": "Hi?", "answer": "Hello."},
        {"Question": "Hi?", "Answer": "Hello."},
        {"query": "Hi?", "response": "Hello."},
        {"problem": "Hi?", "solution": "Hello."},
        {"input": "Hi?", "output": "Hello."},
        {"chosen": TURNS, "rejected": TURNS[:1]},
        {"prompt": "Hi?", "chosen": TURNS, "rejected": TURNS},
        {"prompt": "Hi?", "chosen": TURNS[1:], "rejected": TURNS[1:]},
        {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[1:]},
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."},
        {"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."},
        {"messages": TURNS, "prompt": "another", "chosen": SHARED},
        {"messages": [{"role": "prompter", "text": "Hi?"}, {"role": " Model ", "text": "Hello."}]},
        {"messages": [{"speaker": "user", "text": "Hi?"}, {"speaker": "bot", "text": "Hello."}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}, TURNS[1]]},
    ],
)
def test_one_reading(row: Any) -> None:
    assert plain(row) == ASKED


def test_what_stands_beside_a_question() -> None:
    row = {
        "instruction": "Add.",
        "input": "1, 2",
        "output": "3",
        "system": "Count.",
        "history": [["Hi?", "Hello."]],
    }
    assert plain(row) == [("system", "Count."), *ASKED, ("user", "Add.\n1, 2"), ("assistant", "3")]
    row = {"system_prompt": "Be kind.", "question": "Hi?", "response": "Hello."}
    assert plain(row) == [("system", "Be kind."), *ASKED]


def test_a_column_chooses() -> None:
    row = {"prompt": "a", "completion": "b", "question": "Hi?", "answer": "Hello."}
    assert plain(row, "question") == ASKED
    assert plain({"messages": [], "conversation": TURNS}, "conversation") == ASKED
    assert plain({"prompt": "Hi?", "completion": "x", "chosen": "Hello."}, "chosen") == ASKED


def test_a_function_call_of_sharegpt() -> None:
    said = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    seen = {"from": "observation", "value": "3"}
    called, found = read_dialogue({"conversations": [SHARED[0], said, seen]}).turns[1:]
    assert called["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    assert "content" not in called and found == {"role": "tool", "content": "3"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "malformed: no column messages or conversations"),
        (7, "malformed: not an object"),
        ({"prompt": "a"}, "malformed: no answer beside column prompt"),
        ({"text": "once"}, "malformed: plain text without turns, which bt-p trains on"),
        (
            {"prompt": "a", "completion": "b", "question": "c", "answer": "d"},
            r"several readings \(prompt/completion and question/answer\)",
        ),
        ({"prompt": "a", "chosen": "b", "completion": "c"}, "several readings"),
        ({"chosen": "b"}, "malformed: chosen is text without a prompt"),
        ({"chosen": 7}, "malformed: chosen is neither text nor turns"),
        ({"prompt": 7, "completion": "x"}, "malformed: column prompt is neither text nor turns"),
        (
            {"instruction": "a", "output": "b", "history": [["x"]]},
            "malformed: history is not a list of pairs",
        ),
        ({"dialog": ["Hi?", "Hello."]}, "malformed: a turn is not an object"),
        ({"messages": "[[[" * 500}, "malformed: turns are not a list"),
        ({"messages": "[" + "(" * 100_000}, "malformed: turns are not a list"),
        ({"messages": "[__import__('os').getcwd()]"}, "malformed: turns are not a list"),
        (
            {"conversations": [{"from": "function_call", "value": "add(1)"}]},
            "malformed: a function_call turn",
        ),
    ],
)
def test_no_one_reading(row: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        read_dialogue(row)
