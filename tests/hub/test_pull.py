"""``fastzoo pull`` through the command line and the real client, against the loopback Hub."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from forked import run_python
from hub_server import PRELUDE, ROOT, LoopbackHub, Request, Response, sha256
from hub_server.collections import Collection, Item, new_id

from fastzoo.hub.files import HubFile
from fastzoo.hub.registry import DATASET, FILE, Published, Registry
from fastzoo.saes.names import SAEName, parse_name

NAME = "qwen2.5-7b-L18-8x-jumprelu"
HOOK = "blocks.18.hook_resid_post"
WEIGHTS = f"{HOOK}/sae_weights.safetensors"

# Runs the commands given as JSON one after the other, each as its own process would.
COMMANDS = """
import contextlib, io, json, sys
from fastzoo.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv, out, err, code = ["fastzoo", *arguments], io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.foreign == []


def run(hub: LoopbackHub, home: Path, code: str, *args: str, **env: str) -> list[Any]:
    """Run ``code`` as a client of ``hub`` in the folder ``home``; it prints JSON, line by line."""
    env = {"FASTZOO_RETRY_SECONDS": "0.01", "FASTZOO_NAMESPACE": "org", **env}
    env = hub.env(home, PYTHONPATH=str(ROOT), **env)
    done = run_python(PRELUDE + code, *args, env=env, cwd=home)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def cli(hub: LoopbackHub, home: Path, *commands: str, **env: str) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each command line, given without ``fastzoo``."""
    asked = json.dumps([command.split() for command in commands])
    return [tuple(result) for result in run(hub, home, COMMANDS, asked, **env)]


def ours(name: SAEName, weights: bytes = b"") -> dict[str, bytes]:
    """The files of a published SAE; they need not be loadable to be pulled."""
    folder = name.hook_folder
    return {
        "README.md": f"# {name}\n".encode(),
        "config.json": b'{"library": "fastzoo"}',
        "metrics.json": b"{}",
        "training_log.csv": b"step\n",
        "training.png": b"picture of " + str(name).encode(),
        f"{folder}/cfg.json": b'{"architecture": "jumprelu"}',
        f"{folder}/sae_weights.safetensors": weights or str(name).encode() * 50,
        f"{folder}/sparsity.safetensors": b"sparsity of " + str(name).encode(),
    }


def publish(hub: LoopbackHub, *names: str, weights: bytes = b"") -> dict[str, dict[str, bytes]]:
    """Publish SAEs in the namespace org, with its registry; the files of each."""
    files = {name: ours(parse_name(name), weights) for name in names}
    register(hub, files)
    return files


def register(hub: LoopbackHub, files: Mapping[str, Mapping[str, bytes]]) -> None:
    saes = {}
    for text, content in files.items():
        name, repo_id = parse_name(text), f"org/{text}"
        sha = hub.add("model", repo_id, {**content, "evil.pkl": b"x", "extra/x.txt": b"x"})
        facts = {path: HubFile(path, len(data), sha256(data)) for path, data in content.items()}
        saes[name] = Published(name, repo_id, sha, facts, {})
    text = Registry("org", "org/zoo-0123456789abcdef01234567", saes).to_text()
    hub.add("dataset", f"org/{DATASET}", {FILE: text.encode()})


def content(folder: str | Path) -> dict[str, bytes]:
    root = Path(folder)
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def asked_since(hub: LoopbackHub, count: int) -> list[str]:
    return [str(request) for request in hub.requests[count:]]


# --- names -------------------------------------------------------------------------------------

TWELVE = [
    f"qwen2.5-7b-L{layer}-8x-jumprelu{method}"
    for layer in (4, 12, 18, 20)
    for method in ("", "-bt-f", "-bt-p")
]


def test_twelve_in_parallel_and_again_for_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    files = publish(hub, *TWELVE, "llama-3.2-1b-L9-8x-standard")
    now, most = [0], [0]

    def slowly(request: Request) -> None:
        if request.method == "GET" and "/objects/" in request.path:
            with hub.lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.05)
            with hub.lock:
                now[0] -= 1

    hub.faults.append(slowly)
    planned, pulled = cli(
        hub, tmp_path, "pull QWEN2.5-*-jumprelu* --dry-run --json", "pull qwen2.5-*-jumprelu*"
    )
    total = sum(len(data) for name in TWELVE for data in files[name].values())
    rows = json.loads(planned[1])
    assert sum(row["download_bytes"] for row in rows) == total
    assert not any(file["here"] for row in rows for file in row["files"])
    assert planned[2].startswith("12 SAEs, ") and "of which" in planned[2]

    code, out, err = pulled
    folders = out.splitlines()
    assert code == 0 and [row["name"] for row in rows] == sorted(TWELVE, key=parse_name)
    for row, folder in zip(rows, folders, strict=True):
        assert content(folder) == files[row["name"]]
        assert Path(folder).name == row["revision"]
    assert err.count("\n") == 1 and "12 SAEs: 96 files" in err
    assert 4 <= most[0] <= 8
    # Of the first command one request in all; then a HEAD and a GET for each file, no listing.
    kinds = [r.split("/")[0] for r in map(str, hub.requests)]
    assert len(hub.asked("registry.json")) == 1 and hub.asked("^HEAD .*registry") == []
    assert kinds.count("HEAD ") == 96 and hub.asked("/api/") == []
    large = {r.split("?")[0] for r in hub.asked("GET /objects/")}
    assert len(large) == len(hub.asked("GET /objects/")) == 36
    # What is largest comes first.
    first = hub.asked("^HEAD ")[:4]
    assert all("sae_weights" in request for request in first)

    count = len(hub.requests)
    again, as_json, there, copied, copied_again, found, revised = cli(
        hub,
        tmp_path,
        "pull qwen2.5-*-jumprelu*",
        f"pull {NAME} --json",
        f"pull {NAME.upper()} --dry-run",
        f"pull {NAME} {NAME}-bt-f --local-dir zoo",
        f"pull {NAME} --local-dir zoo --json",
        f"pull hf:org/{NAME} hf:org/{NAME}@main --json",
        f"pull {NAME} --revision main",
    )
    assert again[:2] == (0, out) and again[2] == ""
    (report,) = json.loads(as_json[1])
    assert report["name"] == NAME and report["repo"] == f"org/{NAME}"
    assert report["bytes"] == sum(map(len, files[NAME].values())) and not report["downloaded_bytes"]
    assert {f["path"]: f["sha256"] for f in report["files"]} == {
        path: sha256(data) for path, data in files[NAME].items()
    }
    assert there[0] == 0 and there[1].count(" here\n") == 8 and "to fetch" not in there[1]
    # As real files, without a request and without what a download leaves beside them.
    assert copied[1].splitlines() == [f"zoo/{NAME}", f"zoo/{NAME}-bt-f"]
    assert content(tmp_path / "zoo") == {
        f"{name}/{path}": data for name in (NAME, f"{NAME}-bt-f") for path, data in files[name].items()
    }
    assert not any(path.is_symlink() for path in (tmp_path / "zoo").rglob("*"))
    assert json.loads(copied_again[1])[0]["downloaded_bytes"] == 0
    # A reference to a branch asks which commit it is, and once for the listing.
    assert [r["path"] for r in json.loads(found[1])] == [report["path"]]
    assert [r.split("/")[2] for r in asked_since(hub, count)] == ["models"] * 4
    assert revised[:2] == (0, report["path"] + "\n")


def test_exit_codes(hub: LoopbackHub, tmp_path: Path) -> None:
    publish(hub, NAME, f"{NAME}-bt-f")
    hub.add("model", "org/gated", ours(parse_name(NAME)))
    hub.repos["model", "org/gated"].gated = True
    hub.add("model", "org/private", ours(parse_name(NAME)))
    hub.repos["model", "org/private"].private = True
    hub.add("model", "org/huge", {"a/cfg.json": b" " * (2**24 + 1), "a/sae.safetensors": b"x"})
    hub.add("model", "org/old", {"README.md": b"of another time"})
    cases: dict[str, tuple[int, str]] = {
        "qwen2.5-7b-L4-8x-jumprelu": (3, "only in the paper's table"),
        "tiny-chat-L1-8x-jumprelu": (3, "not published by org"),
        "qwen2.5-7b-L18-8x-jumprelo": (2, f"Did you mean {NAME}"),
        "qwen2.5-*-standard": (3, "23 of the 240 of the paper's grid do"),
        "hf:org/missing": (3, "hf auth login"),
        f"hf:org/{NAME}@v9": (3, "no revision 'v9'"),
        f"{NAME} --revision v9": (3, "no revision 'v9'"),
        f"hf:org/{NAME}@v1 --revision v2": (2, "different revisions"),
        f"hf:org/{NAME}/layers.*": (3, "none of the 1 SAEs"),
        "hf:org/old": (3, "no SAE in org/old"),
        "hf:org/gated": (4, "is gated"),
        "hf:org/huge": (5, "16777217 bytes"),
        f"org/{NAME}": (2, "or write it as hf:org/repo"),
        "https://example.com/x": (2, "not the address of a collection"),
        "hf:collections/org": (2, "hf:collections/<namespace>/<slug>"),
        f"{NAME} --namespace ../x": (2, "not the name of a user"),
        f"{NAME} --namespace other": (
            3,
            "other publishes no SAEs: no dataset repository other/fastzoo-results",
        ),
        # Others are finished; the code is that of the first.
        f"hf:org/missing hf:org/gated hf:org/huge {NAME}": (3, "is gated"),
    }
    results = cli(hub, tmp_path, *(f"pull {case}" for case in cases))
    for (case, (code, part)), (found, out, err) in zip(cases.items(), results, strict=True):
        assert found == code and part in err, (case, found, err)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (3 if "hf:org/huge qwen" in case else 1), err
        assert out.count("\n") == ("hf:org/huge qwen" in case), case
    # A token that is none, and a repository that only its own may see.
    ((code, _, err),) = cli(hub, tmp_path, "pull hf:org/private", HF_TOKEN="hf_wrong")
    assert code == 4 and "hf auth login" in err, err
    ((code, _, err),) = cli(hub, tmp_path, "pull hf:org/private", HF_TOKEN="")
    assert code == 3 and "if it is private" in err, err
    ((code, _, err),) = cli(hub, tmp_path, "pull hf:org/private", HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 5 and "cannot reach" in err, err


def test_a_registry_that_is_behind_and_a_token_that_was_wrong(hub: LoopbackHub, tmp_path: Path) -> None:
    publish(hub, NAME)
    refused, listed = cli(hub, tmp_path, f"pull {NAME}", "list", HF_TOKEN="hf_wrong")
    assert refused[0] == 4 and listed[0] == 0 and "hf auth login" in listed[2], (refused, listed)
    ((code, out, err),) = cli(hub, tmp_path, f"pull {NAME} --dry-run")  # at once after logging in
    assert code == 0 and NAME in out, err
    del hub.repos["model", f"org/{NAME}"]  # and made anew, with other commits
    files = publish(hub, NAME, weights=b"new")
    for command in (f"pull {NAME} --local-dir zoo", f"pull {NAME}"):
        ((code, out, err),) = cli(hub, tmp_path, command)
        assert code == 0, err
        assert content(tmp_path / out.strip()) == files[NAME]


# --- bytes -------------------------------------------------------------------------------------


def test_wrong_bytes_on_the_wire_in_the_cache_and_in_a_folder(hub: LoopbackHub, tmp_path: Path) -> None:
    other = f"{NAME}-bt-f"
    files = publish(hub, NAME, other)
    right = files[NAME][WEIGHTS]
    hub.objects[sha256(right)] = right[::-1]  # the same size, so the client takes it
    both, local = cli(hub, tmp_path, f"pull {NAME} {other}", f"pull {NAME} --local-dir zoo")
    for code, _, err in (both, local):
        assert code == 6 and f"org/{NAME}" in err and f"{WEIGHTS} is not the file" in err
    assert content(both[1].strip()) == files[other]  # the other one is there all the same
    assert not (tmp_path / "zoo" / NAME).exists()

    hub.objects[sha256(right)] = right
    repaired, local = cli(hub, tmp_path, f"pull {NAME}", f"pull {NAME} --local-dir zoo")
    folder = Path(repaired[1].strip())
    assert content(folder) == content(tmp_path / "zoo" / NAME) == files[NAME]
    for path in (WEIGHTS, "metrics.json", "README.md"):
        cached = (folder / path).resolve()
        cached.write_bytes(b"y" * len(files[NAME][path]))
        for place in (path, "README.md"):
            (tmp_path / "zoo" / NAME / place).write_bytes(b"z" * len(files[NAME][place]))
        (tmp_path / "zoo" / NAME / "mine.txt").write_bytes(b"kept")
        damaged, again, local = cli(
            hub, tmp_path, f"pull {NAME}", f"pull {NAME}", f"pull {NAME} --local-dir zoo"
        )
        assert damaged[0] == 6 and f"{path} is not the file" in damaged[2]
        assert again[:2] == (0, f"{folder}\n") and content(folder) == files[NAME]
        assert local[0] == 0 and f"{path}' is not what was published and is replaced" in local[2]
        assert content(tmp_path / "zoo" / NAME) == {**files[NAME], "mine.txt": b"kept"}


def test_a_disk_that_is_full_or_refuses(hub: LoopbackHub, tmp_path: Path) -> None:
    publish(hub, NAME)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / NAME).write_bytes(b"in the way")
    # More than any disk has: nothing is asked for.
    name = f"{NAME}-bt-f"
    facts = {path: HubFile(path, 1 << 60, "0" * 64) for path in ours(parse_name(name))}
    facts = {p: HubFile(p, 9, f.digest) if p.endswith(".json") else f for p, f in facts.items()}
    huge = Published(parse_name(name), f"org/{name}", "1" * 40, facts, {})
    text = Registry("other", None, {huge.name: huge}).to_text()
    hub.add("dataset", f"other/{DATASET}", {FILE: text.encode()})
    full, a_file, in_the_way = cli(
        hub,
        tmp_path,
        f"pull {name} --namespace other",
        f"pull {NAME} --local-dir file",
        f"pull {NAME} --local-dir zoo",
    )
    assert full[0] == 10 and "nothing was fetched" in full[2]
    assert hub.asked(f"{name}/resolve") == []
    assert a_file[0] == 10 and "'file' cannot be written" in a_file[2]
    assert in_the_way[0] == 10 and f"zoo/{NAME}' cannot be written" in in_the_way[2]
    assert (tmp_path / "zoo" / NAME).read_bytes() == b"in the way"


def test_failures_that_pass_by_themselves(hub: LoopbackHub, tmp_path: Path) -> None:
    files = publish(hub, NAME, weights=b"w" * 21_000_000)  # the client reads 10 MiB at a time
    hub.fail("/objects/", lambda request: Response(503), times=2)
    hub.fail(f"/objects/{sha256(files[NAME][WEIGHTS])}", hub.cut, times=1)
    hub.fail("README.md", lambda request: Response(500), times=1)
    ((code, out, err),) = cli(hub, tmp_path, f"pull {NAME}")
    assert code == 0, err
    assert content(out.strip()) == files[NAME]
    assert "the server answered 503; trying again" in err
    assert any("range" in request.headers for request in hub.requests)  # resumed, then verified
    # A server that is down for one SAE alone costs that one.
    publish(hub, NAME, f"{NAME}-bt-f")
    hub.fail(f"{NAME}-bt-f/.*README", lambda request: Response(502))
    home = tmp_path / "other"
    home.mkdir()
    ((code, out, err),) = cli(hub, home, f"pull {NAME}*")
    assert code == 5 and len(out.splitlines()) == 1 and "answered 502" in err
    # One that is down for all is not asked for each in vain; what is in the cache needs none.
    publish(hub, *TWELVE)
    hub.faults.clear()
    home = tmp_path / "third"
    home.mkdir()
    assert cli(hub, home, f"pull {NAME}")[0][0] == 0
    hub.fail("/objects/|/resolve/(?!main)", lambda request: Response(502))
    ((code, out, err),) = cli(hub, home, f"pull {' '.join(TWELVE)} --local-dir zoo")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (5, f"zoo/{NAME}\n") and len(errors) == 11, err
    assert 1 <= err.count("was given up, as the Hub could not be reached for others") <= 8


def test_hostile_listing_writes_nothing_outside(hub: LoopbackHub, tmp_path: Path) -> None:
    bad = ["../../../../out", ".git/hooks", "a/../../b", "/abs", "C:\\x", "a\\b", "x" * 4000, "a."]
    files = {f"{folder}/{name}": b"{}" for folder in bad for name in ("cfg.json", "sae.safetensors")}
    hub.add("model", "org/hostile", files)
    twins = [f"{folder}/{name}" for folder in ("Layer", "layer") for name in ("params.npz",)]
    hub.add("model", "org/twins", {path: path.encode() for path in twins})
    scope = {"l/a/params.npz": b"a", "l/b/params.npz": b"b", "m/params.npz": b"m", "m/ae.pt": b"x"}
    hub.add("model", "org/scope", scope)
    refused, clash, pattern, whole, _ = cli(
        hub,
        tmp_path,
        "pull hf:org/hostile/* --local-dir zoo",
        "pull hf:org/twins/* --local-dir zoo",
        "pull hf:org/scope/l/* --local-dir zoo",
        "pull hf:org/scope/* --json",
        "pull hf:org/scope/m --local-dir zoo",
    )
    assert refused[0] == 3 and "none of the 0 SAEs" in refused[2]
    assert clash[0] == 2 and "would both be written" in clash[2]
    assert pattern[1].splitlines() == ["zoo/scope/l/a", "zoo/scope/l/b"]
    assert [row["name"] for row in json.loads(whole[1])] == ["scope/l/a", "scope/l/b", "scope/m"]
    assert content(tmp_path / "zoo") == {f"scope/{p}": d for p, d in scope.items() if p != "m/ae.pt"}
    assert {path.name for path in tmp_path.iterdir()} == {"zoo", "hf"}
    assert hub.asked("hostile/resolve|twins/resolve|ae.pt") == []


# --- collections -------------------------------------------------------------------------------


def test_collections_and_xet(hub: LoopbackHub, tmp_path: Path) -> None:
    files = publish(hub, NAME, f"{NAME}-bt-f")
    hub.add("model", "org/scope", {"params.npz": b"s"})
    hub.add("model", "org/base-model", {"config.json": b"{}", "model.safetensors": b"x"})
    hub.add("dataset", "org/data", {"a.txt": b"x"})

    def collection(title: str, *items: tuple[str, str]) -> str:
        made = Collection(new_id(hub), "org", title)
        made.items = [Item(new_id(hub), kind, name) for kind, name in items]
        hub.collections[made.id] = made
        return made.slug

    def id_of(slug: str) -> tuple[str, str]:
        return "collection", slug[-24:]

    deepest = collection("Deepest", ("model", "org/nowhere"))
    inner = collection("Inner", ("model", f"org/{NAME}-bt-f"), id_of(deepest))
    whole = collection("Whole", ("model", f"org/{NAME}"), ("dataset", "org/data"), id_of(inner))
    other = collection("Others", ("model", "org/scope"), ("model", "org/base-model"))
    none = collection("None", ("dataset", "org/data"))
    # Once these bytes are in the Xet store, the Hub offers them from there.
    upload = """
