"""Rows become turns in an order that every chat template takes; what is mended or left out is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastzoo.data.build.normalise import FIELDS, digest, normalise, normalise_text
from fastzoo.data.dialogues import Unusable


def turns(*said: tuple[str, str | None], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said], **more}


def plain(row: Any) -> list[tuple[str | None, str | None]]:
    return [(message["role"], message["content"]) for message in normalise(row).messages]


ASKED = ("user", "Hi?"), ("assistant", "Hello.")


@pytest.mark.parametrize(
    ("given", "wanted", "repaired"),
    [
        (ASKED, ASKED, set()),
        ((("system", "Be kind."), *ASKED), (("system", "Be kind."), *ASKED), set()),
        ((("system", " "), *ASKED), ASKED, {"empty turn left out"}),
        ((*ASKED, ("user", "")), ASKED, {"empty turn left out"}),
        ((*ASKED, ("user", "More?")), (*ASKED, ("user", "More?")), set()),
        (
            (("user", "Hi"), ("user", "there?"), ("assistant", "Hello.")),
            (("user", "Hi\n\nthere?"), ("assistant", "Hello.")),
            {"turns of one role joined"},
        ),
        ((("user", "Hi?"), ("assistant", ""), ("assistant", "Hello.")), ASKED, {"empty turn left out"}),
        ((("assistant", "Welcome!"), *ASKED), ASKED, {"assistant's turn before the user's left out"}),
        (
            (("system", "a"), ("system", "b"), *ASKED),
            (("system", "a\n\nb"), *ASKED),
            {"turns of one role joined"},
        ),
    ],
)
def test_turns_in_order(given: Any, wanted: Any, repaired: set[str]) -> None:
    assert plain(turns(*given)) == list(wanted)
    assert normalise(turns(*given)).repaired == repaired


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((("user", "Hi?"),), "no assistant turn"),
        ((("user", "Hi?"), ("assistant", " ")), "no assistant turn"),
        ((("system", "Be kind."),), "empty"),
        ((("assistant", "Alone."),), "empty"),
        (
            (("user", "Hi?"), ("assistant", ""), ("user", "So?"), ("assistant", "b")),
            "an empty turn amid the others",
        ),
        ((*ASKED, ("system", "Now be rude."), *ASKED), "a system turn amid the others"),
        ((("user", "Hi?"), ("tool", "42"), ("assistant", "b")), "a tool's turn that answers the user"),
        ((("user", "Hi\ud800?"), ("assistant", "b")), "malformed: half of a surrogate pair"),
    ],
)
def test_what_has_no_one_right_way_is_left_out(given: Any, reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        normalise(turns(*given))
    assert caught.value.reason == reason


def test_tools_are_kept_as_json() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "ü"}}}
    tool = {"type": "function", "function": {"name": "add"}}
    row = {
        "messages": [
            {"role": "user", "content": "1 + ü?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "", "tool_call_id": "7", "name": "add"},
            {"role": "assistant", "content": "2", "thinking": "easy", "language": "en"},
        ],
        "tools": [tool],
        "documents": [{"text": "x"}],
    }
    found = normalise(row)
    assert [set(message) for message in found.messages] == [set(FIELDS)] * 4
    _, called, answered, said = found.messages
    assert json.loads(called["tool_calls"] or "") == [call] and called["content"] is None
    assert (answered["content"], answered["tool_call_id"], answered["name"]) == ("", "7", "add")
    assert (said["reasoning_content"], said["content"]) == ("easy", "2")
    assert json.loads(found.tools or "") == [tool] and found.repaired == {"documents left out"}
    # What was normalised once stays so, and says the same.
    again = normalise({"messages": found.messages, "tools": found.tools})
    assert (again.messages, again.tools, again.repaired) == (found.messages, found.tools, set())
    assert again.digest() == found.digest() == digest({"messages": found.messages, "tools": found.tools})


def test_a_digest_is_of_what_a_row_says() -> None:
    rows = [
        turns(*ASKED),
        turns(*ASKED, id=7),
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]},
    ]
    assert len({normalise(row).digest() for row in rows}) == 1
    other = turns(("user", "Hi?"), ("assistant", "Hello. "))
    moved = turns(("user", "Hi?Hello."), ("assistant", "x"))
    assert len({normalise(row).digest() for row in (rows[0], other, moved)}) == 3
    assert digest({"text": "a"}) != digest({"text": "b"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": None}, "malformed: no text in column text"),
        (["a"], "malformed: no text in column text"),
        ({"text": " \n"}, "empty"),
        ({"text": "\udc00"}, "malformed: half of a surrogate pair"),
    ],
)
def test_text(row: Any, reason: str) -> None:
    assert normalise_text({"text": "a"}) == "a" and normalise_text({"body": "b"}, "body") == "b"
    with pytest.raises(Unusable) as caught:
        normalise_text(row)
    assert caught.value.reason == reason
