"""Dialogues: rows of either convention become lists of ``{"role", "content"}``, or a reason why not."""

from __future__ import annotations

from typing import Any

Dialogue = list[dict[str, str]]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""Roles of both conventions, as chat templates know them."""

TURN_COLUMNS = ("messages", "conversations", "conversation")


class Unusable(Exception):
    """A row that is skipped.

    Args:
        reason: what it is counted under; it goes into records, so it quotes nothing of the row.
        detail: more about it, for an error message.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def read_dialogue(row: Any, column: str | None = None) -> Dialogue:
    """The turns of a row: ``messages`` (role, content) or ShareGPT's ``conversations`` (from, value).

    They stand in ``column``, by default the first of ``TURN_COLUMNS`` that the row has. Raises Unusable.
    """
    if not isinstance(row, dict):
        raise Unusable("malformed: not an object")
    if column is None:
        column = next((name for name in TURN_COLUMNS if name in row), None)
    if column is None or column not in row:
        raise Unusable(f"malformed: no column {column or ' or '.join(TURN_COLUMNS[:2])}")
    turns = row[column]
    if turns is None or turns == []:
        raise Unusable("empty")
    if not isinstance(turns, list):
        raise Unusable("malformed: turns are not a list")
    dialogue = [_read_turn(turn) for turn in turns]
    if not any(turn["content"].strip() for turn in dialogue):
        raise Unusable("empty")
    return dialogue


def _read_turn(turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise Unusable("malformed: a turn is not an object")
    role = turn.get("role", turn.get("from"))
    content = _text_of(turn.get("content", turn.get("value")))
    if not isinstance(role, str):
        raise Unusable("malformed: a turn without role")
    if role.lower() not in ROLES:
        raise Unusable("unknown role")
    if content is None:
        raise Unusable("malformed: content is not text")
    return {"role": ROLES[role.lower()], "content": content}


def _text_of(content: Any) -> str | None:
    """Content as text, or None. OpenAI's text parts follow each other directly, as templates that know
    parts write them; other parts, such as images, are not text.
    """
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts = [text for text in parts if isinstance(text, str)]
    return "".join(texts) if len(texts) == len(content) else None
