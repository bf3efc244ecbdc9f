"""Interleaved timing: every variant once a round, compared within the round.

On a shared machine only ratios mean something, and only of things measured side by side.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Seconds:
    """What one call of a variant took."""

    elapsed: float
    cpu: float
    """Processor time of all threads: less disturbed by neighbours, blind to parallelism."""


@dataclass(frozen=True)
class Ratio:
    """Median, smallest and largest of the per-round ratios of elapsed time."""

    median: float
    low: float
    high: float
    rounds: int
    cpu: float
    """The median for processor time."""


def interleave(
    variants: dict[str, Callable[[], object]],
    *,
    seconds: float,
    least: int = 3,
    most: int = 25,
    warm_up: bool = True,
) -> dict[str, list[Seconds]]:
    """Time the variants round-robin, after one round to warm up, for about ``seconds`` in all.

    Each round starts with another variant, so that none is always measured first.
    """
    names = list(variants)
    times: dict[str, list[Seconds]] = {name: [] for name in names}
    started = time.perf_counter()
    for name in names if warm_up else ():
        variants[name]()
    rounds = 0
    while rounds < least or (rounds < most and time.perf_counter() - started < seconds):
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            before, cpu_before = time.perf_counter(), time.process_time()
            variants[name]()
            elapsed, cpu = time.perf_counter() - before, time.process_time() - cpu_before
            times[name].append(Seconds(elapsed, cpu))
        rounds += 1
    return times


def ratio(slow: list[Seconds], fast: list[Seconds], work: float = 1.0) -> Ratio:
    """How many times faster ``fast`` is, round by round.

    Args:
        work: what ``fast`` gets done in one go over what ``slow`` does.
    """
    pairs = list(zip(slow, fast, strict=True))
    ratios = [work * a.elapsed / b.elapsed for a, b in pairs]
    cpu = statistics.median(work * a.cpu / max(b.cpu, 1e-9) for a, b in pairs)
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), len(ratios), cpu)


def median_seconds(times: list[Seconds]) -> float:
    return statistics.median(t.elapsed for t in times)
