"""Rows of data from the embedded set, local files, a data set of ours, or a streamed Hub dataset: in a reproducible order,
epoch after epoch, with the first rows set aside for evaluation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastzoo.config.recipe import EMBEDDED_DATA, DataSection, TextSection
from fastzoo.core.errors import DataError, NotFoundError
from fastzoo.core.files import sha256_of
from fastzoo.core.paths import path_of
from fastzoo.core.text import one_line
from fastzoo.data.build.manifest import MANIFEST, checked_manifest, is_built, open_built
from fastzoo.data.files import ARROW, COMPRESSED, PLAIN, FilesTable, find_files, is_pattern
from fastzoo.data.hub_rows import HubRows
from fastzoo.data.row import SHARD_NUMBERS, Row, Rows, SourceInfo, generator
from fastzoo.hub.client import commit_of, read_file
from fastzoo.hub.retries import with_retries

__all__ = [
    "SHARD_NUMBERS",
    "HubRows",
    "Row",
    "Rows",
    "SourceInfo",
    "TableRows",
    "held_out_embedded",
    "open_rows",
]


class TableRows:
    """Rows of a table of known size; shuffled as a whole, in a different order every epoch."""

    def __init__(self, table: Any, info: SourceInfo, seed: int, shuffle: bool):
        self._table, self.info, self._seed, self._shuffle = table, info, seed, shuffle
        self._first_order = self._order(range(len(table)), "held-out")

    def _order(self, rows: Any, salt: str) -> Any:
        if not self._shuffle:
            return rows
        return generator(self._seed, salt).permutation(np.asarray(rows, dtype=np.int64))

    def held_out(self, purpose: str = "") -> Iterator[Row]:
        for index in self._first_order:
            yield self._numbered(int(index))

    def training(self, epoch: int, held_out: int, start: int = 0) -> Iterator[Row]:
        for index in self._order(self._first_order[held_out:], f"epoch {epoch}")[start:]:
            yield self._numbered(int(index))

    def _numbered(self, index: int) -> Row:
        file, row = self._table.place(index)
        return file * SHARD_NUMBERS + row, self._table[index]


def open_rows(section: DataSection | TextSection, seed: int) -> Rows:
    """Open the rows that a recipe names. Raises DataError, HubError."""
    if (local := local_files(section)) is not None:
        return _table_rows(*local, section.shuffle, seed)
    path = path_of(section.source, "source")
    if is_built(path):
        from fastzoo.data.built_rows import open_built_rows

        return open_built_rows(open_built(path), section, seed)
    return _hub_rows(section, seed)


def local_files(section: DataSection | TextSection) -> tuple[list[Path], str] | None:
    """The files that a section names, and their kind (``SourceInfo.kind``); None: a data set of ours, or the Hub's.

    Raises DataError: it names neither.
    """
    if section.source == EMBEDDED_DATA:
        from fastzoo import tiny

        return [tiny.DIALOGUES if isinstance(section, DataSection) else tiny.TEXTS], "embedded"
    path = path_of(section.source, "source")
    if os.path.isfile(path) or is_pattern(path):
        return find_files(path), "file"
    if is_built(path):
        return None
    suffix = path.suffix.lower()
    looks_local = suffix in (*PLAIN, *ARROW, *COMPRESSED) or path.is_absolute() or os.path.islink(path)
    if looks_local or os.path.isdir(path):
        find_files(path)  # says what is there instead
    if section.source.count("/") > 1 or section.source.startswith("."):
        raise DataError(f"'{section.source}' is neither a file nor a Hub dataset id (org/name)")
    return None


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

    return _table_rows([tiny.HELDOUT], "embedded", False, seed)


def _table_rows(paths: list[Path], kind: str, shuffle: bool, seed: int) -> TableRows:
    table, info = FilesTable(paths), files_info(paths, kind)
    if len(table) == 0:
        raise DataError(f"{paths[0]}: holds no row")
    return TableRows(table, replace(info, rows=len(table)), seed, shuffle)


def files_info(paths: list[Path], kind: str) -> SourceInfo:
    """Where rows of files come from. Raises DataError: one of them cannot be read."""
    digests = []
    for path in paths:
        try:
            digests.append(sha256_of(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({one_line(error.strerror)})") from None
    revision = digests[0] if len(paths) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    name = (
        paths[0].name if len(paths) == 1 else f"{len(paths)} files from {paths[0].name} to {paths[-1].name}"
    )
    return SourceInfo(f"{kind}:{name}" if kind == "embedded" else name, kind, revision, None)