import sys
from huggingface_hub import HfApi
HfApi().upload_file(path_or_fileobj=sys.argv[1].encode(), path_in_repo="a.bin", repo_id="org/scope")
"""
    weights = files[NAME][WEIGHTS].decode()
    run(hub, tmp_path, upload, weights, HF_HUB_DISABLE_XET="0")
    count = len(hub.requests)
    sources = (f"hf:collections/{whole}", f"{hub.endpoint}/collections/{whole}")
    xet, again, others, empty, gone = cli(
        hub,
        tmp_path,
        *(f"pull {source}" for source in sources),
        f"pull hf:collections/{other} --json",
        f"pull hf:collections/{none}",
        f"pull hf:collections/org/gone-{'0' * 24}",
        HF_HUB_DISABLE_XET="0",
    )
    folders = xet[1].splitlines()
    assert [content(f) for f in folders] == [files[NAME], files[f"{NAME}-bt-f"]], xet
    assert xet[2].count("\n") == 1 and again == (0, xet[1], "")
    # What the registry pins is not listed again, and what is in the Xet store came from there.
    asked = [r for r in asked_since(hub, count) if "/api/models" in r and NAME in r]
    assert len(asked) == 1 and "xet-read-token" in asked[0]
    assert hub.asked(f"GET /objects/{sha256(files[NAME][WEIGHTS])}") == []
    assert others[0] == 0 and "note: left out: no SAE in org/base-model" in others[2]
    assert [row["name"] for row in json.loads(others[1])] == ["scope"]
    assert empty[0] == 3 and "holds no model" in empty[2]
    assert gone[0] == 3 and "no collection org/gone" in gone[2]


def test_a_wildcard_leaves_out_saes_of_other_places(hub: LoopbackHub, tmp_path: Path) -> None:
    names = ("layers.3", "layers.4", "layers.3.mlp", "embed_tokens")
    files = {f"{n}/{file}": b"{}" for n in names for file in ("cfg.json", "sae.safetensors")}
    hub.add("model", "org/sparsify", files)
    some, none = cli(hub, tmp_path, "pull hf:org/sparsify/*", "pull hf:org/sparsify/*.mlp")
    assert some[0] == 0 and [Path(line).name for line in some[1].splitlines()] == ["layers.3", "layers.4"]
    assert some[2].count("note: left out: ") == 2 and "'layers.3.mlp' is not the residual" in some[2]
    assert none[0] == 2 and "'layers.3.mlp' is not the residual" in none[2] and none[1] == ""


# --- without a network -------------------------------------------------------------------------


def test_offline_from_the_cache_verified(hub: LoopbackHub, tmp_path: Path) -> None:
    files = publish(hub, NAME, f"{NAME}-bt-f")
    hub.add("model", "org/scope", {"l/params.npz": b"small", "notes.txt": b"x"}, tag="v1")
    hub.add("model", "org/layers", {"l/cfg.json": b"{}", "l/sae.safetensors": b"w"})
    online = cli(hub, tmp_path, f"pull {NAME} hf:org/scope@v1 hf:org/layers")
    assert online[0][0] == 0, online
    count = len(hub.requests)
    sources = f"{NAME} hf:org/scope@v1 hf:org/layers"
    commands = [f"pull {sources}", f"pull {NAME}-bt-f", "pull hf:org/scope", "pull hf:org/other"]
    for env in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": hub.endpoint}):
        if "HF_ENDPOINT" in env:
            hub.faults.append(lambda request: Response(0))
        known, *unknown = cli(hub, tmp_path, *commands, **env)
        assert known[:2] == online[0][:2], known
        for code, out, err in unknown:
            assert (code, out) == (5, "") and err.splitlines()[-1].startswith("error: "), err
    hub.faults.clear()
    assert [r for r in asked_since(hub, count) if f"{NAME}/resolve" in r] == []
    # git's blob ids and sha256 of the remembered listing still tell what is damaged.
    for source, path in (("hf:org/layers", "cfg.json"), ("hf:org/scope@v1", "params.npz")):
        ((_, out, _),) = cli(hub, tmp_path, f"pull {source}", HF_HUB_OFFLINE="1")
        cached = Path(out.strip(), path).resolve()
        cached.write_bytes(b"#" * cached.stat().st_size)
        damaged, gone = cli(hub, tmp_path, f"pull {source}", f"pull {source}", HF_HUB_OFFLINE="1")
        assert damaged[0] == 6 and gone[0] == 5, (damaged, gone)
    assert files[NAME] == content(online[0][1].splitlines()[0])


# --- ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["", "--local-dir zoo"])
def test_killed_and_interrupted_in_mid_download(hub: LoopbackHub, tmp_path: Path, where: str) -> None:
    files = publish(hub, NAME, weights=b"w" * 3_000_000)
    go_on = threading.Event()

    def stall(request: Request) -> Response:
        """Half of the file, and then nothing for long."""
        go_on.wait(20)
        return hub.cut(request)

    met = hub.fail(f"objects/{sha256(files[NAME][WEIGHTS])}", stall)
    command = [sys.executable, "-m", "fastzoo.cli.main", "pull", NAME, *where.split()]
    env = hub.env(tmp_path, PYTHONPATH=str(ROOT), FASTZOO_NAMESPACE="org")
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        before = len(met)
        process = subprocess.Popen(
            command,
            env=env,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            # Background jobs of some shells ignore it, and what they start inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while len(met) == before:
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)  # the small ones are through
        process.send_signal(number)
        sent = time.monotonic()
        assert process.wait(20) == code
        assert time.monotonic() - sent < 6
        assert process.stderr is not None
        errors = process.stderr.read()
        said = [line for line in errors.splitlines() if not line.startswith("fetching ")]
        assert said == (["error: interrupted"] if code == 130 else [])
        assert not (tmp_path / "zoo" / NAME).exists()
    go_on.set()
    hub.faults.clear()
    count = len(hub.requests)
    ((code, out, err),) = cli(hub, tmp_path, f"pull {NAME} {where}")
    assert code == 0, err
    assert content(tmp_path / out.strip()) == files[NAME]
    assert len([r for r in asked_since(hub, count) if r.startswith("HEAD")]) < 8  # kept what it had
    assert [p.name for p in tmp_path.glob("zoo/.*")] == []


# --- loading -----------------------------------------------------------------------------------


def test_load_by_name(hub: LoopbackHub, tmp_path: Path) -> None:
    import torch
    from conftest import randomise

    from fastzoo.saes.formats import save_sae
    from fastzoo.saes.jumprelu import JumpReLUSAE

    sae = randomise(JumpReLUSAE(8, 16)).requires_grad_(False)
    save_sae(sae, tmp_path / "made" / HOOK, layer=18, log_sparsity=torch.zeros(16))
    files = {**ours(parse_name(NAME)), **content(tmp_path / "made")}
    register(hub, {NAME: files})
    code = """
