"""A model's chat template and tokenizer: dialogues to tokens, as the model was trained to see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jinja2 import TemplateSyntaxError

from fastzoo.config.recipe import DataSection
from fastzoo.core.errors import ModelError
from fastzoo.core.text import one_line
from fastzoo.data.dialogues import Dialogue, Unusable, read_dialogue
from fastzoo.data.literal_text import SpecialTexts
from fastzoo.data.rows import Row
from fastzoo.data.sequences import Counts, TokenSequence

BATCH_ROWS = 64
"""Dialogues tokenised at once."""

BATCH_CHARACTERS = 1 << 22
"""No more rows are read once those of a batch hold this many: a tokenizer takes 200 bytes for each."""

MOST_CHARACTERS = 1 << 24
"""A longer text is skipped: to tokenise it would take several GB."""

CHARACTERS_PER_TOKEN = 8
"""More than text commonly has. A dialogue that is to be truncated is first cut after so many."""

NEAR = 1000
"""Characters around special tokens by which a tokenizer's way with them is checked."""

UNKNOWN = "\U0010fffe"
"""No character: what is not in a vocabulary is tokenised like this."""

DROPPED = "text of a special token"

INSEPARABLE = "text of a special token that this tokenizer cannot read as ordinary text"


@dataclass(frozen=True)
class Text:
    """A row's text as it is to be tokenised."""

    text: str
    marker: str | None = None
    """Breaks the special tokens' texts that stand in content; None: nothing is to be kept apart."""
    special_text: bool = False
    """Whether content holds the text of a special token."""
    whole: str | None = None
    """All of it, where ``text`` is only its beginning."""


