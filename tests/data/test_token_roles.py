"""Whose words tokens are: for templates of all kinds, with what makes it hard to tell."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from chat_templates import TEMPLATES
from test_template import TOOL, chat_of, model_of

from fastzoo.data.sequences import Counts, cut
from fastzoo.data.token_roles import TokenRoles

CALL = [{"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": {"x": "one"}}}]


def by_role(tokenizer: Any, name: str, row: Any, **data: Any) -> dict[str, str]:
    """The text of each role's tokens, end to end; {} where the template refuses the row."""
    chat = chat_of(model_of(tokenizer, name), **data)
    roles, found = TokenRoles(chat), defaultdict(list)
    for sequence in chat.dialogues([(0, row)], Counts()):
        own = roles.of(row, sequence)
        assert len(own) == len(sequence)
        for number, role in zip(sequence.ids.tolist(), own, strict=True):
            found[role].append(number)
        # The same for a beginning of it.
        assert roles.of(row, cut(sequence, 0, 20)) == own[:20]
    return {role: roles.texts.decode(ids) for role, ids in found.items()}


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_role_has_what_it_says(tokenizer: Any, name: str) -> None:
    turns = [
        {"role": "user", "content": "Where is the assistant?"},
        {"role": "assistant", "content": "In Paris, user."},
        {"role": "user", "content": "Je dis <|im_end|> [INST] <|end|> à 😀"},
        {"role": "assistant", "content": "ok"},
    ]
    system = {"role": "system", "content": "Be nice."}
    found = by_role(tokenizer, name, {"messages": turns})
    assert set(found) == {"user", "assistant", "template"}
    # A token can hold a blank that the template writes before the text.
    for role, said in (("user", turns[::2]), ("assistant", turns[1::2])):
        assert found[role].replace(" ", "") == "".join(t["content"] for t in said).replace(" ", "")
    with_system = by_role(tokenizer, name, {"messages": [system, *turns]})
    assert with_system.get("system", "Be nice.").strip() == "Be nice."


def test_white_space_around_a_text_is_part_of_it(tokenizer: Any) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "  hi \n\n"},
            {"role": "assistant", "content": "\n  "},
            {"role": "user", "content": "x"},
        ]
    }
    assert by_role(tokenizer, "chatml", row)["user"] == "  hi \n\nx"


def test_tools_and_thoughts(tokenizer: Any) -> None:
    answers = [
        {"role": "assistant", "content": None, "tool_calls": CALL},
        {"role": "tool", "content": "seven", "name": "add", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "reasoning_content": "It says seven", "content": "It is 7."},
    ]
    row = {"tools": [TOOL], "messages": [{"role": "user", "content": "add"}, *answers]}
    found = by_role(tokenizer, "qwen3", row)
    assert found["user"] == "add" and "seven" in found["tool"] and "adds" in found["tool"]
    assert found["assistant"].startswith("add") and "one" in found["assistant"]
    assert found["assistant"].endswith("It says sevenIt is 7.")
    assert "<think>" in found["template"] and "</think>" in found["template"]


def test_headers_decide_where_a_template_takes_what_is_said_apart(tokenizer: Any) -> None:
    turns = [
        {"role": "user", "content": "q?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"},
    ]
    found = by_role(tokenizer, "qwen3", {"messages": turns})
    assert found["user"].strip() == "q?" and found["assistant"].strip().endswith("yes")
    assert "hm" in found["assistant"] and found["template"].count("<|im_start|>") == 2


def test_special_tokens_that_a_user_may_write_are_the_users(tokenizer: Any) -> None:
    row = {"messages": [{"role": "user", "content": "a <|im_end|> b"}, {"role": "assistant", "content": "c"}]}
    found = by_role(tokenizer, "chatml", row, special_text="allow")
    assert found["user"].replace(" ", "") == "a<|im_end|>b" and found["assistant"] == "c"
