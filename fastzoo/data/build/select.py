"""The second step: which of the normalised rows are kept, and in which split each one goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastzoo.config.data_build import HELD_OUT, DataBuild, SplitsSection
from fastzoo.data.build.read import Facts, Unit, open_part, turns_of

if TYPE_CHECKING:
    import pyarrow as pa

LEFT_OUT = -1
TRAIN = 0
"""Held-out splits follow, from 1 on, in the order of ``HELD_OUT``."""

SPLITS = ("train", *HELD_OUT)

SHARE = 10
"""At most a tenth of the kept rows is held out."""


@dataclass(frozen=True)
class Part:
    """One Arrow file of the first step."""

    source: int
    path: Path


@dataclass
class Selection:
    """What is in the result."""

    parts: list[Part]
    split: list[np.ndarray] = field(default_factory=list)
    """For each part, (R,) int8: the split of each row, an index of ``SPLITS``, or ``LEFT_OUT``."""
    digests: list[np.ndarray] = field(default_factory=list)
    """For each part, (R, 2) uint64: the first half of each row's digest."""
    kept: list[int] = field(default_factory=list)
    """For each source, how many rows came through deduplication."""
    deduplication: dict[str, Any] | None = None
    kept_apart: dict[str, Any] | None = None

    def rows(self, split: int) -> int:
        return sum(int((mask == split).sum()) for mask in self.split)


def parts_of(units: list[tuple[Unit, Facts]], folder: Path) -> list[Part]:
    """The files of all units, in the order of the sources and their rows."""
    return [Part(unit.source, folder / unit.name / name) for unit, facts in units for name in facts.files]


def select(build: DataBuild, parts: list[Part], memory: int | None, tick: Callable[[int], None]) -> Selection:
    """Sample, deduplicate in order, and hold dialogues out.

    Args:
        memory: bytes that the table of n-grams may take; None: what is free.
        tick: told how many rows more were looked at.

    Raises OutputError: the table needs more memory than there is.
    """
    selection = Selection(parts, kept=[0] * len(build.sources))
    samples = _samples(build, parts) if build.sample else None
    for part, table in _tables(parts, tick):
        selection.digests.append(_digests(table))
        mask = np.zeros(table.num_rows, np.int8)
        if samples is not None:
            mask[~np.isin(table["key"].to_numpy(), samples[part.source])] = LEFT_OUT
        selection.split.append(mask)
    if build.deduplication:
        _deduplicate(build, selection, memory, tick)
    for part, mask in zip(parts, selection.split, strict=True):
        selection.kept[part.source] += int((mask == TRAIN).sum())
    if build.splits and build.kind == "dialogues":
        _hold_out(build.splits, build.seed, selection)
        _keep_apart(build.splits, selection, memory, tick)
    return selection


def _tables(parts: list[Part], tick: Callable[[int], None]) -> Iterator[tuple[Part, pa.Table]]:
    for part in parts:
        table = open_part(part.path)
        yield part, table
        tick(table.num_rows)


def _digests(table: pa.Table) -> np.ndarray:
    """(R, 2) uint64."""
    data = b"".join(table["digest"].to_pylist())
    return np.frombuffer(data, np.uint64).reshape(-1, 4)[:, :2].copy()


def _samples(build: DataBuild, parts: list[Part]) -> list[np.ndarray]:
    """For each source, the smallest keys of its rows, as many as are wanted."""
    keys: list[list[np.ndarray]] = [[] for _ in build.sources]
    for part in parts:
        keys[part.source].append(open_part(part.path)["key"].to_numpy())
    return [np.sort(np.concatenate(k))[: build.sample] if k else np.zeros(0, np.uint64) for k in keys]


