"""What checkpoints cost: runs of the recipe with and without them, in turns.

Four SAEs of the tiny model (layers 1 and 2, standard and jumprelu, 8x), checkpoints as often as the
default has them, against none but the one that every run writes when training is done. Seconds are
those of training_log.csv, so without start-up and evaluation.
"""

from __future__ import annotations

import csv
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rounds import Seconds, ratio

ROOT = Path(__file__).resolve().parents[2]
PAIRS = 3
NONE = "checkpoint.minutes=1000000"


def measure(*, quick: bool) -> dict[str, Any]:
    """``checkpoint_ratio`` as a ``Ratio``; how many there were, and their share of the time.

    Raises:
        RuntimeError: a run failed; holds what it said.
    """
    tokens = 65_536 if quick else 983_040
    times: dict[bool, list[Seconds]] = {True: [], False: []}
    counts, shares = [], []
    for pair in range(1 if quick else PAIRS):
        for checkpoints in (True, False) if pair % 2 == 0 else (False, True):
            seconds, said = train(tokens, [] if checkpoints else [NONE])
            times[checkpoints].append(seconds)
            found = re.search(r"^checkpoints: (\d+) in [\d.]+ s, ([\d.]+)% of", said, re.MULTILINE)
            assert found, said
            if checkpoints:
                counts.append(int(found[1]))
                shares.append(float(found[2]) / 100)
    return {
        "checkpoint_ratio": ratio(times[False], times[True]),
        "checkpoints": {"written": max(counts), "largest_share_of_training": max(shares)},
    }


def train(tokens: int, more: list[str]) -> tuple[Seconds, str]:
    """One run: seconds of training, processor time of the whole run, and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [
                *(sys.executable, str(ROOT / "recipes" / "train.py"), "evaluation.dialogues=8"),
                *(f"training.tokens={tokens}", f"output.folder={folder}/run", *more),
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        path = next(Path(folder).glob("run/*/training_log.csv"))
        with path.open(encoding="utf-8") as file:
            elapsed = float(list(csv.DictReader(file))[-1]["seconds"])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Seconds(elapsed, cpu), done.stderr
