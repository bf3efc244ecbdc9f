"""Rows of data from the embedded set, a local JSONL or Parquet file, or a streamed Hub dataset: in a
reproducible order, epoch after epoch, with the first rows set aside for evaluation."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastzoo.config.recipe import EMBEDDED_DATA, DataSection, TextSection
from fastzoo.core.errors import AccessError, DataError, FastzooError, HubError, NotFoundError
from fastzoo.core.files import sha256_of
from fastzoo.core.paths import path_of
from fastzoo.core.text import one_line
from fastzoo.data.build.manifest import MANIFEST, checked_manifest, is_built, open_built
from fastzoo.hub.client import commit_of, read_file, status_of
from fastzoo.hub.retries import TRIES, is_transient, reason, wait, with_retries

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


class _JsonlTable:
    """Lines of a JSONL file by number. The whole file is checked when it is opened.

    Raises DataError: a line is not JSON or not UTF-8; names the line.
    """

    def __init__(self, path: Path) -> None:
        self._offsets = array("q")
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        json.loads(line)
                    except (ValueError, RecursionError) as error:
                        said = f"not valid JSON ({one_line(error, 80)}); each line must be one object"
                        raise DataError(
                            f'{path}, line {number}: {said} such as {{"messages": [...]}}'
                        ) from None
                    self._offsets.append(offset)
                offset += len(line)
        self._file = path.open("rb")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Any:
        self._file.seek(self._offsets[index])
        return json.loads(self._file.readline())


class ParquetTable:
    """Rows of Parquet files by number, memory-mapped. Raises DataError."""

    def __init__(self, *paths: Path) -> None:
        try:
            self._table = _datasets().Dataset.from_parquet([str(path) for path in paths])
        except Exception as error:  # pyarrow and datasets raise many kinds for a broken file
            raise DataError(f"{paths[0]}: not a readable Parquet file ({one_line(error, 120)})") from None

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Any:
        return _without_nulls(self._table[index])


def _without_nulls(value: Any) -> Any:
    """A value of an Arrow table without what is null: there each object has the keys of all, and null says that it
    lacks one. Templates write tools, and what they are called with, key by key."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


class TableRows:
    """Rows of a table of known size; shuffled as a whole, in a different order every epoch."""

    def __init__(self, table: Any, info: SourceInfo, seed: int, shuffle: bool):
        self._table, self.info, self._seed, self._shuffle = table, info, seed, shuffle
        self._first_order = self._order(range(len(table)), "held-out")

    def _order(self, rows: Any, salt: str) -> Any:
        if not self._shuffle:
            return rows
        return _generator(self._seed, salt).permutation(np.asarray(rows, dtype=np.int64))

    def held_out(self, purpose: str = "") -> Iterator[Row]:
        for index in self._first_order:
            yield int(index), self._table[int(index)]

    def training(self, epoch: int, held_out: int, start: int = 0) -> Iterator[Row]:
        for index in self._order(self._first_order[held_out:], f"epoch {epoch}")[start:]:
            yield int(index), self._table[int(index)]


