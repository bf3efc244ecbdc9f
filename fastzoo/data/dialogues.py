"""Dialogues: rows of either convention become what chat templates are given, or a reason why not."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

Turn = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "developer",
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

REASONING = ("reasoning_content", "reasoning", "thinking")
"""What datasets call an assistant's thoughts; transformers gives them to templates by the name that these read."""

VARIABLES = ("tools", "documents", "enable_thinking", "reasoning_effort")
"""Columns that are given to chat templates which read them; other variables stand in ``chat_template_kwargs``."""

RESERVED = frozenset(
    "conversation conversations messages chat_template add_generation_prompt continue_final_message tokenize "
    "sanitize_control_tokens padding truncation max_length return_tensors return_dict return_assistant_tokens_mask "
    "tokenizer_kwargs".split()
)
"""What is not for a row to say: arguments of ``apply_chat_template``."""

COMPARED = ("role", "type")
"""Keys whose values templates compare with words of their own."""


class Unusable(Exception):
    """A row that is skipped.

    Args:
        reason: what it is counted under; it goes into records, so it quotes nothing of the row.
        detail: more about it, for an error message.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Dialogue:
    """What a chat template is given of a row."""

    turns: list[Turn]
    """``role``, ``content`` (text or a list of text parts; absent where it is null beside tool calls or thoughts),
    and what else the message has, such as ``tool_calls``, ``tool_call_id``, ``reasoning_content``, ``name``."""
    variables: dict[str, Any] = field(default_factory=dict)
    """``tools``, ``documents`` and what else stands beside the turns."""

    def fields(self) -> set[str]:
        """Of what a template may not show, what the dialogue has besides content."""
        found = {name for name in ("tools", "documents") if self.variables.get(name)}
        found |= {"tool_calls" for turn in self.turns if turn.get("tool_calls")}
        return found | {"reasoning_content" for turn in self.turns if any(map(turn.get, REASONING))}

    def texts(self) -> Iterator[tuple[str, bool]]:
        """Every text in it, and whether it is a key or a word that templates compare."""
        for turn in self.turns:
            yield from _texts({key: value for key, value in turn.items() if key != "role"})
        yield from _texts(self.variables)

    def with_texts(self, change: Callable[[str, bool], str]) -> Dialogue:
        """The same with each text as ``change`` gives it for what ``texts`` says of it."""
        turns = [_changed(turn, change) | {"role": turn["role"]} for turn in self.turns]
        return Dialogue(turns, _changed(self.variables, change))


def _texts(value: Any, compared: bool = False) -> Iterator[tuple[str, bool]]:
    if isinstance(value, str):
        yield value, compared
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key), True
            yield from _texts(item, key in COMPARED)


def _changed(value: Any, change: Callable[[str, bool], str], compared: bool = False) -> Any:
    if isinstance(value, str):
        return change(value, compared)
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    if isinstance(value, dict):
        return {change(str(k), True): _changed(item, change, k in COMPARED) for k, item in value.items()}
    return value


def text_of(turn: Turn) -> str:
    """A turn's content as text. OpenAI's parts follow each other directly, as templates that know parts write them."""
    content = turn.get("content", "")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def read_dialogue(row: Any, column: str | None = None, read: Container[str] = VARIABLES) -> Dialogue:
    """What a chat template is given of a row: ``messages`` (role, content) or ShareGPT's ``conversations``
    (from, value), and the columns beside them that it reads.

    Args:
        column: where the turns stand, by default the first of ``TURN_COLUMNS`` that the row has.
        read: which of ``VARIABLES`` the template reads; whatever else bears such a name is left alone.

    Raises Unusable.
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
    dialogue = Dialogue([_read_turn(turn) for turn in turns], _read_variables(row, read))
    if not any(text_of(turn).strip() or "content" not in turn for turn in dialogue.turns):
        raise Unusable("empty")
    return dialogue


def _read_turn(given: Any) -> Turn:
    if not isinstance(given, dict):
        raise Unusable("malformed: a turn is not an object")
    turn = {key: value for key, value in given.items() if value is not None}
    role, content = (turn.pop(a, turn.pop(b, None)) for a, b in (("role", "from"), ("content", "value")))
    if not isinstance(role, str):
        raise Unusable("malformed: a turn without role")
    if role.lower() not in ROLES:
        raise Unusable("unknown role")
    calls = _objects(turn.pop("tool_calls", None), "tool_calls")
    if calls:  # an empty list, as columns of tables have it, would be a call to templates that ask whether it is there
        if not all(isinstance(call.get("function", {}), dict) for call in calls):
            raise Unusable("malformed: a tool call's function is not an object")
        turn["tool_calls"] = calls
    if not all(isinstance(turn.get(name, ""), str) for name in REASONING):
        raise Unusable("malformed: reasoning is not text")
    turn["role"] = ROLES[role.lower()]
    if content is not None:
        turn["content"] = _content(content)
    elif not (turn.get("tool_calls") or any(map(turn.get, REASONING))):
        raise Unusable("malformed: content is not text")
    return turn


def _content(content: Any) -> str | list[dict[str, str]]:
    """Text, or text parts without what else stands in them; other parts, such as images, are not text."""
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [None]
    if not all(
        isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts
    ):
        raise Unusable("malformed: content is not text")
    return [{"type": "text", "text": part["text"]} for part in parts]


def _read_variables(row: dict[str, Any], read: Container[str]) -> dict[str, Any]:
    """What stands beside the turns."""
    more = _unpacked(row.get("chat_template_kwargs"), "chat_template_kwargs are not an object")
    if not isinstance(more, dict | None):
        raise Unusable("malformed: chat_template_kwargs are not an object")
    columns = {name: row[name] for name in VARIABLES if name in read and row.get(name) is not None}
    variables = columns | {name: value for name, value in (more or {}).items() if value is not None}
    if RESERVED & variables.keys():
        raise Unusable(
            "malformed: chat_template_kwargs hold an argument that is not a variable of the template"
        )
    for name in {"tools", "documents"} & variables.keys():
        variables[name] = _objects(variables[name], name)
    for name, kind in (("enable_thinking", bool), ("reasoning_effort", str)):
        if not isinstance(columns.get(name, kind()), kind):
            raise Unusable(f"malformed: {name} is not {'text' if kind is str else 'true or false'}")
    return {name: value for name, value in variables.items() if value is not None}


def _objects(value: Any, name: str) -> list[dict[str, Any]] | None:
    """A list of objects, which datasets also hold as JSON; None where that is empty."""
    wrong = f"{name} are not a list of objects"
    value = _unpacked(value, wrong)
    if isinstance(value, list):
        value = [_unpacked(item, wrong) for item in value]
    if value is not None and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise Unusable(f"malformed: {wrong}")
    return value


def _unpacked(value: Any, wrong: str) -> Any:
    """A value, or what its JSON says."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        raise Unusable(f"malformed: {wrong}") from None
