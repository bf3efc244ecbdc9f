"""A source of rows as a model will see it, as plain data: counts, lengths, whose tokens they are, and single rows.

What ``fastzoo data show`` prints.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from reprlib import Repr
from statistics import fmean, median
from typing import Any

from fastzoo.core.errors import InputError
from fastzoo.data.dialogues import read_dialogue
from fastzoo.data.rows import SHARD_NUMBERS, Row, Rows
from fastzoo.data.sequences import Counts, TokenSequence, cut, described, shortened
from fastzoo.data.token_roles import TokenRoles
from fastzoo.data.tokenizer import BATCH_ROWS, ChatTokenizer

MOST_TOKENS = 1 << 16
"""Longer dialogues count as this long: all of a text of millions of characters would take GB to tokenise."""

MOST_JOINED = 8
"""Tokens that are shown together where each alone is a part of a character."""

_LONG = Repr()  # never walks through a whole row, which may be huge or deeply nested
_LONG.maxlevel, _LONG.maxdict, _LONG.maxlist, _LONG.maxstring, _LONG.maxother = 6, 20, 20, 500, 500


@dataclass
class _Counts(Counts):
    """Counts that remember the first row of each reason."""

    first: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, number: int, row: Any, detail: str = "") -> None:
        known = set(self.skipped)
        super().skip(reason, number, row, detail)
        for new in set(self.skipped) - known:
            self.first[new] = f"row {number}{f' ({detail})' if detail else ''}: {shortened(row)}"


class Shown:
    """A source, and how a model sees its rows.

    Args:
        rows: in the order of the source.
        chat: with ``max_tokens`` of ``MOST_TOKENS``, so that lengths are known.
        limit: tokens of a row that go through the model, the others are cut off; None: all, as blocks.
        column: where rows of plain text have it; None: the rows are dialogues.
    """

    def __init__(self, rows: Rows, chat: ChatTokenizer, limit: int | None, column: str | None = None) -> None:
        self._rows, self._chat, self._limit, self._column = rows, chat, limit or MOST_TOKENS, column
        self._roles = TokenRoles(chat)

    @property
    def known_rows(self) -> int | None:
        """How many rows the source has; None if that is not known."""
        return self._rows.info.rows

    def survey(
        self, count: int, shown: int, cut_at: int, advance: Callable[[int], None] = lambda n: None
    ) -> dict[str, Any]:
        """What the first ``count`` rows are, and the first ``shown`` usable ones with up to ``cut_at`` tokens each.

        ``advance`` is told how many more rows were read. Raises DataError, HubError: a row cannot be read.
        """
        counts, lengths = _Counts(epochs=1), []
        turns: Counter[int] = Counter()
        turn_roles: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        special, seen = 0, 0
        found: list[dict[str, Any]] = []
        for number, row, sequence in self._sequences(islice(self._rows.training(0, 0), count), counts):
            lengths.append(len(sequence))
            said = self._turn_roles(row)
            turns[len(said)] += 1
            turn_roles.update(said)
            within = cut(sequence, 0, self._limit)
            roles = self._token_roles(row, within)
            tokens.update(
                role for role, is_special in zip(roles, within.special, strict=True) if not is_special
            )
            special += int(within.special.sum())
            if len(found) < shown:
                found.append(self._described(number, row, sequence, roles, cut_at))
            advance(counts.rows - seen)
            seen = counts.rows
        advance(counts.rows - seen)
        counts.truncated = sum(length > self._limit for length in lengths)
        counts.tokens = sum(min(length, self._limit) for length in lengths)
        told = described(self._rows.info, counts)
        del told["epochs"]
        return told | {
            "first_skipped": told.pop("first"),
            "turns": dict(sorted(turns.items())) if self._column is None else {},
            "turn_roles": dict(turn_roles.most_common()),
            "lengths": lengths_report(lengths),
            "token_shares": {"special": special, **dict(tokens.most_common())},
            "shown": found,
        }

    def row(self, number: int) -> dict[str, Any]:
        """One row, all of it that goes through the model; with ``unusable`` and ``raw`` if none does.

        Raises InputError: there is no row of this number; DataError, HubError: it cannot be read.
        """
        value, counts, named = self._row(number), Counts(), {"name": self._rows.info.name}
        for _, row, sequence in self._sequences([(number, value)], counts):
            roles = self._token_roles(row, cut(sequence, 0, self._limit))
            return named | self._described(number, row, sequence, roles, self._limit)
        (reason,) = counts.skipped
        return named | {"row": number, "unusable": reason, "raw": _LONG.repr(value)}

    def _row(self, number: int) -> Any:
        # A number is the place in a file, so at least as many rows stand before it in the source.
        for found, value in self._rows.training(0, 0, number % SHARD_NUMBERS):
            if found == number:
                return value
            if found > number:
                break
        total = self._rows.info.rows
        known = f"; it has {total} rows, counted from 0" if total else ""
        raise InputError(f"--row: {self._rows.info.name} has no row {number}{known}")

    def _sequences(self, rows: Iterable[Row], counts: Counts) -> Iterator[tuple[int, Any, TokenSequence]]:
        """Number, value and tokens of the usable rows; of no more rows than are tokenised at once is anything held."""
        held: deque[Row] = deque(maxlen=BATCH_ROWS)

        def watched() -> Iterator[Row]:
            for row in rows:
                held.append(row)
                yield row

        if self._column is None:
            sequences = self._chat.dialogues(watched(), counts)
        else:
            sequences = (cut(s, 0, MOST_TOKENS) for s in self._chat.texts(watched(), self._column, counts))
        for sequence in sequences:
            number, row = held.popleft()
            while number != int(sequence.dialogue[0]):
                number, row = held.popleft()
            yield number, row, sequence

    def _turn_roles(self, row: Any) -> list[str]:
        if self._column is not None:
            return []
        dialogue = read_dialogue(row, self._chat.data.column, self._chat.template.reads)
        return [str(turn["role"]) for turn in dialogue.turns]

    def _token_roles(self, row: Any, sequence: TokenSequence) -> list[str]:
        return ["text"] * len(sequence) if self._column is not None else self._roles.of(row, sequence)

    def _described(
        self, number: int, row: Any, sequence: TokenSequence, roles: Sequence[str], cut_at: int
    ) -> dict[str, Any]:
        """A row with its tokens up to ``cut_at``."""
        rendered = None if self._column is not None else self._chat.render(row)
        within = cut(sequence, 0, min(self._limit, cut_at))
        return {
            "row": number,
            "tokens": len(sequence),
            "longer": len(sequence) == MOST_TOKENS,
            "within": min(len(sequence), self._limit),
            "turns": self._turn_roles(row),
            "special_text": bool(rendered and rendered.special_text),
            "unshown": sorted(rendered.unshown) if rendered else [],
            "pieces": list(self._pieces(within, roles)),
        }

    def _pieces(self, sequence: TokenSequence, roles: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Tokens with their text; those that are parts of one character together."""
        texts, ids, place = self._roles.texts, sequence.ids.tolist(), 0
        while place < len(ids):
            length, text = 1, texts(ids[place])
            if not sequence.special[place] and "\ufffd" in texts.decode([ids[place]]):
                for more in range(2, MOST_JOINED + 1):
                    together = texts.decode(ids[place : place + more])
                    if "\ufffd" not in together and not sequence.special[place : place + more].any():
                        length, text = more, together
                        break
            yield {
                "ids": ids[place : place + length],
                "text": text,
                "role": roles[place],
                "special": bool(sequence.special[place]),
            }
            place += length


def lengths_report(lengths: Sequence[int]) -> dict[str, Any] | None:
    """Of tokens per dialogue, each at most ``MOST_TOKENS``: least, median, mean, most, and how many in each bin from one
    power of two to the next; None without any."""
    if not lengths:
        return None
    powers = Counter(length.bit_length() - 1 for length in lengths)
    bins = [
        {"from": 1 << power, "to": (1 << power + 1) - 1, "dialogues": powers[power]}
        for power in range(min(powers), max(powers) + 1)
    ]
    summary = {"least": min(lengths), "median": median(lengths), "mean": fmean(lengths), "most": max(lengths)}
    return {**summary, "counted_to": MOST_TOKENS, "bins": bins}
