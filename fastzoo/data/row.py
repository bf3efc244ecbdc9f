"""What a row is, where rows come from, and in which order they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Row = tuple[int, Any]
"""Row number (from 0) and value. The number is the row's place in its file, the same in all epochs; in
a streamed dataset, SHARD_NUMBERS times the number of the file is added to it."""

SHARD_NUMBERS = 10**9
"""Row 3000000017 of a streamed dataset is row 17 of its file 3."""


@dataclass(frozen=True)
class SourceInfo:
    """Where rows come from, for the record; never an absolute path."""

    name: str
    kind: str
    """embedded, file, hub, or built: a folder that ``fastzoo data build`` wrote."""
    revision: str | None
    """sha256 of a file, commit of a Hub dataset, hash of what was built."""
    rows: int | None
    """None if it is not known (streamed)."""
    data_set: str | None = None
    """The hash of a data set that ``fastzoo data build`` made."""
    deduplication: dict[str, Any] | None = None
    """How that was deduplicated."""


class Rows(Protocol):
    info: SourceInfo

    def held_out(self, purpose: str = "reconstruction") -> Iterator[Row]:
        """Rows to set aside for evaluation: take as many as wanted from the start. A set with a split for each
        ``purpose`` (``HELD_OUT``) gives that."""
        ...

    def training(self, epoch: int, held_out: int, start: int = 0) -> Iterator[Row]:
        """All rows but the first ``held_out`` of ``held_out()``, in the order of ``epoch``, from the
        ``start``-th on, which is faster than reading past them."""
        ...


def generator(seed: int, salt: str) -> np.random.Generator:
    """Random numbers that depend on nothing but these two."""
    return np.random.default_rng(list(hashlib.sha256(f"{seed} {salt}".encode()).digest()))
