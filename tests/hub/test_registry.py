"""The registry: read from the loopback Hub, cached, offline, and from Hubs that mean no good."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from examples import NAME, OUTSIDE, published, registry
from hub_server import ROOT, LoopbackHub, Response, run

from fastzoo.core.errors import IntegrityError
from fastzoo.hub.registry import Registry, parse_registry, snapshot
from fastzoo.saes.names import parse_name

EXAMPLE = registry("org", published(NAME, l0=31.5, log2_mse=-8.5, d_sae=28672), published(OUTSIDE, l0=32.0))


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.foreign == []


def serve(hub: LoopbackHub, namespace: str, text: str | bytes | None = None) -> None:
    """Have ``namespace`` publish a registry (by default the example)."""
    if text is None:
        text = registry(namespace, published(NAME, namespace, l0=31.5)).to_text()
    data = text.encode() if isinstance(text, str) else text
    hub.add("dataset", f"{namespace}/fastzoo-results", {"registry.json": data})


# --- text --------------------------------------------------------------------------------------


def test_text_is_read_back_and_always_the_same() -> None:
    text = EXAMPLE.to_text()
    assert parse_registry(text, "here") == EXAMPLE
    reverse = Registry("org", EXAMPLE.collection, dict(reversed(EXAMPLE.saes.items())))
    assert reverse.to_text() == text
    assert EXAMPLE.saes[parse_name(NAME)].weights_sha256 == "4a" * 32
    assert snapshot().namespace == "fastzoo"


def example(**changes: Any) -> dict[str, Any]:
    """The example's JSON with values of its first SAE replaced."""
    value: dict[str, Any] = json.loads(EXAMPLE.to_text())
    value["saes"] = {NAME: value["saes"][NAME] | changes}
    return value


def files(path: str, **facts: Any) -> dict[str, Any]:
    found = example()["saes"][NAME]["files"]
    return {"files": {**found, path: {"size": 1, "sha256": "0" * 64, **facts}}}


WEIGHTS = "blocks.18.hook_resid_post/sae_weights.safetensors"
HOSTILE: dict[str, Any] = {
    "not JSON": "<html>",
    "empty": "",
    "not UTF-8": b'{"format": 1, "namespace": "\xff"}',
    "deep": "[" * 100_000,
    "many digits": '{"format": ' + "9" * 5000 + "}",
    "a list": [],
    "another format": {**example(), "format": 2},
    "no namespace": {**example(), "namespace": None},
    "a namespace that climbs": {**example(), "namespace": "../x"},
    "a collection elsewhere": {**example(), "collection": "http://x/y"},
    "saes as a list": {**example(), "saes": [1]},
    "no such name": {**example(), "saes": {"../../etc/passwd": example()["saes"][NAME]}},
    "a long name": {**example(), "saes": {"x" * 90 + "-L1-8x-topk": {}}},
    "an SAE as text": {**example(), "saes": {NAME: "x"}},
    "a repository that climbs": example(repo_id="../../x"),
    "no sha": example(sha="main"),
    "a file that climbs": example(**files("../../.bashrc")),
    "a file of another layer": example(**files("blocks.19.hook_resid_post/cfg.json")),
    "a pickle": example(**files("ae.pt")),
    "no weights": example(files={}),
    "negative size": example(**files(WEIGHTS, size=-1)),
    "huge size": example(**files(WEIGHTS, size=10**400)),
    "size as a float": example(**files(WEIGHTS, size=1.0)),
    "size as truth": example(**files(WEIGHTS, size=True)),
    "a short hash": example(**files(WEIGHTS, sha256="ab")),
    "figures as a list": example(figures=[1]),
    "a nested figure": example(figures={"l0": {"value": 1}}),
    "NaN": json.dumps(example(figures={"l0": float("nan")})),
    "infinity": json.dumps(example(figures={"l0": 12345.0})).replace("12345.0", "1e999"),
    "a huge number": example(figures={"l0": 10**400}),
    "truth": example(figures={"l0": True}),
    "a lone surrogate": example(figures={"base_model": "\ud800"}),
    "a terminal's escape": example(figures={"base_model": "\x1b[2J"}),
    "a long text": example(figures={"base_model": "x" * 1001}),
}


