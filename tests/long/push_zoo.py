"""Publish a zoo on the loopback Hub, disturbed or not, then look whether all of it is there, once.

    python tests/long/push_zoo.py [--saes 240] [--faults 7] [--kills 10] [--xet] [--seed 0] [--json]

SAEs with the names of the paper's grid (and tiny weights) are pushed by the real ``fastzoo push``
through the real huggingface_hub client. With ``--faults N`` every N-th request fails in one of six
ways (0: none does); with ``--kills N`` the process is killed by SIGKILL at N moments spread over its
requests, and the same command given again. Then the Hub's own state is compared with the folders, all
is pulled into a fresh cache and compared again, the results dataset is loaded, and the zoo is pushed
once more, which may make no commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hub_server import LoopbackHub  # noqa: E402
from zoo_folders import make_zoo, train_small  # noqa: E402

from fastzoo.hub.registry import DATASET, known_files  # noqa: E402
from fastzoo.saes.names import SAEName, zoo_names  # noqa: E402
from fastzoo.saes.paper import paper_figures  # noqa: E402

NAMESPACE = "org"
PACKAGES = ("huggingface_hub", "hf_xet", "datasets", "torch")
LONGEST = 3600.0
"""Seconds after which a push that was not killed counts as stuck."""
LOAD = """
import json, sys
from datasets import load_dataset
print(json.dumps(list(load_dataset(sys.argv[1], split="train"))))
"""


class Zoo:
    """The folders, the Hub that they are published on, and the process that does it."""

    def __init__(self, hub: LoopbackHub, where: Path, names: list[SAEName], xet: bool) -> None:
        self.hub, self.where, self.names, self.xet = hub, where, names, xet
        self.folder = where / "zoo"

    def env(self, home: str) -> dict[str, str]:
        more = {"FASTZOO_RETRY_SECONDS": "0.02", "PYTHONPATH": str(ROOT)}
        return self.hub.env(self.where / home, xet=self.xet, **more)

    def start(self, home: str, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "fastzoo.cli.main", *command],
            cwd=self.where,
            env=self.env(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(self.where / "stderr").open("a"),
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """What a command that is left alone prints."""
        out, _ = process.communicate(timeout=LONGEST)
        if process.returncode:
            tail = (self.where / "stderr").read_text()[-2000:]
            raise SystemExit(f"exit code {process.returncode}: {tail}")
        return json.loads(out)

    def push(self) -> subprocess.Popen[str]:
        options = ("--namespace", NAMESPACE, "--space", "steering", "--json")
        return self.start("push", "push", str(self.folder), *options)

    def push_through_kills(self, moments: list[int]) -> int:
        """Push until it is done, killed when the Hub has seen so many requests; how often."""
        killed = 0
        while True:
            process = self.push()
            while killed < len(moments) and process.poll() is None:
                if len(self.hub.requests) >= moments[killed]:
                    process.kill()
                    killed += 1
                    break
                time.sleep(0.001)
            else:
                self.finish(process)
                return killed
            process.communicate()


def missing(zoo: Zoo) -> list[str]:
    """What the Hub lacks of the zoo: SAEs, files, items of the collection, rows of the registry."""
    hub, lacking = zoo.hub, []
    registry = json.loads(_held(zoo, "dataset", DATASET).get("registry.json", b'{"saes": {}}'))
    items = [item for collection in hub.collections.values() for item in _items(collection)]
    for name in zoo.names:
        held = _held(zoo, "model", str(name))
        entry = registry["saes"].get(str(name), {"files": {}})
        for path in known_files(name):
            local = zoo.folder / str(name) / path
            if not local.is_file():
                continue
            data = held.get(path)
            if data is None or (path != "README.md" and data != local.read_bytes()):
                lacking.append(f"{name}/{path}")
            elif entry["files"].get(path, {}).get("sha256") != hashlib.sha256(data).hexdigest():
                lacking.append(f"{path} of {name} in the registry")
        if ("model", f"{NAMESPACE}/{name}") not in items:
            lacking.append(f"{name} in the collection")
    others = (("dataset", f"{NAMESPACE}/{DATASET}"), ("space", f"{NAMESPACE}/fastzoo"))
    for item in (*others, ("paper", "2506.07691")):
        if item not in items:
            lacking.append(f"{item} in the collection")
    return lacking


def duplicates(zoo: Zoo) -> list[str]:
    """What is there more than once: commits of an SAE, repositories, collections, items."""
    hub, double = zoo.hub, []
    expected = {("model", f"{NAMESPACE}/{name}") for name in zoo.names}
    expected |= {("dataset", f"{NAMESPACE}/{DATASET}"), ("space", f"{NAMESPACE}/fastzoo")}
    double += [f"repository {key}" for key in hub.repos if key not in expected]
    for kind, repo_id in expected:
        if (kind, repo_id) in hub.repos:
            made = hub.commits(kind, repo_id)
            # The dataset and the Space belong to all; each push may bring them up to date.
            double += [f"commit of {repo_id}"] * (len(made) - 1) if kind == "model" else []
    titles = Counter(collection.title for collection in hub.collections.values())
    double += [f"collection {title}" for title, count in titles.items() if count > 1]
    items = Counter(item for collection in hub.collections.values() for item in _items(collection))
    return double + [f"item {item}" for item, count in items.items() if count > 1]


def out_of_order(zoo: Zoo) -> int:
    """Neighbours in the collection that stand the wrong way round."""
    place = {f"{NAMESPACE}/{name}": i for i, name in enumerate(zoo_names())}
    wrong = 0
    for collection in zoo.hub.collections.values():
        places = [place[item] for kind, item in _items(collection) if kind == "model"]
        wrong += sum(a > b for a, b in pairwise(places))
    return wrong


def not_pulled(zoo: Zoo) -> list[str]:
    """Files that a fresh cache does not give back byte by byte."""
    pull = zoo.start("fresh", "pull", "*", "--namespace", NAMESPACE, "--local-dir", "back", "--json")
    paths = {row["name"]: Path(row["path"]) for row in zoo.finish(pull)}
    wrong = []
    for name in map(str, zoo.names):
        for path, data in _held(zoo, "model", name).items():
            back = zoo.where / paths[name] / path if name in paths else None
            if path != ".gitattributes" and (not back or back.read_bytes() != data):
                wrong.append(f"{name}/{path}")
    return wrong


def wrong_rows(zoo: Zoo) -> list[str]:
    """What ``datasets.load_dataset`` gets wrong: rows, their order, the paper's columns."""
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, f"{NAMESPACE}/{DATASET}"],
        env=zoo.env("rows"),
        cwd=zoo.where,
        capture_output=True,
        text=True,
    )
    if loaded.returncode:
        return [loaded.stderr[-500:]]
    rows = json.loads(loaded.stdout)
    paper = {
        str(name): (figures.log2_mse, figures.log2_mse_special) for name, figures in paper_figures().items()
    }
    wrong = [] if [row["name"] for row in rows] == list(map(str, zoo_names())) else ["names"]
    published = set(map(str, zoo.names))
    for row in rows:
        if paper[row["name"]] != (row["paper_log2_mse"], row["paper_log2_mse_special"]):
            wrong.append(f"the paper's figures of {row['name']}")
        if (row["mse"] is not None) != (row["name"] in published):
            wrong.append(f"our figures of {row['name']}")
    return wrong


