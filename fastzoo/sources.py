"""Rows of data: an embedded set, a local JSONL or Parquet file, or a streamed Hub dataset.

A source can be iterated many times in a reproducible order, and sets rows aside for evaluation.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from fastzoo.config import EMBEDDED_DATA, DataSection, TextSection
from fastzoo.errors import DataError, one_line
from fastzoo.files import sha256_of

Row = tuple[int, Any]
"""Row number (from 0) and value: the place in a file; for a streamed dataset, the order of arrival."""


@dataclass(frozen=True)
class SourceInfo:
    """What a source is, for the record: never an absolute path."""

    name: str
    kind: str
    """embedded, file or hub."""
    revision: str | None
    """sha256 of a file, commit of a Hub dataset."""
    rows: int | None
    """None where it is not known (streamed)."""


class Rows(Protocol):
    info: SourceInfo

    def held_out(self) -> Iterator[Row]:
        """Rows to set aside for evaluation: as many as wanted, from the start of these."""
        ...

    def training(self, epoch: int, held_out: int, start: int = 0) -> Iterator[Row]:
        """All rows but the first ``held_out`` of ``held_out()``, in the order of ``epoch``.

        Args:
            start: how many of them, in this order, are left out.
        """
        ...


class JsonlTable:
    """Lines of a JSONL file by number. The whole file is checked when it is opened.

    Raises:
        DataError: a line is not JSON or not UTF-8 (names it), or there is no line at all.
    """

    def __init__(self, path: Path) -> None:
        self._offsets = array("q")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if line.strip():
                    try:
                        json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise DataError(
                            f"{path}, line {number}: not valid JSON ({one_line(error, 80)}); each line "
                            'must be one object such as {"messages": [...]}'
                        ) from None
                    self._offsets.append(offset)
                offset += len(line)
        self.sha256 = digest.hexdigest()
        self._file = path.open("rb")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Any:
        self._file.seek(self._offsets[index])
        return json.loads(self._file.readline())


class ParquetTable:
    """Rows of a Parquet file by number, memory-mapped by ``datasets``."""

    def __init__(self, path: Path) -> None:
        try:
            self._data = _datasets().Dataset.from_parquet(str(path))
        except Exception as error:  # pyarrow and datasets raise many kinds for a broken file
            raise DataError(
                f"{path}: not a readable Parquet file ({one_line(error, 120)})"
            ) from None
        self.sha256 = sha256_of(path)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        return self._data[index]


class TableRows:
    """Rows of a table of known size; shuffled whole, with an order of its own for every epoch."""

    def __init__(
        self, table: JsonlTable | ParquetTable, info: SourceInfo, seed: int, shuffle: bool
    ):
        self._table, self.info, self._seed, self._shuffle = table, info, seed, shuffle
        self._first_order = self._order(range(len(table)), "held-out")

    def _order(self, rows: Any, salt: str) -> Any:
        if not self._shuffle:
            return rows
        import numpy as np

        key = hashlib.sha256(f"{self._seed} {salt}".encode()).digest()
        return np.random.default_rng(list(key)).permutation(np.asarray(rows, dtype=np.int64))

    def held_out(self) -> Iterator[Row]:
        for index in self._first_order:
            yield int(index), self._table[int(index)]

    def training(self, epoch: int, held_out: int, start: int = 0) -> Iterator[Row]:
        for index in self._order(self._first_order[held_out:], f"epoch {epoch}")[start:]:
            yield int(index), self._table[int(index)]


class HubRows:
    """A Hub dataset, streamed; the first rows are set aside, the rest shuffled within a window."""

    def __init__(self, section: DataSection | TextSection, seed: int) -> None:
        from fastzoo.hub import resolve_dataset

        revision = resolve_dataset(section.source, section.revision)
        where = f"Hub dataset {section.source}"
        try:
            self._data = _datasets().load_dataset(
                section.source,
                name=section.subset,
                split=section.split,
                revision=revision,
                streaming=True,
            )
        except Exception as error:  # datasets raises many kinds: no such subset, split, format
            raise DataError(
                f"{where}: {one_line(error, 200)} (data.subset, data.split choose a part of it)"
            ) from None
        self.info = SourceInfo(section.source, "hub", revision, None)
        self._section, self._seed = section, seed

    def held_out(self) -> Iterator[Row]:
        yield from enumerate(self._data)

    def training(self, epoch: int, held_out: int, start: int = 0) -> Iterator[Row]:
        rest = self._data.skip(held_out)
        if self._section.shuffle:
            rest = rest.shuffle(seed=self._seed, buffer_size=self._section.shuffle_rows)
            rest.set_epoch(epoch)
        yield from islice(enumerate(rest, start=held_out), start, None)


def _datasets() -> Any:
    """The datasets library, quiet and without its request to another host on every load."""
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    import datasets

    datasets.disable_progress_bars()
    return datasets


def open_rows(section: DataSection | TextSection, seed: int) -> Rows:
    """Open the source that a recipe names.

    Raises:
        DataError: missing file, unknown kind of file, broken or empty file.
        HubError: the dataset cannot be reached or is not there.
    """
    if section.source == EMBEDDED_DATA:
        from fastzoo import tiny

        path = tiny.DIALOGUES if isinstance(section, DataSection) else tiny.TEXTS
        return _table_rows(path, "embedded", section.shuffle, seed)
    path = Path(section.source).expanduser()
    if path.is_file():
        return _table_rows(path, "file", section.shuffle, seed)
    if path.suffix.lower() in (".jsonl", ".parquet", ".json") or path.is_absolute():
        what = "is a folder" if path.is_dir() else "is not there"
        raise DataError(f"the file '{path}' {what}; give a .jsonl or .parquet file")
    if section.source.count("/") > 1 or section.source.startswith("."):
        raise DataError(f"'{section.source}' is neither a file nor a Hub dataset id (org/name)")
    return HubRows(section, seed)


def held_out_embedded(seed: int) -> Rows:
    """The dialogues kept apart from the embedded set when it was made."""
    from fastzoo import tiny

    return _table_rows(tiny.HELDOUT, "embedded", False, seed)


def _table_rows(path: Path, kind: str, shuffle: bool, seed: int) -> TableRows:
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".parquet"):
        raise DataError(f"{path}: files of kind '{suffix}' are not read; .jsonl and .parquet are")
    try:
        table = JsonlTable(path) if suffix == ".jsonl" else ParquetTable(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({one_line(error.strerror)})") from None
    if len(table) == 0:
        raise DataError(f"{path}: holds no row")
    name = f"{kind}:{path.name}" if kind == "embedded" else path.name
    return TableRows(table, SourceInfo(name, kind, table.sha256, len(table)), seed, shuffle)
