"""A model's chat template and tokenizer: dialogues to tokens, as the model was trained to see them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
from jinja2 import TemplateSyntaxError

from fastzoo.config.recipe import DataSection
from fastzoo.core.errors import ModelError
from fastzoo.core.text import one_line
from fastzoo.data.dialogues import Unusable, read_dialogue
from fastzoo.data.literal_text import DROPPED, INSEPARABLE, Encoder, LiteralText, Rendered, usable
from fastzoo.data.rows import Row
from fastzoo.data.sequences import Counts, TokenSequence

BATCH_ROWS = 64
"""Dialogues tokenised at once."""

BATCH_CHARACTERS = 1 << 22
"""A batch ends once its rows hold this many characters: a tokenizer takes 200 bytes for each."""

Turns = Sequence[Mapping[str, str]]
"""A dialogue: ``{"role", "content"}`` of each turn."""


def apply_template(
    tokenizer: Any,
    turns: Turns,
    *,
    date: str = DataSection().date,
    answer: bool = False,
    tokenize: bool = False,
) -> Any:
    """The text of a dialogue by the tokenizer's chat template or, with ``tokenize``, its token ids.

    Everything that a model reads is written here, so that it never depends on today's date. A template
    is a program and can raise anything.

    Args:
        date: what templates that print a date print instead of today's.
        answer: whether the beginning of an answer follows (``add_generation_prompt``).

    Raises ModelError: today's date cannot be kept out.
    """
    written = tokenizer.apply_chat_template(
        list(turns),
        chat_template=with_fixed_date(tokenizer.get_chat_template(), date),
        add_generation_prompt=answer,
        tokenize=tokenize,
        return_dict=tokenize,
        date_string=date,
    )
    return list(written["input_ids"]) if tokenize else str(written)


_TODAY = re.compile(r"""strftime_now\(\s*(['"])([^'"\\]*)\1\s*\)""")


@lru_cache(maxsize=16)
def with_fixed_date(template: str, date: str) -> str:
    """A chat template in which ``date`` stands for every ``strftime_now("...")``: in that format if it
    is written like "26 Jul 2024", else as it is.

    transformers hands a template only plain data, so the function itself cannot be replaced. Raises
    ModelError: the format is not a plain string.
    """

    def written(match: re.Match[str]) -> str:
        try:
            return repr(datetime.strptime(date, "%d %b %Y").strftime(match[2]))
        except ValueError:
            return repr(date)

    fixed = _TODAY.sub(written, template)
    if re.search(r"strftime_now\s*\(", fixed):
        said = "the chat template prints today's date in a way that data.date cannot replace"
        raise ModelError(f"{said}; results would depend on the day")
    return fixed


class ChatTokenizer(Encoder):
    """A model's tokenizer and chat template, applied once and without a second BOS.

    ``embeddings`` is how many token ids the model has an embedding for, if that is known. Raises
    ModelError: the tokenizer has no usable chat template, or it is not this model's.
    """

    def __init__(
        self, tokenizer: Any, data: DataSection, model_name: str, embeddings: int | None = None
    ) -> None:
        self.model_name = one_line(model_name)
        if not getattr(tokenizer, "chat_template", None):
            said = "has no chat template; dialogues need one, so use the model's instruct version"
            raise ModelError(f"model.name: {self.model_name} {said}")
        super().__init__(tokenizer)
        self.data, self.embeddings = data.fitted(), embeddings
        self._literal = LiteralText(self, data.special_text)
        self._template = one_line(tokenizer.chat_template, 1_000_000)
        self._check_embeddings()

    def _check_embeddings(self) -> None:
        """A few ids beyond the model's may be those of tokens for images, which no text has."""
        largest = self.tokenizer.vocab_size - 1
        try:
            (ids,) = self.tokenize([self.apply_template([{"role": "user", "content": "a"}])])
            largest = max([largest, *ids.tolist()])
        except Unusable:
            pass  # a template that wants more than this
        if self.embeddings is not None and largest >= self.embeddings:
            raise ModelError(
                f"model.name: the tokenizer of {self.model_name} has token ids up to {largest}, the "
                f"model has embeddings for {self.embeddings} (ids 0 to {self.embeddings - 1}); they "
                "do not belong together"
            )

    def apply_template(self, turns: Turns, *, answer: bool = False) -> str:
        """The chat template's text of a dialogue. Raises Unusable: the template refuses it or writes
        nothing; ModelError: the template itself is broken."""
        try:
            text: str = apply_template(self.tokenizer, turns, date=self.data.date, answer=answer)
        except ModelError:
            raise
        except TemplateSyntaxError as error:
            said = f"is not valid Jinja (line {error.lineno}: {one_line(error.message, 120)})"
            raise ModelError(f"model.name: the chat template of {self.model_name} {said}") from None
        except Exception as error:  # a template is a program and can fail in any way
            said = one_line(str(error)[:500], 80)
            # Only what stands in the template itself is sure to hold nothing of the dialogue.
            known = said and said in self._template
            what = said if known else type(error).__name__
            raise Unusable(f"refused by the chat template: {what}", "" if known else said) from None
        if not text.strip():
            raise Unusable("nothing rendered by the chat template")
        return text

    def render(self, row: Any) -> Rendered:
        """The text of a dialogue row. Raises Unusable."""
        dialogue = read_dialogue(row, self.data.column)
        for turn in dialogue:
            _check_unicode(turn["content"])
        return self._literal.render(dialogue, self.apply_template)

    def _document(self, row: Any, column: str) -> Rendered:
        """The text of a row of plain text, all of which is content. Raises Unusable."""
        text = row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise Unusable(f"malformed: no text in column {column}")
        _check_unicode(text)
        return self._literal.document(text)

    def sequence(self, ids: np.ndarray, index: int) -> TokenSequence:
        """One dialogue as a sequence of its own."""
        return TokenSequence(
            ids,
            np.arange(len(ids), dtype=np.int32),
            np.full(len(ids), index, dtype=np.int64),
            self.is_special(ids),
        )

    def dialogues(
        self, rows: Iterable[Row], counts: Counts, *, truncate: bool = True
    ) -> Iterator[TokenSequence]:
        """Sequences of the usable rows, in order; truncated to ``max_tokens`` unless told not to."""
        limit = self.data.max_tokens if truncate else None
        for index, ids in self._encode(rows, counts, self.render, limit):
            if limit and len(ids) > limit:
                counts.truncated += 1
                ids = ids[:limit]
            yield self.sequence(ids, index)

    def texts(self, rows: Iterable[Row], column: str, counts: Counts) -> Iterator[TokenSequence]:
        """Sequences of whole documents."""
        for index, ids in self._encode(rows, counts, lambda row: self._document(row, column)):
            yield self.sequence(ids, index)

    def _encode(
        self, rows: Iterable[Row], counts: Counts, read: Callable[[Any], Rendered], limit: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Row number and token ids, at least ``limit`` if there are more, of the usable rows in order; each
        row is counted in its turn."""
        for batch in self._batches(rows, read):
            encoded = self._literal.encode([t for _, t in batch if isinstance(t, Rendered)], limit)
            for (number, row), text in batch:
                counts.rows += 1
                try:
                    if isinstance(text, Unusable):
                        counts.special_text += text.reason in (DROPPED, INSEPARABLE)
                        raise text
                    counts.special_text += text.special_text
                    ids = self._checked(next(encoded))
                except Unusable as unusable:
                    counts.skip(unusable.reason, number, row, unusable.detail)
                else:
                    counts.used += 1
                    yield number, ids

    def _batches(
        self, rows: Iterable[Row], read: Callable[[Any], Rendered]
    ) -> Iterator[list[tuple[Row, Rendered | Unusable]]]:
        """Rows with their texts, or why they have none, as many as are tokenised at once."""
        batch: list[tuple[Row, Rendered | Unusable]] = []
        characters = 0
        for number, row in rows:
            try:
                found = read(row)
                characters += len(found.text)
                batch.append(((number, row), found))
            except Unusable as unusable:
                batch.append(((number, row), unusable))
            if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch

    def _checked(self, ids: np.ndarray | Unusable) -> np.ndarray:
        """Token ids that the model can be given. Raises Unusable."""
        ids = usable(ids)
        if len(ids) == 0:
            raise Unusable("empty")
        if self.embeddings is not None and int(ids.max()) >= self.embeddings:
            raise Unusable("token id beyond the model's embeddings")
        return ids


def _check_unicode(text: str) -> None:
    """A lone surrogate is valid JSON, but not text. Raises Unusable."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unusable("malformed: not valid Unicode") from None
