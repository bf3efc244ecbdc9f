"""Sources of rows, part by part and in order: for whoever reads all of a source once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

from fastzoo.config.recipe import DataSection
from fastzoo.core.errors import DataError
from fastzoo.data.files import read_rows
from fastzoo.data.hub_rows import HubRows
from fastzoo.data.row import SHARD_NUMBERS, Row, SourceInfo
from fastzoo.data.rows import files_info, local_files


class Source(Protocol):
    parts: list[str]
    """Names of its files or shards."""

    @property
    def info(self) -> SourceInfo: ...

    def read(self, part: int, row: int = 0) -> Iterator[Row]:
        """The rows of a part, from its row ``row`` on, numbered as in training. Raises DataError, HubError."""
        ...


class FileSource:
    """Files, one after the other."""

    def __init__(self, paths: list[Path], kind: str) -> None:
        self._paths, self._kind = paths, kind
        self.parts = [path.name for path in paths]

    @cached_property
    def info(self) -> SourceInfo:
        """Of all files, which are read for it; a process that reads one part does not ask."""
        return files_info(self._paths, self._kind)

    def read(self, part: int, row: int = 0) -> Iterator[Row]:
        for number, value in enumerate(read_rows(self._paths[part], row), start=row):
            yield part * SHARD_NUMBERS + number, value


class HubSource:
    """A dataset of the Hub, shard after shard."""

    def __init__(self, section: DataSection) -> None:
        self._rows = HubRows(section, 0)
        self.info = self._rows.info
        self.parts = [self._rows.name(shard) for shard in range(self._rows.shards)]

    def read(self, part: int, row: int = 0) -> Iterator[Row]:
        return self._rows.read(part, row)


def open_source(section: DataSection) -> Source:
    """Raises DataError: there is no such file; HubError."""
    local = local_files(section)
    if local is not None:
        return FileSource(*local)
    if "/" not in section.source:
        raise DataError(f"'{section.source}' is neither a file nor a Hub dataset id (org/name)")
    return HubSource(section)
