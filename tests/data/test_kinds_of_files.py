"""Files of every kind: the same rows, streamed or by number, and one line for each that is broken."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastzoo.config.recipe import DataSection
from fastzoo.core.errors import DataError
from fastzoo.data.files import read_rows
from fastzoo.data.rows import SHARD_NUMBERS, open_rows
from fastzoo.data.sources import open_source

ROWS = [{"prompt": f'Say "{n}", twice\n{"ü" * n}', "completion": f"{n},{n}"} for n in range(1, 12)]


def lines(rows: list[Any] = ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "completion"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def arrow(stream: bool) -> bytes:
    sink, rows = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, rows.schema) as out:
        for batch in rows.to_batches(max_chunksize=4):
            out.write_batch(batch)
    return sink.getvalue()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=3)
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


KINDS = {
    "a.jsonl": lines(),
    "a.ndjson": lines(),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(),
    "a.json": json.dumps(ROWS, indent=2).encode(),
    "object.json": json.dumps({"version": 1, "tags": [], "data": ROWS}).replace('"tags": [], ', "").encode(),
    "lines.json": lines(),
    "a.csv": table(),
    "bom.csv": b"\xef\xbb\xbf" + table(),
    "a.tsv": table("\t"),
    "a.parquet": parquet(),
    "a.arrow": arrow(stream=False),
    "stream.arrow": arrow(stream=True),
    "a.jsonl.gz": gzip.compress(lines()),
    "two.jsonl.gz": gzip.compress(lines(ROWS[:5])) + gzip.compress(lines(ROWS[5:])),
    "a.jsonl.zst": zstd(lines()),
    "two.jsonl.zst": zstd(lines(ROWS[:5])) + zstd(lines(ROWS[5:])),
    "a.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "a.csv.gz": gzip.compress(table()),
    "a.tsv.zst": zstd(table("\t")),
    "A.JSONL.GZ": gzip.compress(lines()),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name])
    assert list(read_rows(path)) == ROWS
    assert list(read_rows(path, 4)) == ROWS[4:]
    section = DataSection(source=str(path), shuffle=False)
    rows = open_rows(section, 0)
    assert list(rows.held_out()) == list(enumerate(ROWS)) and rows.info.rows == len(ROWS)
    assert list(rows.training(0, 2, 3)) == list(enumerate(ROWS))[5:]
    source = open_source(section)
    assert source.parts == [name] and list(source.read(0, 2)) == list(enumerate(ROWS))[2:]


def test_a_pattern_is_all_its_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.jsonl").write_bytes(lines(ROWS[4:]))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[:4])))
    (tmp_path / "sub" / "c.jsonl").write_bytes(lines(ROWS[:1]))
    section = DataSection(source=str(tmp_path / "*.jsonl*"), shuffle=False)
    rows = list(open_rows(section, 0).held_out())
    assert [row for _, row in rows] == ROWS
    assert [number for number, _ in rows] == [*range(4), *(SHARD_NUMBERS + n for n in range(7))]
    source = open_source(section)
    assert source.parts == ["a.jsonl.gz", "b.jsonl"]
    assert [row for part in (0, 1) for row in source.read(part)] == rows
    deep = open_source(DataSection(source=str(tmp_path / "**" / "*.jsonl")))
    assert deep.parts == ["b.jsonl", "c.jsonl"]
    # Shuffled, in the order of the same rows in one file.
    (tmp_path / "whole.jsonl").write_bytes(lines())
    one, several = (
        [row for _, row in open_rows(DataSection(source=str(tmp_path / name)), 3).training(1, 2)]
        for name in ("whole.jsonl", "[ab].jsonl*")
    )
    assert one == several != ROWS[2:]


def test_an_array_larger_than_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastzoo.data.files.CHUNK", 7)
    path = tmp_path / "a.json"
    for values in (ROWS, [1, 22, -3.5e10, True, None, "a,]", [], {}], []):
        for text in (json.dumps(values), json.dumps(values, indent=1)):
            path.write_text(text)
            assert list(read_rows(path)) == values


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
        ("a.jsonl", b'{"a": "\xff"}\n', "not valid JSON"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a.json", b'[{"a": 1}, {"a": 2}', "item 2: not valid JSON"),
        ("a.json", b'[{"a": 1} {"a": 2}]', "item 1: not valid JSON (a comma or ] is missing)"),
        ("a.json", b'[{"a": 1}, {"a": tru }, ' + b" " * 99, "item 1: not valid JSON"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.json", b'{"a": [{}], "b": [{}]}', "an object with 2 lists of rows"),
        ("a.json", b"{", "not valid JSON"),
        ("a.json", b"\xff\xfe[\x00", "is UTF-16"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3: 3 cells, but the first line names 2 columns"),
        ("a.csv", b'a,b\n1,"2\n', "not valid CSV"),
        ("a.csv", b"a,a\n1,2\n", "line 1: the first line must name each column once"),
        ("a.csv", b"a,\n1,2\n", "line 1: the first line must name each column once"),
        ("a.csv", b"a,b\n\xff,2\n", "not valid UTF-8"),
        ("a.jsonl.gz", gzip.compress(lines())[:-20], "not a whole .gz file"),
        ("a.jsonl.gz", b"plain", "not a whole .gz file"),
        ("a.jsonl.zst", zstd(lines())[:-20], "a.jsonl.zst"),
        ("a.jsonl.zst", b"plain text", "a.jsonl.zst"),
        ("a.parquet", b"PAR1", "a.parquet"),
        ("a.arrow", b"ARROW1", "a.arrow"),
        ("a.arrow", b"", "a.arrow"),
        ("a.parquet.gz", b"", "files of kind '.parquet.gz' are not read"),
        ("a.xlsx", b"", "files of kind '.xlsx' are not read"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (
        lambda: list(read_rows(path)),
        lambda: list(open_rows(DataSection(source=str(path)), 0).held_out()),
    ):
        with pytest.raises(DataError) as caught:
            read()
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/*.jsonl", "matches no file"),
        ("gone.csv.gz", "is not there; give a file of JSONL"),
        ("", "is a folder; give a file of JSONL.*; a pattern such as"),
    ],
)
def test_no_file(tmp_path: Path, name: str, said: str) -> None:
    for read in (open_rows, lambda section, _: open_source(section)):
        with pytest.raises(DataError, match=said):
            read(DataSection(source=str(tmp_path / name)), 0)
