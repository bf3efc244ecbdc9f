"""Where the turns of a row stand: the shapes that people's data really have, each with one right reading."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

TURN_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat")
"""Columns of whole dialogues: a list of turns, or such a list as JSON or as pandas writes it into CSV. They go before all else."""

PAIRS = {
    "instruction": ("output", "response"),
    "prompt": ("completion", "response"),
    "question": ("answer", "response"),
    "query": ("response", "answer"),
    "problem": ("solution",),
    "input": ("output",),
}
"""By the column of what is asked, those of which one has the answer. ``input`` beside ``instruction`` belongs to that."""

MORE = ("input", "context")
"""What is asked about, below an instruction (Alpaca, Dolly)."""

SYSTEM = ("system", "system_prompt")

HUMAN = re.compile(r"\n\n(Human|Assistant): ?")
"""What begins a turn in transcripts such as those of Anthropic's hh-rlhf."""

LONGEST_LITERAL, DEEPEST_LITERAL = 1 << 20, 20
"""Of lists in Python's notation: its parser takes much memory, and fails badly on deep nesting."""


class Unusable(Exception):
    """A row that is skipped.

    Args:
        reason: what it is counted under; it goes into records, so it quotes nothing of the row.
        detail: more about it, for an error message.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def find_turns(row: Any, column: str | None = None) -> Any:
    """A row's turns, as they are there or made of a question and its answer.

    Args:
        column: where they are, or of several questions the one that is meant; None: what the row's columns say.

    Raises Unusable: there are none, or several readings.
    """
    if isinstance(row, list) and column is None:
        return row
    if not isinstance(row, dict):
        raise Unusable("malformed: not an object")
    if column is not None:
        return _at_column(row, column)
    for name in TURN_COLUMNS:
        if name in row and (name in TURN_COLUMNS[:3] or _may_be_turns(row[name])):
            return unpacked(row[name])
    known = {name.lower(): value for name, value in row.items() if isinstance(name, str)}
    if known.keys() != row.keys() and (found := [name for name in TURN_COLUMNS if name in known]):
        return unpacked(known[found[0]])
    return _made(known)


def _at_column(row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise Unusable(f"malformed: no column {column}")
    if column in PAIRS and not _may_be_turns(row[column]):
        return _pair(row, column, _answer_of(row, column))
    if column in ("chosen", "completion"):
        return _chosen(row, column)
    return unpacked(row[column])


def _may_be_turns(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def unpacked(value: Any) -> Any:
    """A list that is held as text: JSON, or Python's notation. Any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    depth = deepest = 0
    for bracket in re.findall(r"[\[({})\]]", value[:LONGEST_LITERAL]):
        depth += 1 if bracket in "[({" else -1
        deepest = max(deepest, depth)
    if len(value) > LONGEST_LITERAL or deepest > DEEPEST_LITERAL:
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return value


def _made(row: dict[str, Any]) -> Any:
    """Turns of a row without any column of turns."""
    found = {name: _answer_of(row, name) for name in PAIRS if row.get(name) is not None}
    if "instruction" in found:
        found.pop("input", None)
    asked = [(name, answer) for name, answer in found.items() if answer]
    if row.get("chosen") is not None:
        asked = [
            ("chosen", "chosen"),
            *(pair for pair in asked if pair[0] != "prompt" or pair[1] != "chosen"),
        ]
    if len(asked) > 1:
        names = " and ".join(sorted(name if name == answer else f"{name}/{answer}" for name, answer in asked))
        raise Unusable(f"malformed: several readings ({names}); data.column chooses")
    if not asked:
        if isinstance(row.get("text"), str) or isinstance(row.get("content"), str):
            raise Unusable("malformed: plain text without turns, which bt-p trains on")
        if found:
            raise Unusable(f"malformed: no answer beside column {next(iter(found))}")
        raise Unusable(f"malformed: no column {' or '.join(TURN_COLUMNS[:2])}")
    name, answer = asked[0]
    return _chosen(row, "chosen") if name == "chosen" else _pair(row, name, answer)


def _answer_of(row: dict[str, Any], name: str) -> str | None:
    """The column of the answer to a question."""
    return next((answer for answer in PAIRS[name] if row.get(answer) is not None), None)


def _pair(row: dict[str, Any], name: str, answer: str | None) -> list[Any]:
    """A question and its answer, each text or turns, with the system's text and earlier questions before them."""
    if answer is None:
        raise Unusable(f"malformed: no answer beside column {name}")
    asked, said = _part(row[name], "user", name), _part(row[answer], "assistant", answer)
    more = next((row[key] for key in MORE if name == "instruction" and row.get(key) is not None), None)
    if isinstance(more, str) and more.strip() and isinstance(row[name], str):
        asked = [{"role": "user", "content": f"{row[name]}\n{more}"}]  # as LLaMA-Factory joins them
    return [*_before(row), *asked, *said]


def _part(value: Any, role: str, name: str) -> list[Any]:
    value = unpacked(value)
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        raise Unusable(f"malformed: column {name} is neither text nor turns")
    return [{"role": role, "content": value}]


def _before(row: dict[str, Any]) -> list[Any]:
    """The system's text, and pairs of earlier questions and answers."""
    system = next(
        (row[name] for name in SYSTEM if isinstance(row.get(name), str) and row[name].strip()), None
    )
    turns: list[Any] = [] if system is None else [{"role": "system", "content": system}]
    history = unpacked(row.get("history"))
    if history is None or history == "":
        return turns
    if not isinstance(history, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in history
    ):
        raise Unusable("malformed: history is not a list of pairs of texts")
    for asked, said in history:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return turns


def _chosen(row: dict[str, Any], name: str) -> Any:
    """Of a preference, the answer that was preferred, with its prompt."""
    chosen = unpacked(row[name])
    prompt = next(
        (row[key] for key in ("prompt", "question", "instruction") if row.get(key) is not None), None
    )
    if isinstance(chosen, str):
        if HUMAN.match(chosen):
            return _transcript(chosen)
        if prompt is None:
            raise Unusable(f"malformed: {name} is text without a prompt")
        return [*_before(row), *_part(prompt, "user", "prompt"), {"role": "assistant", "content": chosen}]
    if not isinstance(chosen, list):
        raise Unusable(f"malformed: {name} is neither text nor turns")
    first = chosen[0] if chosen and isinstance(chosen[0], dict) else {}
    begins = str(first.get("role", first.get("from", ""))).lower() in ("assistant", "gpt")
    if begins and prompt is not None:  # else the prompt stands in it
        return [*_before(row), *_part(prompt, "user", "prompt"), *chosen]
    return chosen


def _transcript(text: str) -> list[Any]:
    """Turns of ``\\n\\nHuman: ...\\n\\nAssistant: ...``."""
    pieces = HUMAN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said} for who, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
