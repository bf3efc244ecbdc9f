"""Sources of rows, part by part and in order: for whoever reads all of a source once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fastzoo.config.recipe import DataSection
from fastzoo.data.rows import HubRows, Row, Rows, SourceInfo, open_rows


class Source(Protocol):
    info: SourceInfo
    parts: list[str]
    """Names of its files or shards."""

    def read(self, part: int, row: int = 0) -> Iterator[Row]:
        """The rows of a part, from its row ``row`` on. Raises DataError, HubError."""
        ...


class _TableSource:
    def __init__(self, rows: Rows) -> None:
        self.info, self.parts, self._rows = rows.info, [rows.info.name], rows

    def read(self, part: int, row: int = 0) -> Iterator[Row]:
        from itertools import islice

        return islice(self._rows.held_out(), row, None)


class _HubSource:
    def __init__(self, rows: HubRows) -> None:
        self.info, self._rows = rows.info, rows
        self.parts = [rows._name(n) for n in range(rows._shards)]

    def read(self, part: int, row: int = 0) -> Iterator[Row]:
        return self._rows._read(part, row)


def open_source(section: DataSection) -> Source:
    rows = open_rows(section, 0)
    return _HubSource(rows) if isinstance(rows, HubRows) else _TableSource(rows)
