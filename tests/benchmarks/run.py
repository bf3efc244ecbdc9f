"""The benchmark command: `python tests/benchmarks/run.py [--only NAME] [--json] [--quick] [--write]`.

Every figure is a ratio of things measured side by side in one interleaved run. What the keys mean
stands in README.md beside this file. Data goes to stdout, words to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
import time
import warnings
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Before torch is imported: spinning threads would wait on a neighbour's.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Progress bars of other packages: tqdm reads this when it is imported.
os.environ.setdefault("TQDM_DISABLE", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

BENCHMARKS = ("step", "forward", "many", "processes", "checkpoint", "memory", "steering", "evaluate", "dedup")
"""Each is a module beside this file with ``measure(quick=...) -> dict``."""

ON_GPUS = ("step_ratio_cuda", "bandwidth_share_cuda", "packed_over_alone_cuda", "packed_over_blocks_cuda")
"""Figures of ``step`` and ``forward`` that only a machine with a GPU has."""

PACKAGES = ("torch", "numba", "transformers", "sae-lens")
START, END = "<!-- results: start -->", "<!-- results: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure fastzoo, as ratios, on this machine.")
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="run only this one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: no figures")
    parser.add_argument("--write", action="store_true", help="renew the table in README.md")
    options = parser.parse_args()
    if options.write and (options.quick or options.only):
        parser.error("--write takes a full run: leave out --quick and --only")

    warnings.filterwarnings("ignore", category=FutureWarning)
    figures: dict[str, Any] = {}
    for name in options.only or BENCHMARKS:
        print(f"{name}: measuring", file=sys.stderr)
        started = time.perf_counter()
        figures |= importlib.import_module(name).measure(quick=options.quick)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    about = machine()
    table = as_table(figures, about)
    if options.write:
        write_readme(table)
    print(json.dumps(as_json(figures, about), indent=1) if options.json else table)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "date": date.today().isoformat(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }


def cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def flat(figures: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested figures as ``key.key: value``."""
    found: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{key}.")
        else:
            found[before + key] = value
    return found


def as_json(figures: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Ratios as their medians; their spread, and that of processor time, under ``rounds``."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        return round(value.median, 3) if hasattr(value, "median") else value

    rounds = {
        key: {"min": round(r.low, 3), "max": round(r.high, 3), "rounds": r.rounds, "cpu": round(r.cpu, 3)}
        for key, r in flat(figures).items()
        if hasattr(r, "median")
    }
    return {"machine": about, **plain(figures), "rounds": rounds}


def as_table(figures: dict[str, Any], about: dict[str, Any]) -> str:
    """Markdown: the ratios, then everything else."""
    packages = ", ".join(f"{p} {about[p]}" for p in PACKAGES if about[p])
    lines = [
        f"{about['date']}, {about['cpu']}, {about['cores']} cores, {about['threads']} threads, {packages}",
        "",
        "| ratio | median | min | max | CPU | rounds |",
        "|---|---|---|---|---|---|",
    ]
    others = ["", "| figure | value |", "|---|---|"]
    for key, value in flat(figures).items():
        if hasattr(value, "median"):
            lines.append(
                f"| `{key}` | **{value.median:.2f}** | {value.low:.2f} | {value.high:.2f} "
                f"| {value.cpu:.2f} | {value.rounds} |"
            )
        else:
            shown = f"{value:.0f}" if value >= 100 or isinstance(value, int) else f"{value:.3g}"
            others.append(f"| `{key}` | {shown} |")
    if not any(key.startswith("step_ratio_cuda") for key in flat(figures)):
        lines += [f"| `{key}` | not yet timed: no GPU here | | | | |" for key in ON_GPUS]
    return "\n".join(lines + (others if len(others) > 3 else []))


def write_readme(table: str) -> None:
    """Replace what stands between the two markers."""
    path = HERE / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(START)
    path.write_text(f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
