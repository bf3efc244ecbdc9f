"""Token sequences, and what was counted while they were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from reprlib import Repr
from typing import Any

import numpy as np

from fastzoo.core.text import one_line
from fastzoo.data.rows import SourceInfo

MOST_REASONS = 50
"""Reasons that are counted separately; later ones are counted under their first words."""

_SHORT = Repr()  # never walks through a whole row, which may be huge or deeply nested
_SHORT.maxstring = _SHORT.maxother = 100


def shortened(row: Any) -> str:
    """A row in one line, for a message."""
    return one_line(_SHORT.repr(row), 160)


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
    after: ResumePoint | None = None
    """Where the stream goes on after this sequence; None outside a ``TokenStream``."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Counts:
    """What became of the rows that a stream has read so far, over all its epochs."""

    rows: int = 0
    used: int = 0
    truncated: int = 0
    special_text: int = 0
    """Rows with the text of a special token in their content, used or not."""
    tokens: int = 0
    epochs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    unshown: Counter[str] = field(default_factory=Counter)
    """Rows with a field, such as ``tool_calls``, that the chat template does not show."""
    first_skipped: str | None = None

    def skip(self, reason: str, number: int, row: Any, detail: str = "") -> None:
        if reason not in self.skipped and len(self.skipped) >= MOST_REASONS:
            reason = reason.partition(":")[0]
        self.skipped[reason] += 1
        if self.first_skipped is None:
            why = f"{reason}: {detail}" if detail else reason
            self.first_skipped = f"row {number} ({why}): {shortened(row)}"

    def reasons(self) -> str:
        """Why rows were skipped, the most common reason first."""
        return ", ".join(f"{reason}: {n}" for reason, n in self.skipped.most_common())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without the text of any row."""
        values = asdict(self)
        del values["first_skipped"]
        return values | {name: dict(sorted(getattr(self, name).items())) for name in ("skipped", "unshown")}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Counts:
        return cls(**{**values, **{name: Counter(values.get(name)) for name in ("skipped", "unshown")}})

    def copy(self, **changes: Any) -> Counts:
        return replace(self, **{"skipped": self.skipped.copy(), "unshown": self.unshown.copy(), **changes})


@dataclass(frozen=True)
class ResumePoint:
    """A place in a ``TokenStream``: another stream that starts there gives exactly the same rest."""

    epoch: int = 0
    row: int = 0
    """How many rows of the epoch, in its order, are behind it."""
    offset: int = 0
    """How many tokens of the next usable row were already given (in blocks)."""
    counts: Counts = field(default_factory=Counts)
    """The counts up to here; ``counts.tokens`` is how many tokens were given."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "counts": self.counts.as_dict()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ResumePoint:
        return cls(**{**values, "counts": Counts.of(values["counts"])})


TOKEN_COLUMNS = ("ids", "position", "dialogue", "special")


def column(sequences: Iterable[TokenSequence], name: str) -> np.ndarray:
    """(T,) one of ``TOKEN_COLUMNS`` of sequences laid end to end."""
    return np.concatenate([getattr(s, name) for s in sequences])


def concatenate(sequences: list[TokenSequence]) -> TokenSequence:
    ids, position, dialogue, special = (column(sequences, name) for name in TOKEN_COLUMNS)
    return TokenSequence(ids, position, dialogue, special)


def cut(sequence: TokenSequence, start: int, stop: int) -> TokenSequence:
    return TokenSequence(*(getattr(sequence, name)[start:stop] for name in TOKEN_COLUMNS))


def described(info: SourceInfo, counts: Counts) -> dict[str, Any]:
    """A source and what became of its rows, as plain data for records."""
    source: dict[str, Any] = {
        "name": info.name,
        "kind": info.kind,
        "revision": info.revision,
        "source_rows": info.rows,
    }
    if info.data_set is not None:
        source |= {"data_set": info.data_set, "deduplication": info.deduplication}
    return source | counts.as_dict()
