"""Inputs that attack: thousands of generated rows, recipes, names and SAE files.

    python tests/long/fuzz.py [--cases 10000] [--seed 0] [--only saes ...] [--json]

Every case must lead to a result that is what it should be or to one line that says what is wrong
(see ``properties.py``). Each crash is printed with its example on standard error, and the exit code
is then 1. The same seed gives the same cases.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

# From a checkout too, without an installation.
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from properties import PROPERTIES  # noqa: E402

PACKAGES = ("hypothesis", "torch", "numpy", "safetensors", "tokenizers", "transformers", "pyyaml")


def fuzz(name: str, cases: int, start: int) -> dict[str, Any]:
    """Give ``cases`` cases to one property.

    Returns:
        ``cases`` and ``accepted`` as they were counted, ``seconds``, and ``crashes``: one text each,
        with traceback and smallest example.
    """
    chosen = PROPERTIES[name]
    ran = accepted = 0
    crashes: list[str] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:

        def attack(case: Any) -> None:
            nonlocal ran, accepted
            ran += 1
            with tempfile.TemporaryDirectory(dir=folder) as place:
                accepted += chosen.check(case, Path(place))

        # Hypothesis ends a run early where it finds nothing new: the next seed makes up for it.
        while ran < cases and not crashes:
            run = settings(
                max_examples=cases - ran,
                database=None,
                deadline=None,
                derandomize=False,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )(seed(start)(given(chosen.cases)(attack)))
            start += 1
            before = ran
            try:
                run()
            except Exception as error:  # one, or a group of several
                crashes += [_shown(each) for each in getattr(error, "exceptions", [error])]
            if ran == before:
                break
    seconds = round(time.perf_counter() - started, 1)
    return {"cases": ran, "accepted": accepted, "seconds": seconds, "crashes": crashes}


def _shown(error: BaseException) -> str:
    """Traceback of an error; its notes have the example."""
    return "".join(traceback.format_exception(error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="how many in all (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (0)")
    parser.add_argument("--only", nargs="+", choices=list(PROPERTIES), help="some properties")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    names = options.only or list(PROPERTIES)
    whole = sum(PROPERTIES[name].share for name in names)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder  # else it is the current one
        for name in names:
            wanted = max(1, -int(-options.cases * PROPERTIES[name].share // whole))
            found[name] = fuzz(name, wanted, options.seed)
            for crash in found[name]["crashes"]:
                print(f"--- crash: {name}\n{crash}", file=sys.stderr, flush=True)
    report = {
        "cases": sum(f["cases"] for f in found.values()),
        "crashes": sum(len(f["crashes"]) for f in found.values()),
        "seconds": round(sum(f["seconds"] for f in found.values()), 1),
        "seed": options.seed,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "properties": {n: f | {"crashes": len(f["crashes"])} for n, f in found.items()},
    }
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        _print_table(report)
    sys.exit(1 if report["crashes"] else 0)


def _print_table(report: dict[str, Any]) -> None:
    print(f"{'property':<10}  {'cases':>6}  {'accepted':>8}  {'crashes':>7}  {'seconds':>7}")
    for name, row in [*report["properties"].items(), ("all", report)]:
        print(
            f"{name:<10}  {row['cases']:>6}  {row.get('accepted', ''):>8}  {row['crashes']:>7}  {row['seconds']:>7}"
        )
    packages = ", ".join(f"{name} {number}" for name, number in report["packages"].items())
    print(f"seed {report['seed']}, Python {report['python']}, {packages}")


if __name__ == "__main__":
    main()