def _held(zoo: Zoo, kind: str, name: str) -> dict[str, bytes]:
    repo = zoo.hub.repos.get((kind, f"{NAMESPACE}/{name}"))
    return repo.commits[repo.branches["main"]] if repo and "main" in repo.branches else {}


def _items(collection: Any) -> list[tuple[str, str]]:
    return [(item.type, item.id) for item in collection.items]


def run(saes: int = 240, faults: int = 0, kills: int = 0, xet: bool = False, seed: int = 0) -> dict[str, Any]:
    """All of it; the figures that are printed."""
    names = random.Random(seed).sample(zoo_names(), saes)
    with tempfile.TemporaryDirectory() as folder, LoopbackHub() as hub:
        where = Path(folder)
        zoo = Zoo(hub, where, names, xet)
        make_zoo(zoo.folder, names, train_small(where / "model"))
        if faults:
            hub.every(faults)
        # Of seven or eight requests per SAE, so that the last kills hit the collection.
        moments = [int((i + 0.5) * 7.5 * saes / kills) for i in range(kills)]
        begin = time.monotonic()
        killed = zoo.push_through_kills(moments)
        seconds = time.monotonic() - begin
        sent = list(hub.requests)
        hub.faults.clear()
        report = {
            "saes": saes,
            "faults_every": faults,
            "faults_met": sum(request.fault for request in sent),
            "killed": killed,
            "xet": xet,
            "published": sum(bool(_held(zoo, "model", str(name)).get("config.json")) for name in names),
            "missing": missing(zoo),
            "duplicates": duplicates(zoo),
            "out_of_order": out_of_order(zoo),
            "requests_per_sae": round(sum(not request.is_storage for request in sent) / saes, 3),
            "uploads_per_sae": round(sum(request.is_storage for request in sent) / saes, 3),
            "seconds": round(seconds, 1),
        }
        commits = len(hub.commits())
        zoo.finish(zoo.push())
        report["commits_second_push"] = len(hub.commits()) - commits
        report["requests_second_push"] = len(hub.requests) - len(sent)
        report["not_pulled"] = not_pulled(zoo)
        report["other_hosts"] = len(hub.foreign)
        report["wrong_rows"] = wrong_rows(zoo)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--saes", type=int, default=240)
    parser.add_argument("--faults", type=int, default=0, help="every N-th request fails; 0: none")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--xet", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    report = run(asked.saes, asked.faults, asked.kills, asked.xet, asked.seed)
    lists = ("missing", "duplicates", "not_pulled", "wrong_rows")
    for key in lists:
        for line in report[key][:20]:
            print(f"{key}: {line}", file=sys.stderr)
        report[key] = len(report[key])
    report["versions"] = {package: version(package) for package in PACKAGES}
    report["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    if asked.json:
        print(json.dumps(report, indent=2))
    else:
        for key, value in report.items():
            print(f"{key}: {value}")
    bad = (*lists, "commits_second_push", "out_of_order", "other_hosts")
    sys.exit(any(report[key] for key in bad) or report["published"] != asked.saes)


if __name__ == "__main__":
    main()
