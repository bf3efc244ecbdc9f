"""Deduplication against a direct transcription of Algorithm 1: one machine, and rounds by datatrove.

    python tests/long/dedup.py [--samples 20000] [--n 20] [--seed 0] [--json]

Samples are generated and adversarial ones (``tests/data/dedup/transcription.py``), in units, hash widths and treatments
of short samples; then one chain of as many, of which every second sample is kept. The exit code is 1 if one sample is
kept or dropped otherwise than by the transcription.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "data/dedup"), str(HERE.parents[1])]

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
from transcription import adversarial, chain, transcription  # noqa: E402

from fastzoo.data.dedup.greedy import Deduplicator  # noqa: E402
from fastzoo.data.dedup.ngrams import TextBatch  # noqa: E402
from fastzoo.data.dedup.rounds import dedup_in_rounds  # noqa: E402

PACKAGES = ("datatrove", "hypothesis", "numba", "numpy", "pyarrow")
PARTS, PARTITIONS = 5, 4
OPTIONS: tuple[dict[str, Any], ...] = (
    {"unit": "words", "bits": 64, "short": "keep"},
    {"unit": "words", "bits": 128, "short": "unique"},
    {"unit": "characters", "bits": 64, "short": "unique"},
)


def on_one_machine(samples: list[list[str]], options: dict[str, Any]) -> list[bool]:
    """What a deduplicator keeps of them in batches of unequal size."""
    seen, kept, start, size = Deduplicator(**options), [], 0, 1
    while start < len(samples):
        kept += seen.kept(TextBatch.of(samples[start : start + size])).tolist()
        start, size = start + size, size * 3 + 1
    return kept


def in_rounds(
    samples: list[list[str]], options: dict[str, Any], tail: int
) -> tuple[list[bool], dict[str, Any]]:
    """The same on datatrove's local executor, and what it reports."""
    with tempfile.TemporaryDirectory() as name:
        folder, parts = Path(name), []
        step = -(-len(samples) // PARTS)
        for k in range(PARTS):
            parts.append(folder / f"part-{k}.arrow")
            table = pa.table({"turns": pa.array(samples[k * step : (k + 1) * step], pa.list_(pa.string()))})
            with pa.OSFile(str(parts[-1]), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
                out.write_table(table, max_chunksize=1000)
        with (folder / "log").open("w") as log, contextlib.redirect_stderr(log):
            report = dedup_in_rounds(
                parts, folder / "work", workers=1, partitions=PARTITIONS, tail=tail, **options
            )
        kept = [bool(one) for part in parts for one in np.load(folder / f"work/kept/{part.stem}.npy")]
    said = {
        "rounds": len(report.rounds),
        "finished": report.finished,
        "undecided": [each.undecided for each in report.rounds][:8],
        "shuffled": [each.shuffled for each in report.rounds][:8],
        "shuffled_in_all": report.shuffled,
    }
    return kept, said


def compare(name: str, samples: list[list[str]], options: dict[str, Any], tails: list[int]) -> dict[str, Any]:
    """One row of the result."""
    # Arrow's strings are UTF-8: where lone surrogates are, rounds read what stands for them.
    plain = [[turn.encode("utf-8", "replace").decode() for turn in turns] for turns in samples]
    wanted = transcription(samples, **{k: v for k, v in options.items() if k != "bits"})
    started = time.perf_counter()
    different = sum(a != b for a, b in zip(on_one_machine(samples, options), wanted, strict=True))
    row = {"samples": name, **options, "kept": sum(wanted), "different": different}
    row["seconds"] = round(time.perf_counter() - started, 2)
    wanted = transcription(plain, **{k: v for k, v in options.items() if k != "bits"})
    for tail in tails:
        started = time.perf_counter()
        kept, said = in_rounds(plain, options, tail)
        said["different"] = sum(a != b for a, b in zip(kept, wanted, strict=True))
        row[f"rounds, tail {tail}"] = {**said, "seconds": round(time.perf_counter() - started, 1)}
        print(f"{name}, {options}, tail {tail}: {row[f'rounds, tail {tail}']}", file=sys.stderr)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare deduplication with a transcription of Algorithm 1.")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    started = time.perf_counter()
    rows = []
    for number, options in enumerate(OPTIONS):
        samples = list(islice(adversarial(asked.n, asked.seed + number), asked.samples))
        tails = [0, asked.samples // 20] if number == 0 else [asked.samples // 20]
        rows.append(compare("adversarial", samples, {"n": asked.n, **options}, tails))
    long = chain(asked.samples, asked.n)
    rows.append(compare("chain", long, {"n": asked.n, **OPTIONS[0]}, [asked.samples]))
    different = sum(
        part["different"] for row in rows for part in (row, *(v for v in row.values() if isinstance(v, dict)))
    )
    result = {
        "samples": asked.samples,
        "different": different,
        "each": rows,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {package: version(package) for package in PACKAGES},
    }
    if asked.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{asked.samples} samples, {len(rows)} comparisons: {different} decided otherwise")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