import contextlib, io, json, sys, torch, fastzoo
from fastzoo.hub.find import find_local
def show(call):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            result = call()
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
    print(json.dumps([result, err.getvalue()]))
name = sys.argv[1]
load = lambda: float(fastzoo.load_sae(name).W_enc.double().sum())
where = lambda: str(find_local(name))
pull = lambda *a, **k: lambda: [str(p) for p in fastzoo.pull(*a, **k)]
for call in (where, load, load, where, pull(name), pull([name, "hf:org/x"]), lambda: str(fastzoo.load_sae(sys.argv[2]))):
    show(call)
"""
    where, first, second, found, pulled, failed, grid = run(
        hub, tmp_path, code, NAME, "qwen2.5-7b-L4-8x-jumprelu"
    )
    assert where == ["None", ""]
    assert first[0] == second[0] == float(sae.W_enc.double().sum())
    assert first[1].startswith(f"fetching {NAME} from org/{NAME}@") and first[1].count("\n") == 1
    assert second[1] == found[1] == ""
    assert pulled[0] == [found[0]] and content(found[0]) == files
    assert failed[0].startswith("NotFoundError: no model repository org/x")
    assert grid[0].startswith("NotFoundError: not on this machine (looked in . and runs/*/), and ")
    assert "qwen2.5-7b-L4-8x-jumprelu is only in the paper's table" in grid[0]
    # People's files were asked for by pull, and not before.
    order = [str(r) for r in hub.requests if r.method == "HEAD"]
    assert len(order) == 8 and all("README" in r or "training" in r for r in order[5:])
    # A folder of that name comes first.
    other = randomise(JumpReLUSAE(8, 16), seed=1).requires_grad_(False)
    save_sae(other, tmp_path / NAME / HOOK, layer=18)
    code = "import json, sys, fastzoo; print(json.dumps(float(fastzoo.load_sae(sys.argv[1]).W_enc.double().sum())))"
    assert run(hub, tmp_path, code, NAME) == [float(other.W_enc.double().sum())]
