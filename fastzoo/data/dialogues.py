"""Dialogues: rows of either convention become what chat templates are given, or a reason why not."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastzoo.data.shapes import Unusable, find_turns

Turn = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
}
"""Roles as data sets have them, and as chat templates know them. What ShareGPT calls ``function_call`` is the JSON of a
tool's name and arguments."""

ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
"""Of a turn, in the order in which they are looked for."""

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
    """What a chat template is given of a row: its turns, which may be in any of the shapes of ``shapes.py``, such as
    ``messages`` (role, content) or ShareGPT's ``conversations`` (from, value), and the columns beside them that it reads.

    Args:
        column: where the turns stand; by default the columns of the row say it.
        read: which of ``VARIABLES`` the template reads; whatever else bears such a name is left alone.

    Raises Unusable.
    """
    turns = find_turns(row, column)
    if turns is None or turns == []:
        raise Unusable("empty")
    if not isinstance(turns, list):
        raise Unusable("malformed: turns are not a list")
    variables = _read_variables(row, read) if isinstance(row, dict) else {}
    dialogue = Dialogue([_read_turn(turn) for turn in turns], variables)
    if not any(text_of(turn).strip() or "content" not in turn for turn in dialogue.turns):
        raise Unusable("empty")
    return dialogue


def _read_turn(given: Any) -> Turn:
    if not isinstance(given, dict):
        raise Unusable("malformed: a turn is not an object")
    turn = {key: value for key, value in given.items() if value is not None}
    role, content = _first(turn, ROLE_KEYS), _first(turn, CONTENT_KEYS)
    if not isinstance(role, str):
        raise Unusable("malformed: a turn without role")
    role = role.strip().lower()
    if role not in ROLES:
        raise Unusable("unknown role")
    if role == "function_call":
        turn["tool_calls"], content = [_call(content)], None
    calls = _objects(turn.pop("tool_calls", None), "tool_calls")
    if calls:  # an empty list, as columns of tables have it, would be a call to templates that ask whether it is there
        if not all(isinstance(call.get("function", {}), dict) for call in calls):
            raise Unusable("malformed: a tool call's function is not an object")
        turn["tool_calls"] = calls
    if not all(isinstance(turn.get(name, ""), str) for name in REASONING):
        raise Unusable("malformed: reasoning is not text")
    turn["role"] = ROLES[role]
    if content is not None:
        turn["content"] = _content(content)
    elif not (turn.get("tool_calls") or any(map(turn.get, REASONING))):
        raise Unusable("malformed: content is not text")
    return turn


def _first(turn: Turn, keys: tuple[str, ...]) -> Any:
    """The value of the first of these keys that a turn has; all of them are taken out of it."""
    return next(iter([turn.pop(key) for key in keys if key in turn]), None)


def _call(content: Any) -> dict[str, Any]:
    """A tool call of the JSON that says its name and arguments."""
    wrong = "malformed: a function_call turn is not the JSON of a name and arguments"
    call = _unpacked(content, wrong.removeprefix("malformed: "))
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise Unusable(wrong)
    return {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}


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