class ChatTokenizer:
    """A model's tokenizer and chat template, applied once and without a second BOS.

    Args:
        embeddings: token ids that the model has an embedding for, if that is known.

    Raises:
        ModelError: the tokenizer has no usable chat template, or it is not this model's.
    """

    def __init__(
        self, tokenizer: Any, data: DataSection, model_name: str, embeddings: int | None = None
    ) -> None:
        self.model_name = one_line(model_name)
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"model.name: {self.model_name} has no chat template; dialogues need one, so use "
                "the model's instruct version"
            )
        self.tokenizer, self.data, self.embeddings = tokenizer, data, embeddings
        special = set(tokenizer.all_special_ids)
        special |= {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        # The last one stands for all larger ids.
        self._is_special = np.zeros(max(special, default=-1) + 2, dtype=bool)
        self._is_special[list(special)] = True
        self._texts = SpecialTexts(tokenizer)
        self._template = one_line(tokenizer.chat_template, 1_000_000)
        self._check_embeddings()

    def _check_embeddings(self) -> None:
        """A few ids beyond the model's may be those of tokens for images, which no text has."""
        largest = self.tokenizer.vocab_size - 1
        try:
            turn = {"role": "user", "content": "a"}
            largest = max([largest, *self._ids(Text(self._apply([turn]))).tolist()])
        except Unusable:
            pass  # a template that wants more than this
        if self.embeddings is not None and largest >= self.embeddings:
            raise ModelError(
                f"model.name: the tokenizer of {self.model_name} has token ids up to {largest}, the "
                f"model has embeddings for {self.embeddings} (ids 0 to {self.embeddings - 1}); they "
                "do not belong together"
            )

    # --- from rows to text ---

    def render(self, row: Any) -> Text:
        """The text of a dialogue row. Raises Unusable."""
        dialogue = read_dialogue(row, self.data.column)
        contents = [turn["content"] for turn in dialogue]
        for content in contents:
            _check_unicode(content)
        policy = self.data.special_text
        typed = self._texts.typed("\0".join(contents))
        if typed and policy == "drop":
            raise Unusable(DROPPED)
        joins = not typed and any(map(self._texts.could_join, contents))
        if policy == "allow" or not (typed or joins):
            return Text(self._apply(dialogue), special_text=typed)
        marker = self._texts.marker(contents)
        marks = [self._texts.mark(content, marker) if marker else None for content in contents]
        if marker is None or None in marks:
            raise Unusable(INSEPARABLE)
        marked = self._apply(
            [{**turn, "content": mark or ""} for turn, mark in zip(dialogue, marks, strict=True)]
        )
        if joins:
            text = self._apply(dialogue)
            if self._texts.sequence(marked) == self._texts.sequence(text):
                return Text(text)  # nothing was joined
            if policy == "drop":
                raise Unusable(DROPPED)
        return Text(marked, marker, special_text=True)

    def _apply(self, dialogue: Dialogue) -> str:
        """The chat template's text of a dialogue. Raises Unusable."""
        try:
            text = self.tokenizer.apply_chat_template(
                dialogue, tokenize=False, add_generation_prompt=False, date_string=self.data.date
            )
        except TemplateSyntaxError as error:
            raise ModelError(
                f"model.name: the chat template of {self.model_name} is not valid Jinja "
                f"(line {error.lineno}: {one_line(error.message, 120)})"
            ) from None
        except Exception as error:  # a template is a program and can fail in any way
            said = one_line(str(error)[:500], 80)
            # Only what stands in the template itself is sure to hold nothing of the dialogue.
            known = said and said in self._template
            what = said if known else type(error).__name__
            raise Unusable(f"refused by the chat template: {what}", "" if known else said) from None
        if not text.strip():
            raise Unusable("nothing rendered by the chat template")
        return text

    def _read_document(self, row: Any, column: str) -> Text:
        """The text of a row of plain text, all of which is content. Raises Unusable."""
        text = row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise Unusable(f"malformed: no text in column {column}")
        _check_unicode(text)
        typed = self._texts.typed(text)
        if typed and self.data.special_text == "drop":
            raise Unusable(DROPPED)
        return Text(text, special_text=typed)

    # --- from text to tokens ---

    def tokenize(self, texts: Sequence[str], *, literal: bool = False) -> list[np.ndarray]:
        """Token ids of texts, nothing added to them.

        Args:
            literal: the texts of special tokens are ordinary text.
        """
        if not texts:
            return []
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            encoded = self.tokenizer(
                list(texts), add_special_tokens=False, split_special_tokens=literal, verbose=False
            )["input_ids"]
        else:
            # The same without offsets and lists that nobody reads: half the time for a long text.
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = literal
            encoded = (e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False))
        return [np.asarray(ids, dtype=np.int64) for ids in encoded]

    def _tokenize_each(
        self, texts: Sequence[str], literal: bool = False
    ) -> list[np.ndarray | Unusable]:
        """``tokenize``, and for a text that the tokenizer fails at, why it is skipped."""
        try:
            return list(self.tokenize(texts, literal=literal))
        except BaseException as error:
            # A panic of Rust, as for 10 MB of spaces, is no Exception and has no class to import.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if len(texts) == 1:
                return [Unusable("refused by the tokenizer", one_line(str(error)[:500], 80))]
        return [ids for text in texts for ids in self._tokenize_each([text], literal)]

    def _ids(self, text: Text, literal: bool = False) -> np.ndarray:
        """Token ids of one text. Raises Unusable."""
        if text.marker is not None:
            return self._ids_apart(text.text, text.marker)
        ids = self._tokenize_each([text.text], literal)[0]
        if isinstance(ids, Unusable):
            raise ids
        return ids

    def _ids_apart(self, text: str, marker: str) -> np.ndarray:
        """Token ids of a template's text whose content is broken by markers. Raises Unusable."""
        parts = self._texts.split(text)
        # The markers left in, both ways must agree: they do not for tokenizers that treat the start
        # of a text in a way of its own, or that find special tokens by other rules than these. What
        # is far from a special token has no say in this.
        near = [
            part if len(part) <= 2 * NEAR else part[:NEAR] + marker + part[-NEAR:] for part in parts
        ]
        if not np.array_equal(self._joined(near), self._ids(Text("".join(near)))):
            raise Unusable(INSEPARABLE)
        return self._joined([part.replace(marker, "") for part in parts])

    def _joined(self, parts: list[str]) -> np.ndarray:
        """Token ids of parts: ordinary text and special tokens in turn. Raises Unusable."""
        texts, special = self._texts.between(parts)
        encoded = iter(self._tokenize_each([text for text in texts if text], literal=True))
        joined: list[Any] = []
        for text, number in zip(texts, [*special, None], strict=True):
            ids = next(encoded) if text else np.empty(0, np.int64)
            if isinstance(ids, Unusable):
                raise ids
            if self._forged(ids):
                raise Unusable(INSEPARABLE)
            joined += [ids, [] if number is None else [number]]
        return np.concatenate(joined).astype(np.int64)

    def _forged(self, ids: np.ndarray) -> bool:
        """Whether ordinary text gave a special token, other than the one for what is unknown."""
        return not np.isin(ids[self.is_special(ids)], self._unknown).all()

    @cached_property
    def _unknown(self) -> np.ndarray:
        """What the tokenizer makes of a character of no vocabulary."""
        ids = self._tokenize_each([UNKNOWN], literal=True)[0]
        return np.empty(0, np.int64) if isinstance(ids, Unusable) else ids

    def is_special(self, ids: np.ndarray) -> np.ndarray:
        """(T,) bool, whether each token is one of the special ones."""
        return self._is_special[np.minimum(ids, len(self._is_special) - 1)]

    def sequence(self, ids: np.ndarray, index: int) -> TokenSequence:
        """One dialogue as a sequence of its own."""
        return TokenSequence(
            ids,
            np.arange(len(ids), dtype=np.int32),
            np.full(len(ids), index, dtype=np.int64),
            self.is_special(ids),
        )

    # --- rows in order ---

    def dialogues(
        self, rows: Iterable[Row], counts: Counts, *, truncate: bool = True
    ) -> Iterator[TokenSequence]:
        """Sequences of the usable rows, in order; truncated to ``max_tokens`` unless told not to."""
        limit = self.data.max_tokens if truncate else None
        for index, ids in self._encode(rows, counts, self.render, limit=limit):
            if limit and len(ids) > limit:
                counts.truncated += 1
                ids = ids[:limit]
            yield self.sequence(ids, index)

    def texts(self, rows: Iterable[Row], column: str, counts: Counts) -> Iterator[TokenSequence]:
        """Sequences of whole documents."""

        def read(row: Any) -> Text:
            return self._read_document(row, column)

        literal = self.data.special_text != "allow"
        for index, ids in self._encode(rows, counts, read, literal=literal):
            yield self.sequence(ids, index)

    def _encode(
        self,
        rows: Iterable[Row],
        counts: Counts,
        read: Callable[[Any], Text],
        *,
        literal: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Token ids of the rows' texts, in order; every row is counted when its turn comes.

        Args:
            literal: all of a text is content, in which no special token is recognised.
            limit: tokens that are wanted of each; more may be given.
        """
        for batch in self._batches(rows, read, limit):
            plain = [t.text for _, t in batch if isinstance(t, Text) and t.marker is None]
            tokenized = iter(self._tokenize_each(plain, literal))
            for (number, row), text in batch:
                counts.rows += 1
                try:
                    if isinstance(text, Unusable):
                        raise text
                    counts.special_text += text.special_text
                    ids = next(tokenized) if text.marker is None else self._ids(text)
                    if isinstance(ids, Unusable):
                        raise ids
                    if text.whole is not None and len(ids) <= (limit or 0):
                        whole = replace(text, text=text.whole, whole=None)
                        ids = self._ids(self._cut(whole, None), literal)
                    self._check(ids, literal)
                except Unusable as unusable:
                    if isinstance(text, Unusable):
                        counts.special_text += unusable.reason in (DROPPED, INSEPARABLE)
                    counts.skip(unusable.reason, number, row, unusable.detail)
                    continue
                counts.used += 1
                yield number, ids

    def _batches(
        self, rows: Iterable[Row], read: Callable[[Any], Text], limit: int | None
    ) -> Iterator[list[tuple[Row, Text | Unusable]]]:
        """Rows with their texts or why they have none, as many as are tokenised at once."""
        batch: list[tuple[Row, Text | Unusable]] = []
        characters = 0
        for number, row in rows:
            found: Text | Unusable
            try:
                found = read(row)
                characters += len(found.text)
                found = self._cut(found, limit)
            except Unusable as unusable:
                found = unusable
            batch.append(((number, row), found))
            if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch

    def _cut(self, text: Text, limit: int | None) -> Text:
        """The part of a text that surely, or very likely, has more than ``limit`` tokens."""
        if limit:
            start = self._texts.beginning(text.text, CHARACTERS_PER_TOKEN * limit)
            if len(start) < len(text.text):
                text = replace(text, text=start, whole=text.text)
        if len(text.text) > MOST_CHARACTERS:
            raise Unusable(f"longer than {MOST_CHARACTERS:,} characters")
        return text

    def _check(self, ids: np.ndarray, literal: bool) -> None:
        """Raise Unusable where token ids are none, or not what a model can be given."""
        if len(ids) == 0:
            raise Unusable("empty")
        if self.embeddings is not None and int(ids.max()) >= self.embeddings:
            raise Unusable("token id beyond the model's embeddings")
        if literal and self._forged(ids):
            raise Unusable(INSEPARABLE)


def _check_unicode(text: str) -> None:
    """A lone surrogate is valid JSON, but no text. Raises Unusable."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unusable("malformed: not valid Unicode") from None
