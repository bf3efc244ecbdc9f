"""Rows of a streamed dataset of the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from fastzoo.config.recipe import DataSection, TextSection
from fastzoo.core.errors import AccessError, DataError, FastzooError, HubError, NotFoundError
from fastzoo.core.text import one_line
from fastzoo.data.files import without_nulls
from fastzoo.data.row import SHARD_NUMBERS, Row, SourceInfo, generator
from fastzoo.hub.client import commit_of, status_of
from fastzoo.hub.retries import TRIES, is_transient, reason, wait, with_retries


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
            if type(error).__name__ == "DatasetNotFoundError" and "gated" in str(error):
                page = f"https://huggingface.co/datasets/{section.source}"
                said = f"is gated: accept its terms at {page}, and log in with 'hf auth login'"
                raise AccessError(f"{self._where} {said}") from None
            said = f"{one_line(error, 200)} (data.subset, data.split choose a part of it)"
            raise DataError(f"{self._where}: {said}") from None
        self.info = SourceInfo(section.source, "hub", revision, None)
        self.shards = self._data.num_shards
        if len(self._files) != self.shards:  # shards are not files, or it is not known which
            self._files = [f"file {shard}" for shard in range(self.shards)]
        self._lengths: dict[int, int] = {}

    def held_out(self, purpose: str = "") -> Iterator[Row]:
        for shard in range(self.shards):
            yield from self.read(shard)

    def training(self, epoch: int, held_out: int, start: int = 0) -> Iterator[Row]:
        if not self._section.shuffle:
            yield from self._from(range(self.shards), held_out, start)
            return
        order = generator(self._seed, f"epoch {epoch} files").permutation(self.shards)
        window, within = divmod(start, self._section.shuffle_rows)
        rows = self._from(order.tolist(), held_out, window * self._section.shuffle_rows)
        while taken := list(islice(rows, self._section.shuffle_rows)):
            places = generator(self._seed, f"epoch {epoch} window {window}").permutation(len(taken))
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
            for row in self.read(shard, begin):
                if start:
                    start -= 1
                else:
                    yield row

    def _held_out_of_shards(self, held_out: int) -> dict[int, int]:
        """How many rows at the start of each shard are held out."""
        held: dict[int, int] = {}
        for shard in range(self.shards):
            if held_out == 0:
                break
            length = self._length(shard)
            if length is None:
                length = sum(1 for _ in islice(self.read(shard), held_out))
            held[shard] = min(length, held_out)
            held_out -= held[shard]
        return held

    def _length(self, shard: int) -> int | None:
        """Number of rows of a shard, if it is known without reading them."""
        if shard not in self._lengths and self._files[shard].endswith(".parquet"):
            from fastzoo.hub.streaming import parquet_rows

            where = f"{self._where}, {self.name(shard)}"
            try:
                self._lengths[shard] = with_retries(lambda: parquet_rows(self._files[shard]), where)
            except Exception as error:  # any that pyarrow or the Hub's client raise
                raise _final(error, where) from None
        return self._lengths.get(shard)

    def read(self, shard: int, row: int = 0) -> Iterator[Row]:
        """Rows of a shard, from number ``row`` on."""
        failed = 0
        while True:
            try:
                for value in self._data.shard(self.shards, shard).skip(row):
                    yield shard * SHARD_NUMBERS + row, without_nulls(value)
                    row, failed = row + 1, 0
                break
            except Exception as error:  # any that a file's format or the Hub's client raise
                failed += 1
                where = f"{self._where}, {self.name(shard)}, from row {row} on"
                if failed == TRIES or not is_transient(error):
                    raise _final(error, where) from None
                wait(error, where, failed)
        self._lengths[shard] = row

    def name(self, shard: int) -> str:
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


def _stream(section: DataSection | TextSection, revision: str) -> tuple[list[str], Any]:
    """The files of a Hub dataset's split, and the split as a stream of rows."""
    from fastzoo.hub.streaming import use_retrying_files

    datasets = datasets_library()
    # What it logs is raised as well. Its own retries would take many minutes.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    for name in ("READ", "READ_SERVER_UNAVAILABLE", "READ_RATE_LIMIT", "OPEN"):
        setattr(datasets.config, f"STREAMING_{name}_RETRY_INTERVAL", 0)
    use_retrying_files()
    builder = datasets.load_dataset_builder(section.source, name=section.subset, revision=revision)
    files = (builder.config.data_files or {}).get(section.split, [])
    return [str(file) for file in files], builder.as_streaming_dataset(split=section.split)


def datasets_library() -> Any:
    """The datasets library, silent and without its download counter's request on every load."""
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    import datasets

    datasets.disable_progress_bars()
    return datasets
