"""The questions of a steering sweep: fastzoo's own, those for the embedded toy model, or the user's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastzoo.core.errors import DataError, InputError
from fastzoo.core.strict_yaml import LONGEST, read_yaml
from fastzoo.core.text import one_line
from fastzoo.data.dialogues import Dialogue, Unusable, read_dialogue, text_of

MAX_QUESTIONS, MAX_BYTES = 1_000, 4 << 20

MAX_CHARACTERS = 20_000
"""Of one question with the turns before it."""


Values = Iterator[tuple[str, Any]]
"""Each value of a file with its place there."""


@dataclass(frozen=True)
class Question:
    """A dialogue that ends with a user's turn."""

    messages: Dialogue
    kind: str | None = None

    @property
    def text(self) -> str:
        """The last turn, which is to be answered."""
        return text_of(self.messages.turns[-1])

    @property
    def whole(self) -> str:
        """All turns, with their roles where there are several."""
        if len(self.messages.turns) == 1:
            return self.text
        return "\n\n".join(f"{turn['role']}: {text_of(turn)}" for turn in self.messages.turns)


def given_questions(texts: Sequence[str]) -> list[Question]:
    """Questions of a command line, each as it is: line breaks and all. Raises InputError where one is empty,
    DataError where one is too long."""
    if not all(map(str.strip, texts)):
        raise InputError("a question is empty")
    # Bytes of an argument that are not UTF-8 arrive as lone surrogates, which no tokenizer takes.
    valid = [text.encode("utf-8", "replace").decode() for text in texts]
    return [_question(text, f"question {n}") for n, text in enumerate(valid, start=1)]


def load_questions(path: Path | None = None, tiny: bool = False) -> list[Question]:
    """Questions of a file, or fastzoo's own.

    Args:
        path: .txt with one question a line; .jsonl with ``question`` or ``messages`` a line; .yaml with a list
            of questions, or of mappings as in .jsonl. ``kind`` may stand beside them.
        tiny: without a path, those that the embedded model can answer.

    Raises InputError for no such file, or another ending; DataError for a file that is too large, holds no question,
    or something that is not one (names the line).
    """
    if path is None:
        ours = files("fastzoo.steering").joinpath("questions.yaml").read_text(encoding="utf-8")
        chosen = read_yaml(ours, "questions.yaml")["tiny" if tiny else "chat"]
        return [_question(value, "questions.yaml") for value in chosen]
    where, ending = one_line(path, 200), path.suffix.lower()
    if ending not in READERS:
        raise InputError(f"{where}: questions are read from {', '.join(READERS)} files")
    most, values = READERS[ending]
    questions = [_question(value, at) for at, value in values(_read(path, where, most), where)]
    if not questions:
        raise DataError(f"{where}: no question in it")
    if len(questions) > MAX_QUESTIONS:
        raise DataError(f"{where}: {len(questions)} questions; a sweep takes up to {MAX_QUESTIONS}")
    return questions


def _read(path: Path, where: str, most: int) -> str:
    try:
        if not path.is_file():  # reading a pipe could wait forever
            raise InputError(f"{where}: {'not a file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({one_line(error.strerror or error, 80)})") from None
    if len(data) > most:
        raise DataError(f"{where}: more than {most} bytes; a .jsonl may have up to {MAX_BYTES}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where}, line {line}: not UTF-8") from None


def _yaml_values(text: str, where: str) -> Values:
    try:
        values = read_yaml(text, where)
    except InputError as error:
        raise DataError(str(error)) from None
    if not isinstance(values, list):
        raise DataError(f"{where}: not a list of questions; each starts with '- '")
    yield from ((f"{where}, question {n}", value) for n, value in enumerate(values, start=1))


def _lines(text: str, where: str) -> Values:
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if line:
            yield f"{where}, line {number}", line


def _json_values(text: str, where: str) -> Values:
    for at, line in _lines(text, where):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            expected = 'each line is {"question": "..."} or {"messages": [...]}'
            raise DataError(f"{at}: not valid JSON ({one_line(error, 80)}); {expected}") from None
        if not isinstance(value, dict):
            raise DataError(f"{at}: not an object with 'question' or 'messages'")
        yield at, value


READERS: dict[str, tuple[int, Callable[[str, str], Values]]] = {
    ".txt": (MAX_BYTES, _lines),
    ".jsonl": (MAX_BYTES, _json_values),
    ".yaml": (LONGEST, _yaml_values),
    ".yml": (LONGEST, _yaml_values),
}
"""By a file's ending: how many bytes it may have, and what reads it."""


def _question(value: Any, at: str) -> Question:
    row = {"question": value} if isinstance(value, str) else value
    if not isinstance(row, dict):
        raise DataError(f"{at}: neither a text nor a mapping with 'question' or 'messages'")
    if ("question" in row) == ("messages" in row):
        raise DataError(f"{at}: needs one of 'question' and 'messages'")
    if "question" in row:
        text = row["question"]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{at}: the question is not a text")
        messages = Dialogue([{"role": "user", "content": text}])
    else:
        try:
            messages = read_dialogue(row, "messages")
        except Unusable as unusable:
            raise DataError(f"{at}: {unusable.reason}") from None
    if messages.turns[-1]["role"] != "user" or not text_of(messages.turns[-1]).strip():
        raise DataError(f"{at}: the last turn must be the user's, with the question in it")
    kind = row.get("kind")
    if kind is not None and not isinstance(kind, str):
        raise DataError(f"{at}: 'kind' is not a text")
    if (length := sum(len(text) for text, is_key in messages.texts() if not is_key)) > MAX_CHARACTERS:
        raise DataError(f"{at}: {length} characters; a question may have {MAX_CHARACTERS}")
    return Question(messages, kind)
