"""Two processes beside one: real `accelerate launch` runs of the recipe, one CPU thread each.

Four SAEs of the tiny model (layers 1 and 2, standard and jumprelu, 8x). Tokens per second are those
of training_log.csv: from the trainer's start, after the first filling of the buffer, to the last
step, so with the language model's forward, but without start-up and evaluation. With several
processes the slowest one counts.
"""

from __future__ import annotations

import csv
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rounds import Seconds, ratio

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "recipes" / "accelerate" / "cpu.yaml"
PAIRS = 3


def measure(*, quick: bool) -> dict[str, Any]:
    """``two_process_ratio`` as a ``Ratio``, and the tokens per second behind it.

    Raises:
        RuntimeError: a run failed; holds what it said.
    """
    tokens = 10_240 if quick else 245_760
    times: dict[int, list[Seconds]] = {1: [], 2: []}
    for pair in range(1 if quick else PAIRS):
        for processes in (1, 2) if pair % 2 == 0 else (2, 1):
            times[processes].append(train(processes, tokens))
    trained = tokens - tokens % 1024
    return {
        "two_process_ratio": ratio(times[1], times[2]),
        "tokens_per_second_by_processes": {
            str(n): trained / min(t.elapsed for t in runs) for n, runs in times.items()
        },
    }


def train(processes: int, tokens: int) -> Seconds:
    """One run: seconds of training, and processor time of the whole run with all its processes."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        several = ("--config_file", str(CONFIG), "--num_processes", str(processes))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "accelerate.commands.launch", "--quiet"),
                *(several if processes > 1 else ()),
                *(str(ROOT / "recipes" / "train.py"), "threads=1", "evaluation.dialogues=8"),
                *("layers=[1,2]", "architectures=[standard,jumprelu]", "expansions=[8]"),
                *(f"training.tokens={tokens}", "training.batch_size=1024"),
                *("training.buffer_tokens=8192", f"output.folder={folder}/run"),
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{processes} processes: {done.stderr}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        elapsed = []
        for path in Path(folder).glob("run/*/training_log.csv"):
            with path.open(encoding="utf-8") as file:
                elapsed.append(float(list(csv.DictReader(file))[-1]["seconds"]))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Seconds(max(elapsed), cpu)
