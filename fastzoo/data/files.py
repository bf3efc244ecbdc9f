"""Files of rows, of every kind that people have them in: read from the start, or any row by its number."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import os
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from fastzoo.core.errors import DataError
from fastzoo.core.text import one_line

COMPRESSED = (".gz", ".zst")
LINES, TABLES, ARROW = (".jsonl", ".ndjson"), (".csv", ".tsv"), (".parquet", ".arrow")
PLAIN = (*LINES, ".json", *TABLES)
"""Kinds that may be compressed, too."""

KINDS = "JSONL, JSON, CSV or TSV (also .gz or .zst), Parquet or Arrow"

UTF16 = (b"\xff\xfe", b"\xfe\xff")

PATTERN = frozenset("*?[")
LONGEST_CELL = 1 << 28
CHUNK = 1 << 20

EXAMPLE = 'such as {"messages": [...]}'


def kind_of(path: Path) -> tuple[str, str]:
    """The ending that says what a file holds, and that of its compression or nothing.

    Raises DataError: files of this kind are not read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = suffixes[-1] if suffixes and suffixes[-1] in COMPRESSED else ""
    kind = (suffixes[-2] if len(suffixes) > 1 else "") if packed else (suffixes[-1] if suffixes else "")
    if kind not in (PLAIN if packed else (*PLAIN, *ARROW)):
        raise DataError(f"{path}: files of kind '{''.join(suffixes)}' are not read; {KINDS} are")
    return kind, packed


def is_pattern(path: Path) -> bool:
    """Whether a path that is not there stands for those that match it."""
    return bool(PATTERN & set(str(path))) and not os.path.exists(path)


def find_files(path: Path) -> list[Path]:
    """A file, or those that match a pattern such as ``chats/**/*.jsonl.gz``, by name.

    Raises DataError: there is none, or it is something else.
    """
    if is_pattern(path):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not found:
            raise DataError(f"the pattern '{path}' matches no file")
        return found
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "is not there"
        within = "; a pattern such as 'folder/*.jsonl' reads those in it" if what == "is a folder" else ""
        raise DataError(f"the file '{path}' {what}; give a file of {KINDS}{within}")
    return [path]


def read_rows(path: Path, row: int = 0) -> Iterator[Any]:
    """The rows of a file from number ``row`` on, in order; but for one JSON object, it is never in memory whole.

    Raises DataError: names the file and, if it can be told, the line.
    """
    kind, packed = kind_of(path)
    with _told(path, packed):
        if kind == ".parquet":
            yield from islice(_parquet_rows(path), row, None)
        elif kind == ".arrow":
            yield from islice(_arrow_rows(path), row, None)
        else:
            with _opened(path, packed) as file:
                read = {".json": _json_rows, ".csv": _csv_rows, ".tsv": _csv_rows}.get(kind, _jsonl_rows)
                yield from islice(read(path, file), row, None)


@contextmanager
def _told(path: Path, packed: str = "") -> Iterator[None]:
    """What the libraries raise of a broken file, as one line."""
    try:
        yield
    except (DataError, GeneratorExit):
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 ({one_line(error.reason)}); save it as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a whole {packed} file ({one_line(error, 80)})") from None
    except OSError as error:
        what = f"not a whole {packed} file" if packed and error.errno is None else "cannot be read"
        raise DataError(f"{path}: {what} ({one_line(error.strerror or error, 100)})") from None
    except Exception as error:  # pyarrow raises many kinds for a broken file
        raise DataError(f"{path}: cannot be read ({one_line(error, 120)})") from None


