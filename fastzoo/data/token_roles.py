"""Whose words each token of a dialogue is: a role's, or the chat template's own.

The template writes the dialogue once more with a mark on both sides of each text that a turn says. Where it writes the
same but for the marks, what stands between two marks of a turn is that turn's, and the rest the template's; offsets of
the tokenizer carry that over to tokens. So it is known for templates that name roles and for those that do not
("[INST]"). For the few templates that look into what turns say, the headers of turns decide (``TurnTexts``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from itertools import groupby, islice
from typing import Any

import numpy as np

from fastzoo.data.dialogues import REASONING, Dialogue, Unusable, read_dialogue
from fastzoo.data.literal_text import CHARACTERS_PER_TOKEN, NEAR, Rendered, SpecialTexts
from fastzoo.data.sequences import TokenSequence
from fastzoo.data.special_tokens import SpecialTokens, TurnTexts
from fastzoo.data.tokenizer import ChatTokenizer

TEMPLATE = "template"
"""Of tokens that no turn says: headers, what ends a turn, a system prompt of the template's own."""

UNTOLD = "untold"
"""Of tokens of which neither marks nor headers say whose they are."""

_SAID = ("content", *REASONING)

_WHOLE = 1 << 20
"""Characters that are encoded where fewer do not give the tokens."""

_Spans = list[tuple[int, int, str]]


