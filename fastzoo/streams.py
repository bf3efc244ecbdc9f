"""Token streams: what the language model is fed, in the paper's three ways.

* ``fast``: every dialogue through the chat template, alone, truncated.
* ``bt-f``: templated dialogues concatenated and cut into blocks of exactly ``block_tokens``.
* ``bt-p``: the same blocks, cut from plain text.

Every token keeps its position in its dialogue, its dialogue's index and whether it is special.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice
from typing import Any

import numpy as np
from jinja2 import TemplateError

from fastzoo.config import DataSection, Recipe
from fastzoo.dialogues import Unusable, read_dialogue, show_row
from fastzoo.errors import DataError, ModelError, one_line
from fastzoo.sources import Row, Rows, SourceInfo

BATCH_ROWS = 64
"""Dialogues tokenised at once."""


@dataclass(frozen=True)
class TokenSequence:
    """Tokens that go through the model together, attending to nothing else."""

    ids: np.ndarray
    """(T,) int64 token ids."""
    position: np.ndarray
    """(T,) int32, position of each token in its dialogue (in ``fast`` 0, 1, 2, ...)."""
    dialogue: np.ndarray
    """(T,) int64, index of each token's dialogue: its row number in the source."""
    special: np.ndarray
    """(T,) bool, whether the token is one of the tokenizer's special tokens."""
    after: Position | None = None
    """Where the stream goes on once this was given; None outside a ``TokenStream``."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Counts:
    """What became of the rows; kept up while a stream is read, over all its epochs."""

    rows: int = 0
    used: int = 0
    truncated: int = 0
    tokens: int = 0
    epochs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: str | None = None

    def skip(self, reason: str, number: int, row: Any) -> None:
        self.skipped[reason] += 1
        if self.first_skipped is None:
            self.first_skipped = f"row {number} ({reason}): {show_row(row)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without the text of any row."""
        values = asdict(self)
        del values["first_skipped"]
        return values | {"skipped": dict(sorted(self.skipped.items()))}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Counts:
        """From plain data."""
        return cls(**{**values, "skipped": Counter(values["skipped"])})

    def copy(self, **changes: Any) -> Counts:
        return replace(self, **{"skipped": self.skipped.copy(), **changes})