@contextmanager
def _opened(path: Path, packed: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked. Raises DataError: it is UTF-16."""
    import pyarrow as pa

    with path.open("rb") as raw:
        if packed == ".gz":
            file: Any = gzip.GzipFile(fileobj=raw)
        elif packed == ".zst":
            file = io.BufferedReader(_Zstd(pa.input_stream(raw, compression="zstd")))
        else:
            file = raw
        start = file.peek(4)[:4]
        if start[:2] in UTF16:
            raise DataError(f"{path}: is UTF-16; save it as UTF-8")
        if start[:3] == b"\xef\xbb\xbf":
            file.read(3)
        yield file


class _Zstd(io.RawIOBase):
    """pyarrow's stream with what Python's buffered reader asks of one."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _jsonl_rows(path: Path, file: IO[bytes]) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield parse_line(path, number, line)


def parse_line(path: Path, number: int, line: bytes) -> Any:
    """The value of a line of JSON. Raises DataError."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        said = f"not valid JSON ({one_line(error, 80)}); each line must be one object"
        raise DataError(f"{path}, line {number}: {said} {EXAMPLE}") from None


def _json_rows(path: Path, file: IO[bytes]) -> Iterator[Any]:
    """Rows of an array; of an object with one list of them; or of lines, which such files often hold."""
    values = _Values(path, io.TextIOWrapper(file, encoding="utf-8", newline=""))
    first = values.peek()
    if first == "[":
        yield from values.items()
    elif first:
        yield from _object_rows(path, values.rest())


class _Values:
    """The items of a JSON array one by one; only the piece at hand is in memory."""

    def __init__(self, path: Path, text: IO[str]) -> None:
        self._path, self._text = path, text
        self._held, self._at, self._count = "", 0, 0

    def rest(self) -> str:
        return self._held[self._at :] + self._text.read()

    def peek(self) -> str:
        """The next character that is no white space; nothing at the end."""
        while True:
            while self._at < len(self._held):
                if self._held[self._at] not in " \t\r\n":
                    return self._held[self._at]
                self._at += 1
            if not self._more(CHUNK):
                return ""

    def _more(self, size: int) -> bool:
        more = self._text.read(size)
        self._held, self._at = self._held[self._at :] + more, 0
        return bool(more)

    def items(self) -> Iterator[Any]:
        """Raises DataError."""
        self._at += 1
        while self.peek() != "]":
            if self._count:
                if self.peek() != ",":
                    raise self._wrong("a comma or ] is missing")
                self._at += 1
                self.peek()
            yield self._value()
            self._count += 1

    def _value(self) -> Any:
        size = CHUNK
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._held, self._at)
            except RecursionError:
                raise self._wrong("nested too deeply") from None
            except json.JSONDecodeError as error:
                # Cut by the end of the piece at hand, or wrong?
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._held) - 16
                if not cut or not self._more(size):
                    raise self._wrong(error.msg) from None
            else:
                # More of a number may follow.
                whole = not isinstance(value, int | float) or self._held[end:].lstrip()[:1] in (",", "]")
                if (whole and end < len(self._held)) or not self._more(size):
                    self._at = end
                    return value
            size *= 2

    def _wrong(self, why: str) -> DataError:
        return DataError(f"{self._path}, item {self._count}: not valid JSON ({one_line(why, 80)})")


def _object_rows(path: Path, text: str) -> Iterator[Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
        try:
            json.loads(lines[0][1])
        except (ValueError, RecursionError):
            raise DataError(f"{path}: not valid JSON ({one_line(error, 80)})") from None
        for number, line in lines:
            yield parse_line(path, number, line.encode())
        return
    lists = [
        (key, items)
        for key, items in value.items()
        if isinstance(items, list) and all(isinstance(item, dict | list) for item in items)
    ]
    if any(key in value for key in ("messages", "conversations", "conversation")):
        yield value  # one row
    elif len(lists) == 1:
        yield from lists[0][1]
    else:
        raise DataError(
            f"{path}: an object with {len(lists)} lists of rows; an array of rows, or one list, is read"
        )


def _csv_rows(path: Path, file: IO[bytes]) -> Iterator[Any]:
    """Rows by the header's names; an empty cell is null."""
    csv.field_size_limit(LONGEST_CELL)
    tabs = kind_of(path)[0] == ".tsv"
    reader = csv.reader(
        io.TextIOWrapper(file, encoding="utf-8", newline=""), delimiter="\t" if tabs else ",", strict=True
    )
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) < len(header) or not all(name.strip() for name in header):
            raise DataError(f"{path}, line 1: the first line must name each column once")
        for cells in reader:
            if cells and len(cells) != len(header):
                said = f"{len(cells)} cells, but the first line names {len(header)} columns"
                raise DataError(
                    f"{path}, line {reader.line_num}: {said}; cells with commas or line ends need quotes"
                )
            if cells:
                yield {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({one_line(error, 80)})") from None


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from map(without_nulls, batch.to_pylist())


def _arrow_rows(path: Path) -> Iterator[Any]:
    """Of the file format and of the stream, which ``datasets`` writes."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file:
            reader = pa.ipc.open_file(file)
            batches: Iterable[Any] = (reader.get_batch(n) for n in range(reader.num_record_batches))
        else:
            batches = pa.ipc.open_stream(file)
        for batch in batches:
            for start in range(0, batch.num_rows, 256):
                yield from map(without_nulls, batch.slice(start, 256).to_pylist())


def without_nulls(value: Any) -> Any:
    """A value of an Arrow table without what is null: there each object has the keys of all, and null says that it
    lacks one. Templates write tools, and what they are called with, key by key."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


class JsonlTable:
    """Lines of JSON by number. The whole file is checked when it is opened.

    Raises DataError: a line is not JSON or not UTF-8; names the line.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._file, self._offsets = file, array("q")
        offset = 0
        for number, line in enumerate(file, start=1):
            if line.strip():
                parse_line(path, number, line)
                self._offsets.append(offset)
            offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Any:
        self._file.seek(self._offsets[index])
        return json.loads(self._file.readline())


class ParquetTable:
    """Rows of a Parquet file by number, memory-mapped. Raises DataError."""

    def __init__(self, path: Path) -> None:
        from fastzoo.data.hub_rows import datasets_library

        try:
            self._table = datasets_library().Dataset.from_parquet(str(path))
        except Exception as error:  # pyarrow and datasets raise many kinds for a broken file
            raise DataError(f"{path}: not a readable Parquet file ({one_line(error, 120)})") from None

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Any:
        return without_nulls(self._table[index])


def open_table(path: Path) -> JsonlTable | ParquetTable:
    """The rows of a file by number; what has no numbers is first written as lines, into a file that has no name.

    Raises DataError.
    """
    kind, packed = kind_of(path)
    with _told(path, packed):
        if kind == ".parquet":
            return ParquetTable(path)
        if kind in LINES and not packed and not _has_bom(path):
            return JsonlTable(path, path.open("rb"))
        lines = tempfile.TemporaryFile(prefix="fastzoo-rows-")  # noqa: SIM115 (it lives as long as the table)
        for value in read_rows(path):
            lines.write(json.dumps(value, default=str).encode() + b"\n")
        lines.seek(0)
        return JsonlTable(path, lines)


def _has_bom(path: Path) -> bool:
    """Whether a file begins with a byte order mark, which is no part of its first line."""
    with path.open("rb") as file:
        start = file.read(3)
    return start == b"\xef\xbb\xbf" or start[:2] in UTF16


class FilesTable:
    """The rows of several files by number, one file after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._tables = [open_table(path) for path in paths]
        self._starts = [0]
        for table in self._tables:
            self._starts.append(self._starts[-1] + len(table))

    def __len__(self) -> int:
        return self._starts[-1]

    def place(self, index: int) -> tuple[int, int]:
        """The file of a row, and its number there."""
        from bisect import bisect_right

        file = bisect_right(self._starts, index) - 1
        return file, index - self._starts[file]

    def __getitem__(self, index: int) -> Any:
        file, row = self.place(index)
        return self._tables[file][row]