class HubRows:
    """A streamed Hub dataset; its first rows, in the order of its files, are set aside.

    A shuffled epoch reads the files in its own order and cuts their rows into windows of
    ``shuffle_rows``, each of which is held in memory and shuffled, so any place in an epoch can be
    found again. To start there, files before the window are skipped whole if their number of rows is
    known (from an earlier reading, or from a Parquet file's end), and else read through. After a failed
    connection the stream goes on at the same row (``hub.retries``).

    Raises:
        HubError: the dataset or one of its files does not exist, or cannot be reached for too long.
        DataError: no such subset or split; a file or row that cannot be read.
    """

    def __init__(self, section: DataSection | TextSection, seed: int) -> None:
        self._section, self._seed = section, seed
        self._where = f"Hub dataset {section.source}"
        try:
            revision = with_retries(
                lambda: commit_of("dataset", section.source, section.revision), self._where
            )
            self._files, self._data = with_retries(lambda: _stream(section, revision), self._where)
        except HubError:
            raise
        except Exception as error:  # datasets raises many kinds: no such subset, split, format
            if is_transient(error):
                said = f"{reason(error)}); tried {TRIES} times, check the network"
                raise HubError(f"{self._where} cannot be opened ({said}") from None
            said = f"{one_line(error, 200)} (data.subset, data.split choose a part of it)"
            raise DataError(f"{self._where}: {said}") from None
        self.info = SourceInfo(section.source, "hub", revision, None)
        self._shards = self._data.num_shards
        if len(self._files) != self._shards:  # shards are not files, or it is not known which
            self._files = [f"file {shard}" for shard in range(self._shards)]
        self._lengths: dict[int, int] = {}

    def held_out(self, purpose: str = "") -> Iterator[Row]:
        for shard in range(self._shards):
            yield from self._read(shard)

    def training(self, epoch: int, held_out: int, start: int = 0) -> Iterator[Row]:
        if not self._section.shuffle:
            yield from self._from(range(self._shards), held_out, start)
            return
        order = _generator(self._seed, f"epoch {epoch} files").permutation(self._shards)
        window, within = divmod(start, self._section.shuffle_rows)
        rows = self._from(order.tolist(), held_out, window * self._section.shuffle_rows)
        while taken := list(islice(rows, self._section.shuffle_rows)):
            places = _generator(self._seed, f"epoch {epoch} window {window}").permutation(len(taken))
            for place in places[within:]:
                yield taken[place]
            # Freed before the next window is read, so that only one is in memory.
            taken.clear()
            window, within = window + 1, 0

    def _from(self, shards: Iterable[int], held_out: int, start: int) -> Iterator[Row]:
        """Rows of these shards in order, from the ``start``-th one that is not held out."""
        first = self._held_out_of_shards(held_out)
        for shard in shards:
            begin = first.get(shard, 0)
            length = self._length(shard) if start else None
            if length is not None:
                skipped = min(start, length - begin)
                start -= skipped
                begin += skipped
                if begin == length:
                    continue
            for row in self._read(shard, begin):
                if start:
                    start -= 1
                else:
                    yield row

    def _held_out_of_shards(self, held_out: int) -> dict[int, int]:
        """How many rows at the start of each shard are held out."""
        held: dict[int, int] = {}
        for shard in range(self._shards):
            if held_out == 0:
                break
            length = self._length(shard)
            if length is None:
                length = sum(1 for _ in islice(self._read(shard), held_out))
            held[shard] = min(length, held_out)
            held_out -= held[shard]
        return held

    def _length(self, shard: int) -> int | None:
        """Number of rows of a shard, if it is known without reading them."""
        if shard not in self._lengths and self._files[shard].endswith(".parquet"):
            from fastzoo.hub.streaming import parquet_rows

            where = f"{self._where}, {self._name(shard)}"
            try:
                self._lengths[shard] = with_retries(lambda: parquet_rows(self._files[shard]), where)
            except Exception as error:  # any that pyarrow or the Hub's client raise
                raise _final(error, where) from None
        return self._lengths.get(shard)

    def _read(self, shard: int, row: int = 0) -> Iterator[Row]:
        """Rows of a shard, from number ``row`` on."""
        failed = 0
        while True:
            try:
                for value in self._data.shard(self._shards, shard).skip(row):
                    yield shard * SHARD_NUMBERS + row, _without_nulls(value)
                    row, failed = row + 1, 0
                break
            except Exception as error:  # any that a file's format or the Hub's client raise
                failed += 1
                where = f"{self._where}, {self._name(shard)}, from row {row} on"
                if failed == TRIES or not is_transient(error):
                    raise _final(error, where) from None
                wait(error, where, failed)
        self._lengths[shard] = row

    def _name(self, shard: int) -> str:
        """A shard's path in the repository, of hf://datasets/org/name@revision/path."""
        return self._files[shard].partition("@")[2].partition("/")[2] or self._files[shard]


def _final(error: Exception, where: str) -> FastzooError:
    """What to raise for an error that is not tried again, or was too often."""
    from huggingface_hub.errors import HfHubHTTPError

    if is_transient(error):
        advice = "the same command goes on from the last checkpoint when run again"
        return HubError(f"{where}: {reason(error)}, after {TRIES} tries; {advice}")
    if isinstance(error, HfHubHTTPError | FileNotFoundError):
        kind = AccessError if status_of(error) in (401, 403) else NotFoundError
        return kind(f"{where}: no longer available ({reason(error)})")
    return DataError(f"{where}: cannot be read ({one_line(error, 150)})")