@dataclass(frozen=True)
class Position:
    """A place in a ``TokenStream`` from which another one gives exactly what the first would have."""

    epoch: int = 0
    row: int = 0
    """How many rows of the epoch, in its order, are done with."""
    offset: int = 0
    """How many tokens of the next usable row were given already (in blocks)."""
    counts: Counts = field(default_factory=Counts)
    """What became of the rows up to here; ``counts.tokens`` is how many tokens were given."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data that ``of`` reads back."""
        return {**vars(self), "counts": self.counts.as_dict()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Position:
        return cls(**{**values, "counts": Counts.of(values["counts"])})


class ChatTokenizer:
    """A model's tokenizer and chat template, applied once and without a second BOS.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, data: DataSection, model_name: str) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"model.name: {one_line(model_name)} has no chat template; dialogues need one, so use "
                "the model's instruct version"
            )
        self.tokenizer, self.data = tokenizer, data
        special = set(tokenizer.all_special_ids)
        special |= {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.special_ids = sorted(special)
        self._is_special = np.zeros(max([len(tokenizer), *special]) + 1, dtype=bool)
        self._is_special[self.special_ids] = True

    def render(self, row: Any) -> str:
        """The text of a dialogue row. Raises Unusable."""
        dialogue = read_dialogue(row, self.data.column)
        try:
            return self.tokenizer.apply_chat_template(
                dialogue, tokenize=False, add_generation_prompt=False, date_string=self.data.date
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            raise Unusable(f"refused by the chat template: {one_line(error, 80)}") from None

    def tokenize(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of texts, nothing added to them."""
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [np.asarray(ids, dtype=np.int64) for ids in encoded]

    def sequence(self, ids: np.ndarray, index: int) -> TokenSequence:
        """One dialogue as a sequence of its own."""
        return TokenSequence(
            ids,
            np.arange(len(ids), dtype=np.int32),
            np.full(len(ids), index, dtype=np.int64),
            self._is_special[ids],
        )

    def dialogues(
        self, rows: Iterable[Row], counts: Counts, *, truncate: bool = True
    ) -> Iterator[TokenSequence]:
        """Sequences of the usable rows, in order; truncated to ``max_tokens`` unless told not to."""
        for index, ids in self._encode(rows, counts, self.render):
            if truncate and len(ids) > self.data.max_tokens:
                counts.truncated += 1
                ids = ids[: self.data.max_tokens]
            yield self.sequence(ids, index)

    def texts(self, rows: Iterable[Row], column: str, counts: Counts) -> Iterator[TokenSequence]:
        """Sequences of whole documents."""

        def read(row: Any) -> str:
            text = row.get(column) if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise Unusable(f"malformed: no text in column {column}")
            return text

        for index, ids in self._encode(rows, counts, read):
            yield self.sequence(ids, index)

    def _encode(
        self, rows: Iterable[Row], counts: Counts, read: Any
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Token ids of the rows' texts, in order; every row is counted when its turn comes."""
        iterator = iter(rows)
        while batch := list(islice(iterator, BATCH_ROWS)):
            texts: list[str] = []
            reasons: list[str | None] = []
            for _, row in batch:
                try:
                    text = read(row)
                    text.encode()  # a lone surrogate is valid JSON, but no text
                    texts.append(text)
                    reasons.append(None)
                except Unusable as unusable:
                    reasons.append(unusable.reason)
                except UnicodeEncodeError:
                    reasons.append("malformed: not valid Unicode")
            tokenized = iter(self.tokenize(texts) if texts else [])
            for (number, row), reason in zip(batch, reasons, strict=True):
                counts.rows += 1
                ids = next(tokenized) if reason is None else None
                if ids is None or len(ids) == 0:
                    counts.skip(reason or "empty", number, row)
                    continue
                counts.used += 1
                yield number, ids


class TokenStream:
    """The endless, reproducible stream of training sequences of a recipe.

    Args:
        rows: dialogues, or plain text for bt-p.
        held_out: rows at the start of the source that are set aside for evaluation.
        exclude: token ids (as bytes) of held-out dialogues; identical ones are skipped and counted.
    """

    def __init__(
        self,
        recipe: Recipe,
        chat: ChatTokenizer,
        rows: Rows,
        held_out: int = 0,
        exclude: frozenset[bytes] = frozenset(),
    ) -> None:
        self.recipe, self.chat, self.rows = recipe, chat, rows
        self.held_out, self.exclude = held_out, exclude
        self.start_at(Position())

    def start_at(self, position: Position) -> None:
        """Iterating will go on from there (``TokenSequence.after``), counts included."""
        self.start = position
        self.counts = position.counts.copy()

    def __iter__(self) -> Iterator[TokenSequence]:
        dialogues = self._dialogues()
        sequences = (
            dialogues
            if self.recipe.method == "fast"
            else blocks(dialogues, self.recipe.data.block_tokens, self.start)
        )
        for sequence in sequences:
            self.counts.tokens += len(sequence)
            after = sequence.after
            assert after is not None
            # Blocks end before the last dialogue that was read: the counts are those of that place.
            after = replace(after, counts=after.counts.copy(tokens=self.counts.tokens))
            yield replace(sequence, after=after)

    def _dialogues(self) -> Iterator[TokenSequence]:
        """Dialogues or documents, epoch after epoch."""
        start = self.start
        offset = start.offset
        for epoch in count(start.epoch):
            # A position within an epoch is one behind something usable.
            done = start.row if epoch == start.epoch else 0
            usable = done > 0
            rows_before = self.counts.rows - done
            rows = self.rows.training(epoch, self.held_out, done)
            if self.recipe.method == "bt-p":
                found = self.chat.texts(rows, self.recipe.text.column, self.counts)
            else:
                # Blocks are cut from whole dialogues.
                fast = self.recipe.method == "fast"
                found = self.chat.dialogues(rows, self.counts, truncate=fast)
            for sequence in found:
                if self.exclude and sequence.ids.tobytes() in self.exclude:
                    self.counts.used -= 1
                    text = self.chat.tokenizer.decode(sequence.ids[:64])
                    self.counts.skip(
                        "identical to a held-out dialogue", int(sequence.dialogue[0]), text
                    )
                    continue
                usable = True
                after = Position(epoch, self.counts.rows - rows_before, 0, self.counts.copy())
                yield replace(cut(sequence, offset, len(sequence)), after=after)
                offset = 0
            if not usable:
                raise nothing_usable(self.rows, self.counts)
            self.counts.epochs += 1


def blocks(
    sequences: Iterable[TokenSequence], size: int, before: Position | None = None
) -> Iterator[TokenSequence]:
    """Concatenate sequences and cut blocks of exactly ``size`` tokens; a last part is not yielded.

    Args:
        before: where the stream stands that ``sequences`` come from.
    """
    parts: list[TokenSequence] = []
    held = 0
    for sequence in sequences:
        parts.append(sequence)
        held += len(sequence)
        if held >= size:
            joined = concatenate(parts)
            whole = held - held % size
            for stop in range(size, whole + 1, size):
                # What was held was less than a block: each block ends within the last dialogue.
                after = sequence.after
                if stop < held and before is not None:
                    after = replace(before, offset=int(joined.position[stop]))
                yield replace(cut(joined, stop - size, stop), after=after)
            parts, held = [cut(joined, whole, held)], held - whole
        before = sequence.after


def concatenate(sequences: list[TokenSequence]) -> TokenSequence:
    return TokenSequence(
        np.concatenate([s.ids for s in sequences]),
        np.concatenate([s.position for s in sequences]),
        np.concatenate([s.dialogue for s in sequences]),
        np.concatenate([s.special for s in sequences]),
    )


def cut(sequence: TokenSequence, start: int, stop: int) -> TokenSequence:
    part = slice(start, stop)
    return TokenSequence(
        sequence.ids[part], sequence.position[part], sequence.dialogue[part], sequence.special[part]
    )


def held_out_sequences(
    chat: ChatTokenizer, rows: Rows, wanted: int
) -> tuple[list[TokenSequence], Counts]:
    """The evaluation dialogues, each a sequence of its own whatever the training method.

    Reads rows until ``wanted`` are usable; ``counts.rows`` says how many rows that took.

    Raises:
        DataError: none of the rows is usable.
    """
    taken: list[Row] = []
    usable = 0
    for number, row in rows.held_out():
        taken.append((number, row))
        try:
            chat.render(row)
            usable += 1
        except Unusable:
            pass  # counted below
        if usable == wanted:
            break
    counts = Counts(epochs=1)
    sequences = list(chat.dialogues(taken, counts))
    counts.tokens = sum(len(s) for s in sequences)
    if not sequences:
        raise nothing_usable(rows, counts)
    return sequences, counts


def nothing_usable(rows: Rows, counts: Counts) -> DataError:
    """The error for a source without a usable row; shows the first bad one."""
    if counts.rows == 0:
        return DataError(
            f"{rows.info.name}: no row is left for training once the held-out ones are set aside; "
            "give more rows, or evaluation.source another file"
        )
    reasons = ", ".join(f"{reason}: {n}" for reason, n in counts.skipped.most_common())
    return DataError(
        f"{rows.info.name}: no usable row among {counts.rows} ({reasons}); the first: "
        f'{counts.first_skipped}; rows are {{"messages": [{{"role": "user", "content": "..."}}]}} or '
        '{"conversations": [{"from": "human", "value": "..."}]}'
    )


def described(info: SourceInfo, counts: Counts) -> dict[str, Any]:
    """A source and what became of its rows, as plain data for records."""
    return {
        "name": info.name,
        "kind": info.kind,
        "revision": info.revision,
        "source_rows": info.rows,
        **counts.as_dict(),
    }
