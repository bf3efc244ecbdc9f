"""Rows as a data set of ours has them: turns in an order that every chat template takes, without what stands beside.

What is wrong with a dialogue is mended where there is one right way, and said; else the row is left out, with a reason.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fastzoo.data.dialogues import REASONING, Dialogue, Turn, Unusable, read_dialogue, text_of

JOIN = "\n\n"
"""Between the texts of one role's turns in a row, as Mistral's tokenizer joins them."""

FIELDS = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content")
"""What a message of the result can have; all are text, ``tool_calls`` is JSON."""


@dataclass
class Normalised:
    """A usable row."""

    messages: list[dict[str, str | None]]
    """Each with all of ``FIELDS``."""
    tools: str | None = None
    """JSON."""
    repaired: set[str] = field(default_factory=set)
    """What was done to it."""

    def digest(self) -> bytes:
        """(32 bytes) of what the row says, whatever it is called and wherever it stands."""
        return digest({"messages": self.messages, "tools": self.tools})


def digest(row: dict[str, Any]) -> bytes:
    """The SHA-256 of a row's ``messages`` and ``tools``, or of its ``text``; what is null is as if it were not there."""
    if "text" in row:
        return hashlib.sha256(row["text"].encode()).digest()
    messages = [{k: v for k, v in message.items() if v is not None} for message in row["messages"]]
    known = json.dumps([messages, row.get("tools")], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(known.encode()).digest()


def normalise(row: Any, column: str | None = None) -> Normalised:
    """A row of any shape that ``read_dialogue`` reads. Raises Unusable."""
    dialogue = read_dialogue(row, column)
    repaired: set[str] = set()
    turns = _joined([_plain(turn) for turn in dialogue.turns], repaired)
    turns = _in_order(_without_empty(turns, repaired), repaired)
    repaired |= {f"{name} left out" for name in dialogue.variables if name != "tools"}
    result = Normalised([_message(turn) for turn in turns], _json(_tools(dialogue)), repaired)
    try:
        result.digest()
    except UnicodeEncodeError:
        raise Unusable("malformed: half of a surrogate pair") from None
    return result


def _tools(dialogue: Dialogue) -> Any:
    return dialogue.variables.get("tools") or None


def _plain(turn: Turn) -> Turn:
    """A turn with its content as text, or without any where that is null."""
    kept = {name: turn[name] for name in ("role", "tool_calls", "tool_call_id", "name") if turn.get(name)}
    thoughts = next((turn[name] for name in REASONING if turn.get(name)), None)
    if thoughts:
        kept["reasoning_content"] = thoughts
    if "content" in turn:
        kept["content"] = text_of(turn)
    return kept


def _is_empty(turn: Turn) -> bool:
    """Whether a turn says nothing. A tool may have nothing to say."""
    more = turn.get("tool_calls") or turn.get("reasoning_content") or turn["role"] == "tool"
    return not more and not turn.get("content", "").strip()


def _joined(turns: list[Turn], repaired: set[str]) -> list[Turn]:
    """Turns of one role that follow each other become one. Raises Unusable: some call tools, or think."""
    result: list[Turn] = []
    for turn in turns:
        before = result[-1] if result else None
        if before is None or turn["role"] != before["role"] or turn["role"] == "tool":
            result.append(dict(turn))
        elif _is_empty(turn) or _is_empty(before):
            repaired.add("empty turn left out")
            result[-1] = dict(before if _is_empty(turn) else turn)
        elif {"tool_calls", "reasoning_content"} & (before.keys() | turn.keys()):
            raise Unusable(f"two turns of the role {turn['role']} in a row, with tool calls or thoughts")
        else:
            repaired.add("turns of one role joined")
            result[-1] = {**before, "content": before.get("content", "") + JOIN + turn.get("content", "")}
    return result


def _without_empty(turns: list[Turn], repaired: set[str]) -> list[Turn]:
    """Empty turns at the end, and an empty system turn, say nothing to anybody. Raises Unusable: one amid the others."""
    kept = [turn for turn in turns if not (turn["role"] == "system" and _is_empty(turn))]
    while kept and _is_empty(kept[-1]):
        kept.pop()
    if len(kept) < len(turns):
        repaired.add("empty turn left out")
    if any(map(_is_empty, kept)):
        raise Unusable("an empty turn amid the others")
    return kept


def _in_order(turns: list[Turn], repaired: set[str]) -> list[Turn]:
    """System first, then the user; the assistant answers; tools answer the assistant. Raises Unusable."""
    first = 1 if turns and turns[0]["role"] == "system" else 0
    if any(turn["role"] == "system" for turn in turns[first:]):
        raise Unusable("a system turn amid the others")
    if first < len(turns) and turns[first]["role"] == "assistant":
        if turns[first].get("tool_calls"):
            raise Unusable("begins with the assistant's call of a tool")
        repaired.add("assistant's turn before the user's left out")
        turns = turns[:first] + turns[first + 1 :]
    roles = [turn["role"] for turn in turns[first:]]
    if not roles or roles[0] != "user":
        raise Unusable("no user turn at the beginning" if roles else "empty")
    if "assistant" not in roles:
        raise Unusable("no assistant turn")
    if any(pair == ("user", "tool") for pair in pairwise(roles)):
        raise Unusable("a tool's turn that answers the user")
    return turns


def _message(turn: Turn) -> dict[str, str | None]:
    texts = {name: turn.get(name) for name in FIELDS}
    if not all(isinstance(texts[name], str | None) for name in ("tool_call_id", "name")):
        raise Unusable("malformed: a tool call's id, or a name, is not text")
    return {**texts, "tool_calls": _json(turn.get("tool_calls"))}


def _json(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise Unusable("malformed: nested too deeply") from None


def normalise_text(row: Any, column: str = "text") -> str:
    """A row of plain text. Raises Unusable."""
    text = row.get(column) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise Unusable(f"malformed: no text in column {column}")
    if not text.strip():
        raise Unusable("empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unusable("malformed: half of a surrogate pair") from None
    return text
