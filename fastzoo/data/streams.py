"""Token streams: what the language model is fed, in the paper's three ways.

* ``fast``: every dialogue through the chat template, alone, truncated.
* ``bt-f``: templated dialogues concatenated and cut into blocks of exactly ``block_tokens``.
* ``bt-p``: the same blocks, cut from plain text.

Every token keeps its position in its dialogue, its dialogue's index and whether it is special.

The way of a dialogue, from its file to the buffer: a row in the epoch's order (``rows``), its turns
(``dialogues``), the text that the chat template makes of them (``template``), token ids in which typed
special tokens stay text (``literal_text``), cut at ``max_tokens``; here skipped if it is held out, and
joined into blocks unless the method is fast; then packed with others into a forward pass that keeps them
apart (``lm.packing``), read at the hooked layers (``lm.activations``), cut at the token budget
(``training.columns``) and mixed (``training.buffer``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, islice

from fastzoo.core.errors import DataError
from fastzoo.data.rows import Rows
from fastzoo.data.sequences import Counts, ResumePoint, TokenSequence, concatenate, cut
from fastzoo.data.tokenizer import ChatTokenizer


class TokenStream:
    """The endless, reproducible stream of training sequences.

    Args:
        rows: dialogues, or plain text for bt-p.
        column: where rows of plain text have it.
        held_out: rows at the start of the source that are set aside for evaluation.
        exclude: token ids (as bytes) of held-out dialogues; identical ones are skipped and counted.
    """

    def __init__(
        self,
        chat: ChatTokenizer,
        rows: Rows,
        method: str,
        *,
        block_tokens: int,
        column: str,
        held_out: int = 0,
        exclude: frozenset[bytes] = frozenset(),
    ) -> None:
        self.chat, self.rows, self.method = chat, rows, method
        self.block_tokens, self.column = block_tokens, column
        self.held_out, self.exclude = held_out, exclude
        self.start_at(ResumePoint())

    def start_at(self, point: ResumePoint) -> None:
        """Iterating will go on from there (``TokenSequence.after``), counts included."""
        self.start = point
        self.counts = point.counts.copy()

    def __iter__(self) -> Iterator[TokenSequence]:
        sequences = self._dialogues()
        if self.method != "fast":
            sequences = blocks(sequences, self.block_tokens, self.start)
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
            # A resume point within an epoch stands behind something usable.
            done = start.row if epoch == start.epoch else 0
            usable = done > 0
            rows_before = self.counts.rows - done
            rows = self.rows.training(epoch, self.held_out, done)
            if self.method == "bt-p":
                found = self.chat.texts(rows, self.column, self.counts)
            else:
                # Blocks are cut from whole dialogues.
                found = self.chat.dialogues(rows, self.counts, truncate=self.method == "fast")
            for sequence in found:
                if sequence.ids.tobytes() in self.exclude:
                    self.counts.used -= 1
                    text = self.chat.tokenizer.decode(sequence.ids[:64])
                    self.counts.skip("identical to a held-out dialogue", int(sequence.dialogue[0]), text)
                    continue
                usable = True
                after = ResumePoint(epoch, self.counts.rows - rows_before, 0, self.counts.copy())
                yield replace(cut(sequence, offset, len(sequence)), after=after)
                offset = 0
            if not usable:
                raise nothing_usable(self.rows, self.counts)
            self.counts.epochs += 1


def blocks(
    sequences: Iterable[TokenSequence], size: int, before: ResumePoint | None = None
) -> Iterator[TokenSequence]:
    """Concatenate sequences and cut blocks of exactly ``size`` tokens; a last part is not yielded.

    ``before`` is where the stream that ``sequences`` come from stands now.
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
    chat: ChatTokenizer,
    rows: Rows,
    wanted: int,
    most_rows: int | None = None,
    purpose: str = "reconstruction",
) -> tuple[list[TokenSequence], Counts]:
    """The evaluation dialogues, each a sequence of its own whatever the training method.

    Uses rows, but no more than ``most_rows``, until ``wanted`` are usable; ``counts.rows`` says how many
    that took. ``purpose`` is what they are for (``HELD_OUT``). Raises DataError: none of the rows is usable.
    """
    counts = Counts(epochs=1)
    sequences = list(islice(chat.dialogues(islice(rows.held_out(purpose), most_rows), counts), wanted))
    counts.tokens = sum(len(s) for s in sequences)
    if not sequences:
        raise nothing_usable(rows, counts)
    return sequences, counts


def nothing_usable(rows: Rows, counts: Counts) -> DataError:
    """The error for a source without a usable row; shows the first bad one."""
    if counts.rows == 0:
        return DataError(
            f"{rows.info.name}: no row is left for training once the held-out ones are set aside; "
            "give more rows, or another file as evaluation.source"
        )
    return DataError(
        f"{rows.info.name}: no usable row among {counts.rows} ({counts.reasons()}); the first: "
        f'{counts.first_skipped}; rows are {{"messages": [{{"role": "user", "content": "..."}}]}} or '
        '{"conversations": [{"from": "human", "value": "..."}]}'
    )
