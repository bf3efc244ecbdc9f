"""Kill the main job at random moments, give the same command again, compare: every byte the same.

    python tests/long/kill_resume.py [--kills 20] [--seed 0] [--processes 2] [--json] [key=value ...]

The main job runs undisturbed, then again with SIGKILL at many moments of a process's life: while it
starts, loads and fills, while it trains, within the writing of a checkpoint, while it evaluates, within
the writing of a result. A disturbed run that gets done before all kills were made is compared, and the
next one begins. Without key=value arguments it is the embedded default.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import pty
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "train.py"
CONFIG = ROOT / "recipes" / "accelerate" / "cpu.yaml"
PACKAGES = ("torch", "numba", "transformers", "accelerate", "safetensors")
TIMING = {"seconds", "tokens_per_second"}
"""Columns of training_log.csv that no two runs share."""
SIGNS = {"training": r"training \d+ SAEs", "evaluation": "evaluating"}
"""What a job says once it has begun that."""
LONGEST = 1200.0
"""Seconds after which a process that was not killed counts as stuck."""
WITHIN = 0.03
"""Up to so many seconds after a folder began to be written comes a kill that is to hit the writing."""


# --- a process -----------------------------------------------------------------------------------


class Job:
    """The main job as a process; what it says on a terminal, and how far it is."""

    def __init__(self, where: Path, overrides: Sequence[str], processes: int = 1) -> None:
        self.out = where / "out"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
        launcher += ["--num_processes", str(processes)]
        # On a terminal training and evaluation show when they begin.
        self._terminal, end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), *overrides],
            cwd=where,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=end,
            start_new_session=True,
        )
        os.close(end)
        self.said = ""
        self._began = time.monotonic()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.kill_all()
            self.process.wait()

    def _listen(self) -> None:
        while True:
            try:
                heard = os.read(self._terminal, 1 << 16)
            except OSError:  # the other end is closed
                heard = b""
            if not heard:
                return
            self.said += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", heard.decode(errors="replace"))

    @property
    def phase(self) -> str:
        """What it is at, from what it said and what the folder holds."""
        if any((self.out / "checkpoints").glob(".step-*.partial")):
            return "writing a checkpoint"
        if " SAEs in " in self.said:
            return "ending"
        if any(self.out.glob(".*-L*.partial")):
            return "writing results"
        if re.search(SIGNS["evaluation"], self.said):
            return "evaluating"
        if re.search(SIGNS["training"], self.said):
            return "training"
        return "loading and filling" if "held out:" in self.said else "starting"

    @property
    def resumed_from(self) -> int | None:
        """The step after which it goes on, if it said that it does."""
        found = re.search(r"going on after step (\d+)", self.said)
        return int(found[1]) if found else None

    def wait_for(self, begun: str, times: int = 1) -> bool:
        """Wait until it has begun something, so many times; False if it ended before."""
        seen = set()
        while self.process.poll() is None:
            if begun == "start":
                return True
            if begun == "checkpoint":
                seen |= set((self.out / "checkpoints").glob(".step-*.partial"))
            elif begun == "result":
                seen |= set(self.out.glob(".*-L*.partial"))
            elif re.search(SIGNS[begun], self.said):
                return True
            if len(seen) >= times:
                return True
            self._check_time()
            time.sleep(0.002)
        return False

    def wait(self) -> int:
        """Its exit code, once it ends by itself."""
        while self.process.poll() is None:
            self._check_time()
            time.sleep(0.02)
        self._listener.join()
        os.close(self._terminal)
        return self.process.returncode

    def _check_time(self) -> None:
        if time.monotonic() - self._began > LONGEST:
            raise SystemExit(f"stuck:\n{self.said}")

    def ranks(self) -> list[int]:
        """The processes that a launcher started."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            return [int(pid) for pid in path.read_text().split()]
        except OSError:  # it is gone
            return []

    def kill_all(self) -> None:
        """End it at once, the launcher first, so that it cannot end the others in good order."""
        pids = [self.process.pid, *self.ranks()]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def kill_one(self, rng: random.Random) -> str:
        """Kill one of the ranks; the launcher then ends the others. Says which."""
        ranks = self.ranks()
        if not ranks:  # none was started yet
            self.kill_all()
            return "all"
        rank = rng.randrange(len(ranks))
        os.kill(ranks[rank], signal.SIGKILL)
        return f"rank {rank}"


# --- comparing -----------------------------------------------------------------------------------