def _generator(seed: int, salt: str) -> np.random.Generator:
    """Random numbers that depend on nothing but these two."""
    return np.random.default_rng(list(hashlib.sha256(f"{seed} {salt}".encode()).digest()))


def _stream(section: DataSection | TextSection, revision: str) -> tuple[list[str], Any]:
    """The files of a Hub dataset's split, and the split as a stream of rows."""
    from fastzoo.hub.streaming import use_retrying_files

    datasets = _datasets()
    # What it logs is raised as well. Its own retries would take many minutes.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    for name in ("READ", "READ_SERVER_UNAVAILABLE", "READ_RATE_LIMIT", "OPEN"):
        setattr(datasets.config, f"STREAMING_{name}_RETRY_INTERVAL", 0)
    use_retrying_files()
    builder = datasets.load_dataset_builder(section.source, name=section.subset, revision=revision)
    files = (builder.config.data_files or {}).get(section.split, [])
    return [str(file) for file in files], builder.as_streaming_dataset(split=section.split)


def _datasets() -> Any:
    """The datasets library, silent and without its download counter's request on every load."""
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    import datasets

    datasets.disable_progress_bars()
    return datasets


def open_rows(section: DataSection | TextSection, seed: int) -> Rows:
    """Open the rows that a recipe names. Raises DataError, HubError."""
    if section.source == EMBEDDED_DATA:
        from fastzoo import tiny

        path = tiny.DIALOGUES if isinstance(section, DataSection) else tiny.TEXTS
        return _table_rows(path, "embedded", section.shuffle, seed)
    path = path_of(section.source, "source")
    if os.path.isfile(path):
        return _table_rows(path, "file", section.shuffle, seed)
    if is_built(path):
        from fastzoo.data.built_rows import open_built_rows

        return open_built_rows(open_built(path), section, seed)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".parquet", ".json") or path.is_absolute() or os.path.islink(path):
        what = "is a folder" if os.path.isdir(path) else "is not there"
        raise DataError(f"the file '{path}' {what}; give a .jsonl or .parquet file")
    if section.source.count("/") > 1 or section.source.startswith("."):
        raise DataError(f"'{section.source}' is neither a file nor a Hub dataset id (org/name)")
    return _hub_rows(section, seed)


def _hub_rows(section: DataSection | TextSection, seed: int) -> Rows:
    """A Hub dataset, with its own splits if ``fastzoo data build`` made it and no other subset or split is wanted."""
    where = f"Hub dataset {section.source}"
    revision = with_retries(lambda: commit_of("dataset", section.source, section.revision), where)
    if section.subset is None and section.split == "train":
        try:
            text = with_retries(lambda: read_file("dataset", section.source, MANIFEST, revision), where)
        except NotFoundError:
            pass  # what others made
        else:
            from fastzoo.data.built_rows import open_built_on_hub

            manifest = checked_manifest(text, f"{where}, {MANIFEST}")
            if manifest is not None:
                return open_built_on_hub(manifest, revision, section, seed)
    return HubRows(section.model_copy(update={"revision": revision}), seed)


def held_out_embedded(seed: int) -> Rows:
    """The embedded set's own evaluation dialogues."""
    from fastzoo import tiny

    return _table_rows(tiny.HELDOUT, "embedded", False, seed)


def _table_rows(path: Path, kind: str, shuffle: bool, seed: int) -> TableRows:
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".parquet"):
        raise DataError(f"{path}: files of kind '{suffix}' are not read; .jsonl and .parquet are")
    try:
        table = _JsonlTable(path) if suffix == ".jsonl" else ParquetTable(path)
        sha256 = sha256_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({one_line(error.strerror)})") from None
    if len(table) == 0:
        raise DataError(f"{path}: holds no row")
    name = f"{kind}:{path.name}" if kind == "embedded" else path.name
    return TableRows(table, SourceInfo(name, kind, sha256, len(table)), seed, shuffle)
