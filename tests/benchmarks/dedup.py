"""Deduplication: beside a transcription of Algorithm 1 in plain Python, and how time and memory grow.

Dialogues of 327 words, as many as those of the paper have on average, in two to six turns, words of a skewed vocabulary;
every fourth has a turn of an earlier one and is mostly dropped. Both sides start from Python strings.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from memory import status
from rounds import Ratio, Seconds, interleave, ratio

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data/dedup"))

from transcription import transcription

from fastzoo.data.dedup.greedy import Deduplicator
from fastzoo.data.dedup.ngrams import TextBatch

WORDS = 327
VOCABULARY = 50_000
BATCH = 10_000
"""Dialogues that are given to the deduplicator at once."""


def measure(*, quick: bool) -> dict[str, Any]:
    """``dedup_ratio`` as a ``Ratio``; bytes, exponent and rates as numbers (the README has what each is).

    Raises:
        RuntimeError: the two sides do not keep the same dialogues.
    """
    dedup_ratio = beside_transcription(200 if quick else 10_000, seconds=1 if quick else 60)
    small, large = (1_000, 3_000) if quick else (100_000, 1_000_000)
    gc.collect()
    # A virtual machine gets memory from its host when it is first written to: not only the larger table's is to be there.
    np.ones(large * 400, np.uint64)
    before = [grow(small, seed=2)["seconds"] for _ in range(2)]
    whole = grow(large, seed=2, measured=100_000 if quick else 100_000_000)
    after = [grow(small, seed=2)["seconds"] for _ in range(2)]

    def exponent(of: str) -> float:
        less = statistics.median(getattr(seconds, of) for seconds in before + after)
        return math.log(getattr(whole["seconds"], of) / less) / math.log(large / small)

    elapsed = whole["seconds"].elapsed
    return {
        "dedup_ratio": dedup_ratio,
        "bytes_per_ngram": round(whole["bytes_per_ngram"], 2),
        "scaling_exponent": round(exponent("elapsed"), 3),
        "dedup": {
            "scaling_exponent_cpu": round(exponent("cpu"), 3),
            "bytes_per_ngram_most": round(whole["bytes_per_ngram_most"], 2),
            "dialogues": large,
            "dropped": whole["dropped"],
            "ngrams_held": whole["ngrams"],
            "dialogues_per_second": round(large / elapsed),
            "ngrams_per_second": round(whole["looked_up"] / elapsed),
            "seconds": round(elapsed, 2),
            "cpu_seconds": round(whole["seconds"].cpu, 2),
            "resident_gb": round(whole["resident"] / 1e9, 3),
        },
    }


def beside_transcription(count: int, seconds: float) -> Ratio:
    some = next(dialogues(count, count, seed=1))
    if Deduplicator().kept(TextBatch.of(some)).tolist() != transcription(some):
        raise RuntimeError("the dialogues that are kept are not those of the transcription")
    variants = {
        "fastzoo": lambda: Deduplicator().kept(TextBatch.of(some)),
        "transcription": lambda: transcription(some),
    }
    times = interleave(variants, seconds=seconds, least=5)
    return ratio(times["transcription"], times["fastzoo"])


def grow(count: int, seed: int, measured: int = 1 << 62) -> dict[str, Any]:
    """Deduplicate so many dialogues; time without making them, and resident memory as the table grows.

    ``bytes_per_ngram`` is what is resident beyond the start, the first time that ``measured`` n-grams are held, by the
    n-grams held then; ``most`` the largest such figure after a batch from then on. Linux only.
    """
    elapsed = cpu = 0.0
    at, most, dropped, looked_up = math.nan, 0.0, 0, 0
    made = dialogues(count, BATCH, seed)
    batch = next(made)  # what making them needs is no part of it
    warm = Deduplicator()
    warm.kept(TextBatch.of(batch))
    looked_up = 0
    del warm
    gc.collect()
    start = status("VmRSS")
    table = Deduplicator()
    while batch:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        texts = TextBatch.of(batch)
        kept = table.kept(texts)
        elapsed, cpu = elapsed + time.perf_counter() - begun, cpu + time.process_time() - cpu_begun
        dropped += int((~kept).sum())
        looked_up += int(texts.ngrams_per_sample(20, "words").sum())
        del texts
        each = (status("VmRSS") - start) / max(1, table.ngrams)
        if table.ngrams >= measured:
            at, most = each if math.isnan(at) else at, max(most, each)
        batch = next(made, [])
    return {
        "seconds": Seconds(elapsed, cpu),
        "bytes_per_ngram": at,
        "bytes_per_ngram_most": most,
        "dropped": dropped,
        "ngrams": table.ngrams,
        "looked_up": looked_up,
        "resident": status("VmRSS") - start,
    }


def dialogues(count: int, batch: int, seed: int) -> Iterator[list[list[str]]]:
    """Batches of dialogues, the same for a seed however many are asked for."""
    draw = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    lengths = draw.integers(2, 9, VOCABULARY)
    vocabulary = ["".join(draw.choice(letters, length)) for length in lengths.tolist()]
    earlier: list[str] = []
    for start in range(0, count, batch):
        size = min(batch, count - start)
        # Cubes of uniform numbers: frequent words are far more frequent.
        numbers = (VOCABULARY * draw.random((size, WORDS)) ** 3).astype(np.int64)
        turns = draw.integers(2, 7, size).tolist()
        found = []
        for k, row in enumerate(numbers.tolist()):
            words = [vocabulary[n] for n in row]
            cuts = [WORDS * t // turns[k] for t in range(turns[k] + 1)]
            texts = [" ".join(words[a:b]) for a, b in pairwise(cuts)]
            if earlier and k % 4 == 0:
                texts[-1] = earlier[(start + k) // 4 * 7919 % len(earlier)]
            elif len(earlier) < 10_000:
                earlier.append(texts[0])
            found.append(texts)
        yield found


if __name__ == "__main__":
    print(measure(quick="--quick" in sys.argv))