def contents(out: Path) -> dict[str, Any]:
    """All files of a run's folder: bytes, and of logs the rows without the timing."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name == "training_log.csv":
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            found[name] = [{k: v for k, v in row.items() if k not in TIMING} for row in rows]
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "a folder"
    return found


def differences(one: Path, other: Path) -> list[str]:
    """Which files and folders of two runs are not the same, or are left over in both."""
    left, right = contents(one), contents(other)
    leftover = re.compile(r"\.partial|^checkpoints|^interrupted")
    return sorted(
        name
        for name in left.keys() | right.keys()
        if left.get(name) != right.get(name) or leftover.search(name)
    )


# --- killing -------------------------------------------------------------------------------------


@dataclass
class Span:
    """How long parts of the undisturbed run took."""

    start: float
    """Until training begins."""
    training: float
    rest: float
    """Evaluation and results."""


@dataclass
class Kill:
    """One kill, as it was planned and as it went."""

    after: str
    """What it waits for: start, training, evaluation, checkpoint, result."""
    times: int
    """That of it."""
    delay: float
    run: int = 0
    phase: str = ""
    killed: str = ""
    resumed_from: int | None = None
    """The step that the killed process had gone on from."""


@dataclass
class Outcome:
    """All that was found out."""

    kills: list[Kill]
    runs: int
    differences: dict[str, list[str]]
    """By disturbed run, what is not as in the undisturbed one."""


def planned(number: int, kills: int, span: Span, rng: random.Random) -> Kill:
    """The moment of a kill: every fourth within a checkpoint; the last, and every tenth before it,
    within a result."""
    if number % 10 == (kills - 1) % 10:
        return Kill("result", rng.randint(1, 3), rng.uniform(0, WITHIN))
    if number % 4 == 2:
        # Later ones too: each that is complete is progress.
        return Kill("checkpoint", rng.randint(1, 3), rng.uniform(0, WITHIN))
    after = rng.choices(["start", "training", "evaluation"], [2, 5, 1])[0]
    longest = {"start": span.start, "training": span.training / 3, "evaluation": span.rest}[after]
    return Kill(after, 1, rng.uniform(0, longest))


def undisturbed(where: Path, overrides: Sequence[str]) -> tuple[Path, Span]:
    """The folder of a run in one process that nobody disturbs, and how long its parts took."""
    where.mkdir()
    with Job(where, overrides) as job:
        began = [time.monotonic()]
        for part in ("training", "evaluation"):
            job.wait_for(part)
            began.append(time.monotonic())
        if code := job.wait():
            raise SystemExit(f"the undisturbed run ended with {code}:\n{job.said}")
        began.append(time.monotonic())
    return job.out, Span(*(b - a for a, b in pairwise(began)))


def disturbed(
    top: Path,
    overrides: Sequence[str],
    kills: int,
    rng: random.Random,
    reference: Path,
    span: Span,
    processes: int = 1,
) -> Outcome:
    """Run and kill until all kills were made; the last run is left to complete."""
    plan = [planned(number, kills, span, rng) for number in range(kills)]
    done: list[Kill] = []
    found: dict[str, list[str]] = {}
    while len(done) < kills or len(found) == 0:
        where = top / f"disturbed-{len(found) + 1}"
        where.mkdir()
        complete = False
        while not complete:
            with Job(where, overrides, processes) as job:
                if len(done) < kills and disturb(job, plan[len(done)], rng, processes):
                    plan[len(done)].run = len(found) + 1
                    done.append(plan[len(done)])
                    say(done)
                    continue
                if code := job.wait():
                    raise SystemExit(f"{where.name} ended by itself with {code}:\n{job.said}")
                complete = True
        found[where.name] = differences(reference, job.out)
    return Outcome(done, len(found), found)


def disturb(job: Job, kill: Kill, rng: random.Random, processes: int) -> bool:
    """Kill it at the planned moment; False if it ended before."""
    if not job.wait_for(kill.after, kill.times):
        kill.times = 1  # there were not so many of them
        return False
    time.sleep(kill.delay)
    if job.process.poll() is not None:
        kill.delay /= 2  # it is faster than the undisturbed one was
        return False
    kill.phase = job.phase
    if processes > 1 and rng.random() < 0.5:
        kill.killed = job.kill_one(rng)
    else:
        job.kill_all()
        kill.killed = "all" if processes > 1 else "it"
    job.wait()
    kill.resumed_from = job.resumed_from
    return True


# --- the command ---------------------------------------------------------------------------------


def say(done: Sequence[Kill]) -> None:
    kill = done[-1]
    print(
        f"kill {len(done):3}  run {kill.run}  {kill.delay:6.2f} s after {kill.after:10}  "
        f"went on from {kill.resumed_from or '-':>5}  {kill.killed:6}  {kill.phase}",
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--processes", type=int, default=1, help="more than one: accelerate launch")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    arguments = parser.parse_intermixed_args()
    threads = max(1, 2 // arguments.processes)
    overrides = ["output.folder=out", f"threads={threads}", *arguments.overrides]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        reference, span = undisturbed(top / "undisturbed", overrides)
        print(f"undisturbed: {sum(asdict(span).values()):.0f} s", file=sys.stderr, flush=True)
        rng = random.Random(arguments.seed)
        outcome = disturbed(top, overrides, arguments.kills, rng, reference, span, arguments.processes)
    identical = not any(outcome.differences.values())
    report = {
        "kills": len(outcome.kills),
        "identical": identical,
        "differences": outcome.differences,
        "each": [{"moment": f"{k.after} {k.times} + {k.delay:.3f} s", **asdict(k)} for k in outcome.kills],
        "runs": outcome.runs,
        "processes": arguments.processes,
        "overrides": arguments.overrides,
        "seconds": round(time.monotonic() - began, 1),
        "seed": arguments.seed,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        phases = [k.phase for k in outcome.kills]
        for phase in sorted(set(phases)):
            print(f"{phases.count(phase):4} kills while {phase}")
        for run, names in outcome.differences.items():
            print(f"{run}: {'identical' if not names else 'differs: ' + ', '.join(names)}")
        print(f"{len(phases)} kills, {outcome.runs} runs, {report['seconds']:.0f} s")
    sys.exit(not identical)


if __name__ == "__main__":
    main()