class TokenRoles:
    """Roles of the tokens of one model's dialogues."""

    def __init__(self, chat: ChatTokenizer) -> None:
        self._chat = chat
        self._special = SpecialTexts(chat.tokenizer)
        self._headers, self.texts = SpecialTokens.of(chat), TurnTexts(chat)

    def of(self, row: Any, sequence: TokenSequence) -> list[str]:
        """For each token of a usable row's sequence, whole or its beginning: ``system``, ``user``, ``assistant``,
        ``tool`` (also what describes tools, and documents), ``template`` or ``untold``. Raises Unusable."""
        rendered = self._chat.render(row)
        dialogue = read_dialogue(row, self._chat.data.column, self._chat.template.reads)
        spans = self._said(dialogue, rendered)
        offsets = None if spans is None else self._offsets(rendered, sequence.ids)
        if spans is None or offsets is None:
            return self._by_headers(sequence)
        roles = [TEMPLATE, *dict.fromkeys(role for _, _, role in spans)]
        owner_C = np.zeros(max(stop for _, stop in [*offsets, (0, 1)]) + 1, dtype=np.uint8)
        for start, stop, role in spans:
            owner_C[start:stop] = roles.index(role)
        # A token can begin with blanks of the template's.
        return [roles[max(owner_C[a], owner_C[b - 1]) if b > a else 0] for a, b in offsets]

    def _said(self, dialogue: Dialogue, rendered: Rendered) -> _Spans | None:
        """Characters of the rendered text, without its marker, that turns say; None if the template does not write
        the same with marks around them."""
        plain = _plain(rendered)
        mark = self._special.marker(plain + "\0".join(text for text, _ in dialogue.texts()))
        # Some templates refuse identifiers that are longer than usual.
        for keys in (None, _SAID):
            marked = _Marked(dialogue, mark, keys)
            try:
                spans = marked.spans(self._chat.template.write(marked.dialogue), plain)
            except Unusable:
                continue
            if spans is not None:
                return spans
        return None

    def _offsets(self, rendered: Rendered, ids: np.ndarray) -> list[tuple[int, int]] | None:
        """First and last character (exclusive) of each token in the text without its marker; None if the tokenizer
        does not tell, or not of these tokens."""
        backend = getattr(self._chat.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        # What stands far behind the last of these tokens has no influence on them; that is checked.
        for characters in (CHARACTERS_PER_TOKEN * (len(ids) + NEAR), _WHOLE):
            encoded = self._encoded(backend, rendered.text[:characters], rendered.marker)
            found = list(islice(encoded, len(ids)))
            if [number for number, _, _ in found] == ids.tolist():
                return [(start, stop) for _, start, stop in found]
        return None

    def _encoded(self, backend: Any, text: str, marker: str | None) -> Iterator[tuple[int, int, int]]:
        """Token id, first and last character of each token, as ``LiteralText`` encodes the text."""
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = marker is not None
        if marker is None:
            encoded = backend.encode(text, add_special_tokens=False)
            yield from (
                (number, *offset) for number, offset in zip(encoded.ids, encoded.offsets, strict=True)
            )
            return
        parts, special = self._special.split(text)
        parts = [part.replace(marker, "") for part in parts]
        texts, numbers = self._special.stripped(parts, special)
        begin = 0
        for i, (part, kept) in enumerate(zip(parts, texts, strict=True)):
            start = begin + part.index(kept)
            encoded = backend.encode(kept, add_special_tokens=False)
            for number, (a, b) in zip(encoded.ids, encoded.offsets, strict=True):
                yield number, start + a, start + b
            begin += len(part)
            if i < len(special):
                yield numbers[i], begin, begin + len(special[i])
                begin += len(special[i])

    def _by_headers(self, sequence: TokenSequence) -> list[str]:
        role, roles = UNTOLD, []
        counted = self._headers.among(sequence.ids, sequence.position, sequence.special)
        for place, is_template in enumerate(counted.tolist()):
            if sequence.special[place]:
                role = self.texts.role(sequence, place) or role
            roles.append(TEMPLATE if is_template else role)
        return roles


def _plain(rendered: Rendered) -> str:
    return rendered.text.replace(rendered.marker, "") if rendered.marker else rendered.text


class _Marked:
    """A dialogue with a mark and a number on both sides of each text, of the turns' ``keys`` or of all; inside the
    white space around it, which templates trim. All texts of one value, such as a turn's tool calls, have one number."""

    def __init__(self, dialogue: Dialogue, mark: str, keys: Container[str] | None) -> None:
        self._mark = mark
        self._owners: list[tuple[str, str]] = []  # by number: the role, and what is said if that is one text
        turns = []
        for turn in dialogue.turns:
            said = [key for key in turn if key != "role" and (keys is None or key in keys)]
            turns.append(turn | {key: self._around(str(turn["role"]), turn[key]) for key in said})
        variables = dialogue.variables
        if keys is None:
            variables = {name: self._around("tool", value) for name, value in variables.items()}
        self.dialogue = Dialogue(turns, variables)

    def _around(self, role: str, value: Any) -> Any:
        sign = f"{self._mark}{len(self._owners)}{self._mark}"
        self._owners.append((role, value if isinstance(value, str) else ""))

        def change(text: str, compared: bool) -> str:
            core = text.strip()
            return text if compared or not core else text.replace(core, sign + core + sign, 1)

        return Dialogue([], {"value": value}).with_texts(change).variables["value"]

    def spans(self, written: str, plain: str) -> _Spans | None:
        """What of ``plain`` stands between two marks of one number; None unless ``written`` is the same with marks."""
        either = f"(?:{re.escape(self._mark)}|{re.escape(json.dumps(self._mark)[1:-1])})"
        sign = re.compile(f"{either}([0-9]+){either}")
        if sign.sub("", written) != plain:
            return None
        marks, removed = [], 0
        for match in sign.finditer(written):
            marks.append((match.start() - removed, int(match[1])))
            removed += len(match[0])
        spans = []
        for number, group in groupby(marks, key=lambda found: found[1]):
            places = [place for place, _ in group]
            if len(places) % 2:  # one of the two is lost: the template took the text apart
                return None
            role, text = self._owners[number]
            before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
            start, stop = places[0], places[-1]
            # The white space around a text, if the template left it there.
            start -= len(before) if plain.endswith(before, 0, start) else 0
            stop += len(after) if plain.startswith(after, stop) else 0
            spans.append((start, stop, role))
        return spans
