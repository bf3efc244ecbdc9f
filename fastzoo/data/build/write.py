"""The third step: the rows of each split as Parquet files."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastzoo.config.data_build import DataBuild
from fastzoo.core.files import sha256_of, sync
from fastzoo.data.build.adapters import adapter_of
from fastzoo.data.build.normalise import FIELDS
from fastzoo.data.build.read import open_part
from fastzoo.data.build.select import SPLITS, TRAIN, Selection, order_of

if TYPE_CHECKING:
    import pyarrow as pa

DATA = "data"


class Written:
    """What was written, for the manifest."""

    def __init__(self) -> None:
        self.splits: dict[str, dict[str, Any]] = {}
        self.languages: Counter[str] = Counter()


def write_splits(
    build: DataBuild, selection: Selection, labels: list[str], folder: Path, tick: Callable[[int], None]
) -> Written:
    """Write ``data/<split>-00000-of-000NN.parquet`` for each split that has rows.

    Rows are first dealt into as many files as the result has, by where they will stand, then each file is put in
    order: memory holds one file's rows at a time.

    Args:
        labels: what the column ``source`` says, by source.
        tick: told how many rows more were written (twice each).
    """
    (folder / DATA).mkdir(parents=True)
    dealt = folder / "dealt"
    shards = {split: -(-selection.rows(split) // build.shard_rows) for split in range(len(SPLITS))}
    fields = _deal(build, selection, labels, dealt, shards, tick)
    written = Written()
    for split, count in shards.items():
        if not count:
            continue
        total, files = hashlib.sha256(), []
        for shard in range(count):
            path = folder / DATA / f"{SPLITS[split]}-{shard:05d}-of-{count:05d}.parquet"
            files.append(
                _write_shard(dealt / f"{split}-{shard}.arrow", path, fields, total, written.languages)
            )
            tick(files[-1]["rows"])
            files[-1]["path"] = path.relative_to(folder).as_posix()
        rows = sum(file["rows"] for file in files)
        written.splits[SPLITS[split]] = {"rows": rows, "hash": total.hexdigest(), "files": files}
    shutil.rmtree(dealt)
    return written


def _deal(
    build: DataBuild,
    selection: Selection,
    labels: list[str],
    folder: Path,
    shards: dict[int, int],
    tick: Callable[[int], None],
) -> list[str]:
    """Deal rows into files by their place; return the fields of messages that occur, and ``tools`` if that does."""
    import pyarrow as pa

    folder.mkdir()
    found = {"role", "content"}
    writers: dict[tuple[int, int], Any] = {}
    with ExitStack() as stack:
        for part, mask, place in zip(
            selection.parts, selection.split, _places(build, selection), strict=True
        ):
            table = open_part(part.path)
            found |= _fields_in(table.filter(mask >= TRAIN))
            licence = adapter_of(build.sources[part.source]).licence
            table = table.append_column("place", pa.array(place)).drop_columns(["key"])
            table = table.append_column("source", pa.array([labels[part.source]] * len(mask), pa.string()))
            table = table.append_column("licence", pa.array([licence] * len(mask), pa.string()))
            shard = place // build.shard_rows
            for split in shards:
                for number in np.unique(shard[mask == split]):
                    key = (split, int(number))
                    if key not in writers:
                        file = stack.enter_context(pa.OSFile(str(folder / f"{split}-{number}.arrow"), "wb"))
                        options = pa.ipc.IpcWriteOptions(compression="lz4")
                        writers[key] = stack.enter_context(
                            pa.ipc.new_stream(file, table.schema, options=options)
                        )
                    writers[key].write_table(table.take(np.nonzero((mask == split) & (shard == number))[0]))
            tick(int((mask >= TRAIN).sum()))
    return [name for name in (*FIELDS, "tools") if name in found]


def _places(build: DataBuild, selection: Selection) -> list[np.ndarray]:
    """For each part, (R,) int64: the place of each row in its split, from 0 on."""
    flat = np.concatenate(selection.split) if selection.split else np.zeros(0, np.int8)
    place = np.zeros(len(flat), np.int64)
    for split in range(len(SPLITS)):
        (rows,) = np.nonzero(flat == split)
        if build.shuffle:
            # Rows that say the same stay in the order of the sources.
            digests = np.concatenate(selection.digests)[rows]
            rows = rows[np.argsort(order_of(digests, build.seed), kind="stable")]
        place[rows] = np.arange(len(rows))
    ends = np.cumsum([len(mask) for mask in selection.split])
    return np.split(place, ends[:-1]) if len(ends) else []


def _fields_in(table: pa.Table) -> set[str]:
    if "messages" not in table.column_names:
        return set()
    values = table["messages"].combine_chunks().values
    found = {name for name in FIELDS if values.field(name).null_count < len(values)}
    return found | ({"tools"} if table["tools"].null_count < table.num_rows else set())


def _write_shard(
    dealt: Path, path: Path, fields: list[str], total: Any, languages: Counter[str]
) -> dict[str, Any]:
    """One Parquet file of the rows dealt to it, in order. ``total`` is updated with their digests."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pa.memory_map(str(dealt)) as file, pa.ipc.open_stream(file) as reader:
        table = reader.read_all()
    table = table.take(np.argsort(table["place"].to_numpy())).combine_chunks()
    for digest in table["digest"].to_pylist():
        total.update(digest)
    for item in table["language"].value_counts().to_pylist():
        languages[item["values"] or "unknown"] += item["counts"]
    names = ["source", "row", "language", "licence"]
    if "text" in table.column_names:
        result = table.select(["text", *names])
    else:
        lists = table["messages"].combine_chunks()
        tools = ["tools"] if "tools" in fields else []
        fields = [name for name in fields if name != "tools"]
        messages = pa.StructArray.from_arrays([lists.values.field(name) for name in fields], fields)
        result = table.select([*tools, *names])
        result = result.add_column(0, "messages", pa.ListArray.from_arrays(lists.offsets, messages))
    pq.write_table(result, path, compression="zstd", row_group_size=5_000)
    sync(path)
    return {"path": "", "rows": result.num_rows, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
