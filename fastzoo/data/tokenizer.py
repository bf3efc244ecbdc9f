"""A model's chat template and tokenizer: dialogues to tokens, as the model was trained to see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from fastzoo.config.recipe import DataSection
from fastzoo.core.errors import ModelError
from fastzoo.core.text import one_line
from fastzoo.data.dialogues import Dialogue, Unusable, read_dialogue
from fastzoo.data.literal_text import DROPPED, INSEPARABLE, READ, Encoder, LiteralText, Rendered, usable
from fastzoo.data.rows import Row
from fastzoo.data.sequences import Counts, TokenSequence
from fastzoo.data.template import ChatTemplate

BATCH_ROWS = 64
"""Dialogues tokenised at once."""

BATCH_CHARACTERS = 1 << 22
"""A batch ends once its rows hold this many characters: a tokenizer takes 200 bytes for each."""


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
        self.template = ChatTemplate(tokenizer, data.date, self.model_name)
        self._check_embeddings()

    def _check_embeddings(self) -> None:
        """A few ids beyond the model's may be those of tokens for images, which no text has."""
        largest = self.tokenizer.vocab_size - 1
        try:
            (ids,) = self.tokenize([self.template.write(Dialogue([{"role": "user", "content": "a"}]))])
            largest = max([largest, *ids.tolist()])
        except Unusable:
            pass  # a template that wants more than this
        if self.embeddings is not None and largest >= self.embeddings:
            raise ModelError(
                f"model.name: the tokenizer of {self.model_name} has token ids up to {largest}, the "
                f"model has embeddings for {self.embeddings} (ids 0 to {self.embeddings - 1}); they "
                "do not belong together"
            )

    def render(self, row: Any) -> Rendered:
        """The text of a dialogue row. Raises Unusable."""
        rendered = self._render(read_dialogue(row, self.data.column, self.template.reads))
        unread = {
            name for name in ("tools", "documents") if name not in self.template.reads and row.get(name)
        }
        return replace(rendered, unshown=rendered.unshown | unread)

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """Token ids of a dialogue up to where an answer begins. Raises Unusable."""
        (ids,) = self._literal.encode([self._render(dialogue, answer=True)])
        return self._checked(ids).tolist()

    def _render(self, dialogue: Dialogue, answer: bool = False) -> Rendered:
        try:
            unshown = self.template.unshown(dialogue, answer=answer)
            rendered = self._literal.render(dialogue, lambda d: self.template.write(d, answer=answer))
        except RecursionError:
            raise Unusable("malformed: nested too deeply") from None
        return replace(rendered, unshown=unshown)

    def _document(self, row: Any, column: str) -> Rendered:
        """The text of a row of plain text, all of which is content. Raises Unusable."""
        text = row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise Unusable(f"malformed: no text in column {column}")
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
                        counts.special_text += text.reason in (DROPPED, READ, INSEPARABLE)
                        raise text
                    counts.special_text += text.special_text
                    counts.unshown.update(text.unshown)
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
