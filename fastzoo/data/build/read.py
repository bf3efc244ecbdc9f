"""The first step: the rows of one part of a source, normalised, in Arrow files that the other steps read."""

from __future__ import annotations

import hashlib
import heapq
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastzoo.config.data_build import DataBuild, SourceSection
from fastzoo.core.files import partial_of, read_json, sync, write_json
from fastzoo.core.text import one_line
from fastzoo.data.build.adapters import adapter_of
from fastzoo.data.build.normalise import FIELDS, normalise, normalise_text
from fastzoo.data.dialogues import Unusable
from fastzoo.data.rows import Row
from fastzoo.data.sequences import MOST_REASONS, shortened
from fastzoo.data.sources import Source

if TYPE_CHECKING:
    import pyarrow as pa

PART_BYTES = 64 << 20
"""Of text in one Arrow file: what is in memory at once."""

PART_ROWS = 20_000

FACTS = "facts.json"


@dataclass
class Facts:
    """What became of the rows of a part of a source."""

    rows: int = 0
    usable: int = 0
    ngrams: int = 0
    """Of all usable rows, the same one counted as often as it occurs."""
    text_bytes: int = 0
    files: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    first_skipped: str | None = None

    def skip(self, reason: str, row: Row) -> None:
        if reason not in self.skipped and len(self.skipped) >= MOST_REASONS:
            reason = reason.partition(":")[0]
        self.skipped[reason] += 1
        if self.first_skipped is None:
            self.first_skipped = f"row {row[0]} ({reason}): {shortened(row[1])}"


@dataclass(frozen=True)
class Unit:
    """One part of a source, or all of it where its first rows are wanted only."""

    source: int
    """Which source of the build."""
    part: int | None
    """Which part of the source; None: all, one after the other."""

    @property
    def name(self) -> str:
        return f"{self.source:03d}-" + ("all" if self.part is None else f"{self.part:06d}")


def schema(kind: str) -> pa.Schema:
    """Of the Arrow files: the row, and what later steps need to know of it."""
    import pyarrow as pa

    message = pa.struct([(name, pa.string()) for name in FIELDS])
    says = (
        [("text", pa.string())]
        if kind == "text"
        else [("messages", pa.list_(message)), ("tools", pa.string())]
    )
    return pa.schema(
        [
            *says,
            ("row", pa.string()),
            ("language", pa.string()),
            ("digest", pa.binary(32)),
            ("key", pa.uint64()),
        ]
    )


