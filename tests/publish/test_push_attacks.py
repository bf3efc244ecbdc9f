"""Publishing against the grain: hand-made changes, races, and a Hub that answers nonsense."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import ROOT, Request, Response, as_json, run
from hub_server.collections import Collection
from publisher import NAMES, Person
from zoo_folders import make_zoo

from fastzoo.core.errors import InputError
from fastzoo.hub.files import HubFile
from fastzoo.hub.registry import DATASET, FILE, Published, Registry, known_files
from fastzoo.publish.candidates import check
from fastzoo.publish.collection import TITLE

PUSH_UNTIL_DONE = """
import fastzoo.hub.retries
from fastzoo.publish.candidates import candidates
from fastzoo.publish.report import PushOptions
from fastzoo.publish.push import push
fastzoo.hub.retries.SILENCE = 0.4
for _ in range(20):
    error = push(candidates(sys.argv[1:]), PushOptions(namespace="org")).first_error
    print(json.dumps([type(error).__name__, str(error)]))
    if error is None:
        break
"""


def html(request: Request) -> Response:
    return Response(200, b"<html>please log in</html>", {"Content-Type": "text/html"})


def nothing(request: Request) -> Response:
    return as_json({})


def test_folders_that_cannot_be_published(tmp_path: Path, model_run: Path) -> None:
    name = NAMES[0]
    make_zoo(tmp_path, [name], model_run)
    folder = tmp_path / str(name)

    def refused(file: str, content: bytes | None, *says: str) -> None:
        path = folder / file
        before = path.read_bytes()
        path.unlink()
        if content is None:
            os.mkfifo(path)
        else:
            path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            check(folder)
        assert all(part in str(caught.value) for part in (str(folder), *says)), caught.value
        path.unlink()
        path.write_bytes(before)

    card, metrics = (folder / "README.md").read_bytes(), (folder / "metrics.json").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    refused("README.md", b"\xff\xfe" + card, "README.md is not text in UTF-8")
    refused("README.md", card * 2000, "README.md has more than")
    refused("README.md", None, "README.md is missing")
    refused("metrics.json", None, "metrics.json")
    refused("metrics.json", metrics.replace(b'"value": ', b'"x": NaN, "value": ', 1), "holds NaN")
    refused("config.json", json.dumps({**config, "base_model": None}).encode(), "no base model")
    secret = b"hf_" + b"abcdefghijklmnopqrstuvwxyzABCDEFGH"
    refused("training_log.csv", b"step,loss\n" * 10**6 + secret, "training_log.csv", "token")
    refused(f"{name.hook_folder}/cfg.json", b'{"a": "' + secret + b'"}', "cfg.json", "token")
    assert check(folder).name == name


@pytest.mark.parametrize(
    ("file", "xet"), [("metrics.json", False), (f"{NAMES[0].hook_folder}/sae_weights.safetensors", True)]
)
def test_a_file_that_changes_while_it_is_published(person: Person, file: str, xet: bool) -> None:
    first, second = NAMES[:2]
    path = person.where / "zoo" / str(first) / file

    def change(request: Request) -> None:
        if "preupload" in request.path and str(first) in request.path:
            path.write_bytes(path.read_bytes()[:-1] + b" ")

    person.hub.faults.append(change)
    folders = [f"zoo/{name}" for name in (first, second)]
    report = person.push(*folders, code=2, HF_HUB_DISABLE_XET=str(int(not xet)))
    assert f"{file}' was changed while" in report["saes"][str(first)]["error"]
    assert report["saes"][str(second)]["status"] == "published"
    registry = json.loads(person.held("dataset", DATASET)[FILE])
    assert set(registry["saes"]) == {str(second)}


def test_a_hub_that_answers_nonsense_or_not_at_all(person: Person) -> None:
    hub = person.hub
    once = (
        ("GET", "/api/models$", html),
        ("POST", "/api/repos/create", nothing),
        ("POST", "/preupload/", html),
        ("POST", "/commit/", nothing),
        ("GET", "/api/models/", html),
        ("GET", "/api/datasets/", nothing),
        ("POST", "/api/collections$", html),
        ("GET", "/api/collections/", nothing),
    )
    met = [hub.fail(pattern, how, method=method, times=1) for method, pattern, how in once]

    def silent(request: Request) -> Response:
        time.sleep(0.8)
        return Response(0)

    met.append(hub.fail("/api/models$", silent, times=1))
    answers = run(hub, person.where, PUSH_UNTIL_DONE, str(person.where / "zoo" / str(NAMES[0])))
    assert [len(requests) for requests in met] == [1] * len(met)
    assert answers[-1] == ["NoneType", "None"]
    failures = answers[:-1]
    assert len(failures) == len(once)
    assert all(kind == "HubError" and "does not come from a Hub" in text for kind, text in failures), failures
    assert person.items()[-1] == ("model", f"org/{NAMES[0]}") and person.commits("model") == 1
    assert len(hub.collections) == 1


def test_what_other_machines_do_in_the_same_moment(person: Person) -> None:
    """Another one fills the results dataset just made, and makes the collection of the same title."""
    hub, theirs = person.hub, NAMES[3]
    files = {path: HubFile(path, 1, "0" * 64) for path in known_files(theirs)}
    entry = Published(theirs, f"org/{theirs}", "1" * 40, files, {"mse": 1.0})
    elsewhere = "evil/fastzoo-" + "a" * 24
    registry = Registry("org", elsewhere, {theirs: entry}).to_text().encode()

    def race(request: Request) -> Response | None:
        if request.method != "POST":
            return None
        if request.path == "/api/repos/create" and request.json().get("type") == "dataset":
            answer = hub.undisturbed(request)
            hub.add("dataset", f"org/{DATASET}", {FILE: registry})
            return answer
        if request.path == "/api/collections":
            hub.collections["0" * 24] = Collection("0" * 24, "org", TITLE)
        return None

    hub.faults.append(race)
    ours = f"zoo/{NAMES[0]}"
    report = person.push(ours)
    held = json.loads(person.held("dataset", DATASET)[FILE])
    assert set(held["saes"]) == {str(NAMES[0]), str(theirs)}
    assert list(hub.collections) == ["0" * 24] and report["collection"] == held["collection"]
    # Their model's repository is not there; that is said, and the rest is done.
    assert f"org/{theirs} is not on the Hub" in person.stderr
    assert person.items()[-1] == ("model", f"org/{NAMES[0]}")
    assert not hub.asked("evil")

    # A repository that was deleted, in a listing that does not know it yet; and a collection that a
    # machine remembers, while all the others use another one.
    hub.faults.clear()
    gone = hub.repos.pop(("model", f"org/{NAMES[0]}"))
    late = {"id": gone.id, "_id": "x", "sha": gone.branches["main"], "private": False}
    hub.fail("/api/models$", lambda request: as_json([late]))
    metrics = person.where / ours / "metrics.json"
    metrics.write_text(metrics.read_text() + "\n")
    moved = Collection("f" * 24, "org", "The one that all use")
    hub.collections[moved.id] = moved
    files = {**person.held("dataset", DATASET)}
    files[FILE] = files[FILE].replace(held["collection"].encode(), moved.slug.encode())
    hub.add("dataset", f"org/{DATASET}", files)
    report = person.push(ours)
    assert report["saes"][str(NAMES[0])]["status"] == "published"
    assert report["collection"] == moved.slug and len(hub.collections) == 2


def test_a_damaged_registry_stops_only_itself(person: Person) -> None:
    person.hub.add("dataset", f"org/{DATASET}", {FILE: b'{"format": 1, "saes'})
    report = person.push("zoo", code=6)
    assert {entry["status"] for entry in report["saes"].values()} == {"published"}
    assert f"org/{DATASET}/{FILE}" in report["first_error"]
    assert "delete it there" in report["first_error"]
    assert person.held("dataset", DATASET)[FILE] == b'{"format": 1, "saes'


def test_interrupted_offline_and_without_a_place_for_the_journal(person: Person) -> None:
    person.hub.slow(0.2)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastzoo.cli.main", "push", "zoo", "--namespace", "org", "--json"],
        cwd=person.where,
        env=person.hub.env(person.where / "home", PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(person.hub.requests) < 5 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert err.splitlines()[-1] == "stopped by SIGINT; the same command goes on"
    assert "Traceback" not in err

    person.push("zoo", code=5, HF_HUB_OFFLINE="1")
    assert "unset HF_HUB_OFFLINE" in person.stderr and "local folder" not in person.stderr
    (person.where / "file").write_text("")
    person.home = "file"
    person.push("zoo", code=10)
    assert "HF_HOME" in person.stderr and "Traceback" not in person.stderr


def test_a_rate_limit_of_an_hour_is_not_waited_for(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    from httpx2 import Request as Asked
    from httpx2 import Response as Answer

    from fastzoo.hub.retries import SILENCE, RateLimit

    naps: list[float] = []
    monkeypatch.setattr("fastzoo.hub.retries.nap", naps.append)
    limit, asked = RateLimit(), Asked("POST", "https://huggingface.co/api/repos/create")
    limit.after(Answer(200, headers={"RateLimit": '"api";r=0;t=3600'}))
    limit.before(asked)
    assert naps == [300]
    assert set(asked.extensions["timeout"].values()) == {SILENCE}