def as_text(value: Any) -> str | bytes:
    return value if isinstance(value, str | bytes) else json.dumps(value)


@pytest.mark.parametrize("what", HOSTILE)
def test_what_cannot_be_is_refused_in_one_line(what: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_registry(as_text(HOSTILE[what]), "results of org")
    said = str(caught.value)
    assert said.startswith("results of org is no registry of fastzoo's: ")
    assert said.isprintable() and len(said) < 400 and caught.value.exit_code == 6


# --- the Hub -----------------------------------------------------------------------------------

READ = """
import os, time
from pathlib import Path
from fastzoo.core.errors import FastzooError
from fastzoo.hub.registry import forget_age, last_seen, read_registry; from fastzoo.hub.client import state_folder
def read(namespace, **options):
    said = []
    try:
        found = read_registry(namespace, say=said.append, **options)
        print(json.dumps([found.namespace, sorted(map(str, found.saes)), said]))
    except FastzooError as error:
        print(json.dumps([type(error).__name__, error.exit_code, str(error), said]))
def age(namespace, seconds, file="registry.json"):
    at = time.time() - seconds
    os.utime(state_folder(namespace) / file, (at, at))
"""


def test_one_request_an_hour(hub: LoopbackHub, tmp_path: Path) -> None:
    serve(hub, "org")
    hub.requests.clear()
    code = """
    read("org"), read("org"), age("org", 3500), read("org"), age("org", 3700), read("org")
    read("org", newest=True), read("org"), forget_age("org"), read("org")
    age("org", -7200), read("org")
    (state_folder("org") / "registry.json").write_text("{"), read("org")
    """
    found = run(hub, tmp_path, READ + "\n".join(x.strip() for x in code.splitlines()))
    assert found == [["org", [NAME], []]] * 9
    assert [str(r) for r in hub.requests] == [
        "GET /datasets/org/fastzoo-results/resolve/main/registry.json"
    ] * 6
    assert hub.requests[0].headers["user-agent"].startswith("fastzoo/")

    # Later, without a network: as it was last seen, however old; the default namespace's snapshot.
    code = 'age("org", 9e6); read("org"); read(None); read("other"); print(json.dumps(len('
    code += 'last_seen("org").saes)))'
    hub.requests.clear()
    offline = run(hub, tmp_path, READ + code, HF_HUB_OFFLINE="1")
    assert offline[:2] == [["org", [NAME], []], ["fastzoo", [], []]] and offline[3] == 1
    assert offline[2][:2] == ["HubError", 5] and "HF_HUB_OFFLINE" in offline[2][2]
    assert hub.requests == []


def test_a_hub_that_fails_is_left_alone_for_ten_minutes(hub: LoopbackHub, tmp_path: Path) -> None:
    serve(hub, "seen")
    serve(hub, "unseen")
    run(hub, tmp_path, READ + 'read("seen"); age("seen", 7300)')
    hub.requests.clear()
    for namespace in ("seen", "unseen"):
        hub.fail(f"/{namespace}/", lambda request: Response(503), times=2)
    hub.fail("/silent/", lambda request: time.sleep(3) or Response(503))
    hub.fail("/cut/", lambda request: Response(200, b"x" * 99, sent=9))
    code = """
import fastzoo.hub.registry
fastzoo.hub.registry.TIMEOUT = 0.5
read("silent"), read("cut")
fastzoo.hub.registry.TIMEOUT = 20.0
for namespace in ("seen", "unseen"):
    for again in range(2):
        read(namespace)
        read(namespace)
        age(namespace, 601, "asked")
    read(namespace)
"""
    lines = run(hub, tmp_path, READ + code)
    hub.faults.clear()
    (silent, cut), seen, unseen = lines[:2], lines[2:7], lines[7:]
    assert silent[:2] == cut[:2] == ["HubError", 5]
    assert "cannot reach" in silent[2] and "cannot reach" in cut[2]
    assert [line[:2] for line in seen] == [["seen", [NAME]]] * 5 and seen[4][2] == []
    for i, (_, _, said) in enumerate(seen[:4]):
        assert "answered 503" in said[0] and said[0].endswith("as last seen 2 hours ago")
        assert ("within the last ten minutes" in said[0]) is (i % 2 == 1)
    assert [line[:2] for line in unseen[:4]] == [["HubError", 5]] * 4
    assert "answered 503" in unseen[1][2] and "within the last ten minutes" in unseen[1][2]
    assert unseen[4] == ["unseen", [NAME], []]
    assert len(hub.asked("/seen/")) == len(hub.asked("/unseen/")) == 3


def test_what_is_not_there_or_not_to_be_seen(hub: LoopbackHub, tmp_path: Path) -> None:
    serve(hub, "private")
    hub.repos["dataset", "private/fastzoo-results"].private = True
    hub.add("dataset", "bare/fastzoo-results", {"README.md": b"nothing yet"})
    hub.requests.clear()
    code = """
    read("gone"), read("gone"), read("bare")
    token = os.environ.pop("HF_TOKEN")
    read("private")
    os.environ["HF_TOKEN"] = token
    read("private"), read("private", newest=True), read("../x"), read(None)
    """
    gone, again, bare, hidden, kept, private, climbing, default = run(
        hub, tmp_path, READ + "\n".join(x.strip() for x in code.splitlines())
    )
    assert gone[:2] == again[:2] == bare[:2] == hidden[:2] == kept[:2] == ["NotFoundError", 3]
    assert "gone/fastzoo-results" in gone[2] and len(hub.asked("/gone/")) == 1
    assert private == ["private", [NAME], []]
    assert climbing[:2] == ["InputError", 2]
    # Nothing was ever published there and nothing is known: nobody needs to be told.
    assert default == ["fastzoo", [], []]


@pytest.mark.parametrize(
    ("token", "endpoint"),
    [("hf_se\x00cret", None), ("hf_sécret", None), ("hf_secret", "http://127.0.0.1:9")],
    ids=["control character", "not ASCII", "unreachable"],
)
def test_no_token_is_shown_even_in_tracebacks(
    hub: LoopbackHub, tmp_path: Path, token: str, endpoint: str | None
) -> None:
    home = tmp_path / "hf"
    home.mkdir()
    (home / "token").write_text(token, encoding="utf-8")
    env = {"HF_TOKEN": "", "FASTZOO_DEBUG": "1", "HF_ENDPOINT": endpoint or hub.endpoint}
    line = ["list", "--refresh", "--namespace", "x"] if endpoint is None else ["info", "hf:org/x"]
    done = subprocess.run(
        [sys.executable, "-m", "fastzoo.cli.main", *line, "--debug"],
        env=hub.env(tmp_path, **env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout + done.stderr
    assert done.returncode in (0, 4, 5) and "cret" not in said
    if done.returncode:
        assert "Traceback" in said and done.stderr.splitlines()[-1].startswith("error: ")
    else:
        assert "what is published is not shown" in said


def test_hostile_registries_are_refused_or_the_last_good_one_used(hub: LoopbackHub, tmp_path: Path) -> None:
    serve(hub, "turned")
    assert run(hub, tmp_path, READ + 'read("turned")') == [["turned", [NAME], []]]
    bad = {"turned": HOSTILE["NaN"], "big": b" " * (20 << 20), "latin": b"\xe9" * 20}
    bad |= {"climbs": as_text(HOSTILE["a file that climbs"]), "fastzoo": b"[]"}
    for namespace, text in bad.items():
        serve(hub, namespace, text)
    code = 'forget_age("turned"); [read(n) for n in sys.argv[1:]]'
    hub.requests.clear()
    turned, big, latin, climbs, default = run(hub, tmp_path, READ + code, *bad)
    assert turned[:2] == ["turned", [NAME]] and "figures: the value of l0" in turned[2][0]
    for refused, reason in (
        (big, "more than 16777216 bytes"),
        (latin, "Invalid JSON"),
        (climbs, "the file ../../.bashrc"),
    ):
        assert refused[:2] == ["IntegrityError", 6] and reason in refused[2]
        assert refused[2].isprintable()
    assert default[:2] == ["fastzoo", []] and "no registry" in default[2][0]
    # The large one came from another host, which is not told the token.
    (elsewhere,) = [r for r in hub.requests if r.path.startswith("/objects/")]
    assert elsewhere.token is None