def read_unit(build: DataBuild, unit: Unit, source: Source, folder: Path) -> Facts:
    """Write a unit's usable rows into ``folder / unit.name``, which appears whole; if it is there, only say what it has.

    Raises DataError, HubError: the source cannot be read.
    """
    target = folder / unit.name
    if (target / FACTS).exists():
        return facts_of(target)
    temporary = partial_of(target).with_name(f".{unit.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        facts = _write_rows(build, unit, source, temporary)
        write_json(temporary / FACTS, vars(facts))
        for path in temporary.iterdir():
            sync(path)
        try:
            temporary.rename(target)
        except OSError:
            if not (target / FACTS).exists():
                raise  # else another process, whose parent was killed, had the same unit
        sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def facts_of(target: Path) -> Facts:
    """What ``read_unit`` wrote there."""
    values = read_json(target / FACTS)
    return Facts(**{**values, **{name: Counter(values[name]) for name in ("skipped", "repaired")}})


def _write_rows(build: DataBuild, unit: Unit, source: Source, folder: Path) -> Facts:
    """The rows of a unit as Arrow files in ``folder``."""
    section, facts = build.sources[unit.source], Facts()
    parent = os.getppid()
    records = _records(build, section, _rows(build, unit, source), facts)
    if build.sample:
        # Those with the smallest keys of all are a sample without replacement, however they are divided.
        smallest = heapq.nsmallest(
            build.sample, enumerate(records), key=lambda item: (item[1]["key"], item[0])
        )
        records = (record for _, record in sorted(smallest, key=lambda item: item[0]))
    batch: list[dict[str, Any]] = []
    held = 0
    for record in records:
        batch.append(record)
        held += record.pop("size")
        if held >= PART_BYTES or len(batch) == PART_ROWS:
            _write_part(build, batch, folder, facts)
            batch, held = [], 0
            if os.getppid() != parent:
                raise SystemExit("the process that wanted this has ended")
    if batch:
        _write_part(build, batch, folder, facts)
    return facts


def _rows(build: DataBuild, unit: Unit, source: Source) -> Iterator[Row]:
    parts = range(len(source.parts)) if unit.part is None else [unit.part]
    rows = (row for part in parts for row in source.read(part))
    return islice(rows, build.limit) if build.limit else rows


def _records(
    build: DataBuild, section: SourceSection, rows: Iterable[Row], facts: Facts
) -> Iterator[dict[str, Any]]:
    """What is kept of each usable row, by the names of ``schema``, and its ``size`` in bytes."""
    adapter = adapter_of(section)
    for number, value in rows:
        facts.rows += 1
        try:
            _check_where(value, section.where)
            if build.kind == "text":
                record: dict[str, Any] = {"text": normalise_text(value, adapter.column or "text")}
                digest = hashlib.sha256(record["text"].encode()).digest()
            else:
                found = normalise(value, adapter.column)
                record = {"messages": found.messages, "tools": found.tools}
                digest = found.digest()
                facts.repaired.update(found.repaired)
        except Unusable as unusable:
            facts.skip(unusable.reason, (number, value))
            continue
        row_id = _text(value, adapter.row_id) or str(number)
        key = hashlib.blake2b(f"{build.seed} {section.source} {number}".encode(), digest_size=8).digest()
        record |= {"row": row_id, "language": _text(value, adapter.language), "digest": digest}
        yield record | {"key": int.from_bytes(key, "big"), "size": _size(record)}


def _check_where(value: Any, where: dict[str, Any]) -> None:
    for column, wanted in where.items():
        allowed = wanted if isinstance(wanted, list) else [wanted]
        if not isinstance(value, dict) or value.get(column) not in allowed:
            raise Unusable(f"left out by where: {column}")


def _text(value: Any, column: str | None) -> str | None:
    """What a column says, as text that Arrow takes."""
    found = value.get(column) if column and isinstance(value, dict) else None
    return None if found is None else one_line(found, 200)


def _size(record: dict[str, Any]) -> int:
    if "text" in record:
        return len(record["text"])
    return sum(len(text) for message in record["messages"] for text in message.values() if text)


def _write_part(build: DataBuild, batch: list[dict[str, Any]], folder: Path, facts: Facts) -> None:
    import pyarrow as pa

    from fastzoo.data.dedup.ngrams import ngram_count

    table = pa.Table.from_pylist(batch, schema=schema(build.kind))
    name = f"part-{len(facts.files):06d}.arrow"
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        pa.OSFile(str(folder / name), "wb") as file,
        pa.ipc.new_file(file, table.schema, options=options) as out,
    ):
        out.write_table(table)
    facts.files.append(name)
    facts.usable += table.num_rows
    facts.text_bytes += sum(map(_size, batch))
    if build.deduplication:
        facts.ngrams += ngram_count(turns_of(table), build.deduplication.n, build.deduplication.unit)


def open_part(path: Path) -> pa.Table:
    """An Arrow file that ``read_unit`` wrote."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        return reader.read_all()


def turns_of(table: pa.Table) -> Any:
    """A ``TextBatch``: the texts of each row's turns."""
    import pyarrow as pa

    from fastzoo.data.dedup.ngrams import TextBatch

    if "text" in table.column_names:
        texts = table["text"].combine_chunks()
        return TextBatch.of_arrow(
            pa.ListArray.from_arrays(pa.array(range(len(texts) + 1), pa.int32()), texts)
        )
    lists = table["messages"].combine_chunks()
    return TextBatch.of_arrow(pa.ListArray.from_arrays(lists.offsets, lists.values.field("content")))