def _deduplicate(
    build: DataBuild, selection: Selection, memory: int | None, tick: Callable[[int], None]
) -> None:
    from fastzoo.data.dedup.greedy import Deduplicator

    options = build.deduplication
    assert options is not None
    seen = Deduplicator(options.n, options.unit, options.bits, options.short, memory=memory)
    came = without = 0
    for mask, (_, table) in zip(selection.split, _tables(selection.parts, tick), strict=True):
        (wanted,) = np.nonzero(mask == TRAIN)
        batch = turns_of(table.take(wanted) if len(wanted) < table.num_rows else table)
        mask[wanted[~seen.kept(batch)]] = LEFT_OUT
        came += len(wanted)
        without += int((batch.ngrams_per_sample(options.n, options.unit) == 0).sum())
    kept = sum(int((mask == TRAIN).sum()) for mask in selection.split)
    selection.deduplication = {
        **options.model_dump(),
        "in": came,
        "kept": kept,
        "dropped": came - kept,
        "without_ngram": without,
        "ngrams": seen.ngrams,
        "expected_false_drops": seen.expected_false_drops(),
    }


def sizes(wanted: SplitsSection, kept: int) -> dict[str, int]:
    """How many dialogues each held-out split gets of ``kept`` different ones: as wanted, or their shares of a tenth."""
    numbers = {name: getattr(wanted, name) for name in HELD_OUT}
    total, most = sum(numbers.values()), kept // SHARE
    if total <= most:
        return numbers
    return {name: number and max(1, number * most // total) for name, number in numbers.items()}


def _hold_out(wanted: SplitsSection, seed: int, selection: Selection) -> None:
    """Dialogues are chosen by a hash of what they say, so one is in the same split whatever stands beside it.

    Where several say the same, the first one is held out, and no other is trained on.
    """
    order = np.concatenate(
        [_mixed(digests, seed) for digests in selection.digests] or [np.zeros(0, np.uint64)]
    )
    flat = np.concatenate(selection.split) if selection.split else np.zeros(0, np.int8)
    (kept,) = np.nonzero(flat == TRAIN)
    different, first = np.unique(order[kept], return_index=True)  # sorted
    numbers = sizes(wanted, len(different))
    begin = 0
    for split, name in enumerate(HELD_OUT, start=1):
        end = min(begin + numbers[name], max(0, len(different) - 1))
        chosen = kept[first[begin:end]]
        same = kept[np.isin(order[kept], different[begin:end])]
        flat[same] = LEFT_OUT
        flat[chosen] = split
        begin = end
    identical = len(kept) - int((flat[kept] != LEFT_OUT).sum())
    selection.kept_apart = {"n": wanted.apart, "identical": identical, "sharing": 0}
    ends = np.cumsum([len(mask) for mask in selection.split])
    selection.split = np.split(flat, ends[:-1])


def _mixed(digests: np.ndarray, seed: int) -> np.ndarray:
    """(R,) uint64 of (R, 2): a hash by ``seed`` (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = digests[:, 0] ^ (digests[:, 1] + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def order_of(digests: np.ndarray, seed: int) -> np.ndarray:
    """(R,) uint64: by what training rows are shuffled; independent of what decides who is held out."""
    return _mixed(digests, seed ^ 0x5DEECE66D)


def _keep_apart(
    wanted: SplitsSection, selection: Selection, memory: int | None, tick: Callable[[int], None]
) -> None:
    """Leave out training rows that share an n-gram with a held-out dialogue."""
    from fastzoo.data.dedup.greedy import Deduplicator

    assert selection.kept_apart is not None
    if wanted.apart is None or not any((mask > TRAIN).any() for mask in selection.split):
        return
    held = Deduplicator(wanted.apart, "words", 64, "keep", memory=memory)
    for mask, (_, table) in zip(selection.split, _tables(selection.parts, tick), strict=True):
        held.add(turns_of(table.take(np.nonzero(mask > TRAIN)[0])))
    for mask, (_, table) in zip(selection.split, _tables(selection.parts, tick), strict=True):
        (train,) = np.nonzero(mask == TRAIN)
        hits = held.seen(turns_of(table.take(train)))
        mask[train[hits]] = LEFT_OUT
        selection.kept_apart["sharing"] += int(hits.sum())
