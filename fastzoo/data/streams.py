"""Token streams: what the language model is fed, in the paper's three ways.

* ``fast``: every dialogue through the chat template, alone, truncated.
* ``bt-f``: templated dialogues concatenated and cut into blocks of exactly ``block_tokens``.
* ``bt-p``: the same blocks, cut from plain text.

Every token keeps its position in its dialogue, its dialogue's index and whether it is special.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count

from fastzoo.config.recipe import Recipe
from fastzoo.core.errors import DataError
from fastzoo.data.dialogues import Unusable
from fastzoo.data.rows import Row, Rows
from fastzoo.data.sequences import Counts, Position, TokenSequence, concatenate, cut
from fastzoo.data.tokenizer import ChatTokenizer


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
    return DataError(
        f"{rows.info.name}: no usable row among {counts.rows} ({counts.reasons()}); the first: "
        f'{counts.first_skipped}; rows are {{"messages": [{{"role": "user", "content": "..."}}]}} or '
        '{"conversations": [{"from": "human", "value": "..."}]}'
    )
