"""The loopback Hub's writing side, as the real huggingface_hub client drives it by LFS and by Xet."""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import READ_TOKEN, ROOT, TOKEN, LoopbackHub, failing, hang_up, run, sha256, too_many
from hub_server.cards import check_card

# What every client below starts with.
CLIENT = """
import os, time, warnings
from pathlib import Path
from huggingface_hub import HfApi, CommitOperationAdd as Add, CommitOperationDelete as Delete
from huggingface_hub.errors import HfHubHTTPError
api = HfApi()
show = lambda value: print(json.dumps(value))
def refused(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except HfHubHTTPError as error:
        return [error.response.status_code, type(error).__name__]
    except Exception as error:
        return [0, type(error).__name__]
    return [200, ""]
"""


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.foreign == []


def client(hub: LoopbackHub, home: Path, code: str, *args: str, **env: Any) -> list[Any]:
    return run(hub, home, CLIENT + textwrap.dedent(code), *args, **env)


def ask(
    hub: LoopbackHub, method: str, path: str, body: Any = None, token: str | None = TOKEN
) -> tuple[int, Any]:
    """One request without the client: the answer's status and JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=10)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, data, headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text


def ndjson(*lines: tuple[str, dict[str, Any]]) -> bytes:
    return b"".join(json.dumps({"key": k, "value": v}).encode() + b"\n" for k, v in lines)


# --- repositories and commits ------------------------------------------------------------------


@pytest.mark.parametrize("xet", [False, True])
def test_life_of_a_repository(hub: LoopbackHub, tmp_path: Path, xet: bool) -> None:
    code = """
    name, card = "org/sae", b"---\\nlicense: mit\\ntags: [sae]\\n---\\n# SAE\\n"
    url = api.create_repo(name)
    show([url.repo_id, str(url), str(api.create_repo(name, exist_ok=True))])
    show([refused(api.create_repo, n) for n in (name, "org/a--b", "else/where")])
    first = [Add("README.md", card), Add("w/sae.safetensors", b"w" * 5000), Add("w/cfg.json", b"{}")]
    one = api.create_commit(name, first, commit_message="first")
    again = [Add(o.path_in_repo, o.path_or_fileobj) for o in first]
    show([one.oid == api.create_commit(name, again, commit_message="again").oid])
    two = api.create_commit(name, [Add("w/sae.safetensors", b"v" * 5000)], commit_message="second")
    show(refused(api.create_commit, name, [Add("x", b"x")], commit_message="stale", parent_commit=one.oid))
    show(refused(api.create_commit, name, [Delete("no.txt")], commit_message="none"))
    show(refused(api.create_commit, name, [Add("README.md", b"---\\nlicense: mine\\n---\\n")], commit_message="card"))
    api.create_commit(name, [Delete("w/")], commit_message="third", commit_description="why", parent_commit=two.oid)
    show(sorted(api.list_repo_files(name)))
    show(sorted(api.list_repo_files(name, revision=two.oid)))
    show([c.title for c in api.list_repo_commits(name)])

    folder = Path(os.environ["HF_HOME"], "folder", "deep")
    folder.mkdir(parents=True)
    (folder / "sae.safetensors").write_bytes(bytes(range(256)) * 1000)
    (folder / "empty.bin").touch()
    (folder.parent / "config.json").write_text("{}")
    up = lambda: api.upload_folder(repo_id=name, folder_path=folder.parent, commit_message="folder", delete_patterns="*.txt").oid
    show(up() == up())
    lfs = api.get_paths_info(name, ["deep/sae.safetensors"])[0].lfs
    show([lfs.size, lfs.sha256])

    api.create_tag(name, tag="v1", revision=one.oid)
    show([refused(api.create_tag, name, tag="v1"), refused(api.create_tag, name, tag="v1", exist_ok=True)])
    api.create_branch(name, branch="side/a", revision="v1")
    api.create_commit(name, [Add("side.txt", b"s")], commit_message="beside", revision="side/a")
    refs = api.list_repo_refs(name)
    show([[b.name for b in refs.branches], [[t.name, t.target_commit == one.oid] for t in refs.tags]])
    api.delete_tag(name, tag="v1")
    api.delete_branch(name, branch="side/a")
    show([refused(api.delete_tag, name, tag="v1"), refused(api.delete_branch, name, branch="main")])

    api.update_repo_settings(name, visibility="private", gated="manual")
    info = api.model_info(name)
    show([info.private, info.gated, api.repo_exists(name, token=False)])
    show(refused(api.hf_hub_download, name, "config.json"))
    api.update_repo_settings(name, visibility="public")
    show(refused(api.hf_hub_download, name, "README.md", token=False))
    api.move_repo(name, "user/moved")
    show([api.model_info(name).id, refused(api.move_repo, name, "user/x")])
    api.create_repo("page", repo_type="space", space_sdk="static", visibility="private")
    show(api.space_info("user/page").sdk)
    api.delete_repo("user/moved")
    show([refused(api.delete_repo, "user/moved"), refused(api.delete_repo, "user/moved", missing_ok=True)])
    """
    name, weights = "org/sae", bytes(range(256)) * 1000
    files = [".gitattributes", "README.md"]
    assert client(hub, tmp_path, code, xet=xet) == [
        [name, f"{hub.endpoint}/{name}", f"{hub.endpoint}/{name}"],
        [[409, "HfHubHTTPError"], [0, "HFValidationError"], [403, "HfHubHTTPError"]],
        [True],
        [412, "HfHubHTTPError"],
        [404, "RemoteEntryNotFoundError"],
        [0, "ValueError"],
        files,
        [*files, "w/cfg.json", "w/sae.safetensors"],
        ["third", "second", "first", "initial commit"],
        True,
        [len(weights), sha256(weights)],
        [[409, "HfHubHTTPError"], [200, ""]],
        [["main", "side/a"], [["v1", True]]],
        [[404, "RevisionNotFoundError"], [403, "HfHubHTTPError"]],
        [True, "manual", False],
        [200, ""],
        [401, "GatedRepoError"],
        ["user/moved", [404, "RepositoryNotFoundError"]],
        "static",
        [[404, "RepositoryNotFoundError"], [200, ""]],
    ]
    assert list(hub.repos) == [("space", "user/page")] and hub.commits() == []
    # A card that the Hub refuses never comes to the commit; nothing that was refused was made.
    commits = [r.status for r in hub.requests if "/commit/" in r.path]
    assert Counter(commits) == {200: 5, 412: 1, 404: 1}
    assert bool(hub.asked("POST /cas/")) == xet and bool(hub.asked("PUT /uploads/")) != xet


def test_history_counts_what_clients_pushed(hub: LoopbackHub) -> None:
    hub.add("model", "org/a", {"x": b"1"})
    assert ask(hub, "POST", "/api/repos/create", {"name": "b", "organization": "org"})[0] == 200
    text = base64.b64encode(b"text").decode()
    line = ("file", {"path": "t.txt", "content": text, "encoding": "base64"})
    for name in ("a", "b", "b"):  # the last one changes nothing
        body = ndjson(("header", {"summary": f"to {name}", "description": "d"}), line)
        status, answer = ask(hub, "POST", f"/api/models/org/{name}/commit/main", body)
        assert status == 200
    assert [c.message for c in hub.commits()] == ["to a", "to b"]
    (only,) = hub.commits("model", "org/b")
    assert answer["commitOid"] == only.sha and answer["commitUrl"].startswith(hub.endpoint)
    assert [c.message for c in hub.repos["model", "org/b"].history] == ["initial commit", "to b"]


def test_what_is_not_whole_or_not_sent_is_not_committed(hub: LoopbackHub) -> None:
    hub.add("model", "org/a", {"x": b"1"})
    head, commit = hub.repos["model", "org/a"].branches["main"], "/api/models/org/a/commit/main"
    header = ("header", {"summary": "s"})
    data, oid = b"weights", sha256(b"weights")
    line = ("lfsFile", {"path": "w.bin", "algo": "sha256", "oid": oid, "size": len(data)})
    assert ask(hub, "POST", commit, ndjson(header, line))[0] == 400
    # Other bytes than those announced are refused, whole or in parts.
    batch = {"operation": "upload", "transfers": ["basic", "multipart"]}
    batch["objects"] = [{"oid": oid, "size": len(data)}]
    lfs = "/org/a.git/info/lfs/objects/batch"
    upload = ask(hub, "POST", lfs, batch)[1]["objects"][0]["actions"]["upload"]["href"]
    path = upload.removeprefix(hub.download_host)
    assert ask(hub, "PUT", path, data[::-1], None)[0] == 400
    hub.part_size = 4
    actions = ask(hub, "POST", lfs, batch)[1]["objects"][0]["actions"]["upload"]
    parts = [actions["header"][key] for key in ("00001", "00002")]
    for href, part in zip(parts, (b"weig", b"shts"), strict=True):
        assert ask(hub, "PUT", href.removeprefix(hub.download_host), part, None)[0] == 200
    done = actions["href"].removeprefix(hub.endpoint)
    assert ask(hub, "POST", done, {"oid": oid, "parts": []}, None)[0] == 400
    assert ask(hub, "POST", commit, ndjson(header, line))[0] == 400
    # A client that dies while sending has done nothing, even if it said all that mattered.
    body = ndjson(header, ("file", {"path": "t", "content": "eA==", "encoding": "base64"}))
    for framing in (
        b"Content-Length: %d\r\n\r\n" % (len(body) + 1),
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body),
    ):
        with socket.create_connection(("127.0.0.1", hub.port)) as dying:
            start = f"POST {commit} HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\n"
            start += f"Authorization: Bearer {TOKEN}\r\n"
            dying.sendall(start.encode() + framing + body)
    time.sleep(0.05)
    for wrong in (b"no json", ndjson(header, ("file", {"path": "../t", "content": "eA=="}))):
        assert ask(hub, "POST", commit, wrong)[0] == 400
    assert hub.repos["model", "org/a"].branches["main"] == head and hub.commits() == []
    assert not [r for r in hub.requests if r.body == body]

    assert ask(hub, "PUT", path, data, None)[0] == 200
    assert "actions" not in ask(hub, "POST", lfs, batch)[1]["objects"][0]
    assert ask(hub, "POST", commit, ndjson(header, line))[0] == 200
    assert hub.repos["model", "org/a"].commits[hub.commits()[0].sha] == {"x": b"1", "w.bin": data}
    # The Xet store takes neither strangers nor rubbish.
    store = f"/cas/v1/xorbs/default/{'0' * 64}"
    assert ask(hub, "POST", store, b"rubbish")[0] == 401
    assert ask(hub, "POST", store, b"rubbish", "xet-read")[0] == 401
    assert ask(hub, "POST", store, b"rubbish", "xet-write")[0] == 400
    assert ask(hub, "POST", "/cas/v2/shards", b"HFRepoMetaData\0", "xet-write")[0] == 400


# --- bytes -------------------------------------------------------------------------------------


def some_files() -> dict[str, bytes]:
    """Of every size and kind of packing that the Xet store has: as it is, packed, by fours."""
    import numpy as np

    generator = np.random.default_rng(0)
    floats = generator.normal(size=700_001).astype("f4").tobytes()
    return {
        "noise.safetensors": generator.bytes(300_000),
        "floats.safetensors": floats + b"odd",
        "again.bin": floats[: 2**20],  # mostly chunks that the store has
        "text.bin": b"the same text, " * 40_000,
        "small.safetensors": b"s",
        "empty.bin": b"",
        "notes.md": "Übersicht\n".encode(),
    }


def test_bytes_come_back_whichever_way(hub: LoopbackHub, tmp_path: Path) -> None:
    files, folder = some_files(), tmp_path / "files"
    folder.mkdir()
    for path, data in files.items():
        (folder / path).write_bytes(data)
    hub.part_size, hub.verify = 2**20, True
    upload = """
    name = "user/" + sys.argv[2]
    api.create_repo(name, repo_type="dataset")
    api.upload_folder(repo_id=name, repo_type="dataset", folder_path=sys.argv[1])
    """
    download = """
    import hashlib
    for name in ("user/lfs", "user/xet"):
        folder = Path(api.snapshot_download(name, repo_type="dataset"))
        show({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()})
        tree = {e.path: e for e in api.list_repo_tree(name, repo_type="dataset")}
        show({path: e.lfs.sha256 for path, e in tree.items() if e.lfs})
        show(sorted(path for path, e in tree.items() if e.xet_hash))
    """
    large = {path for path in files if path not in ("empty.bin", "notes.md")}
    for xet in (False, True):
        client(hub, tmp_path, upload, str(folder), "xet" if xet else "lfs", xet=xet)
    assert hub.asked("POST /api/complete/") and hub.asked("POST .*/lfs/verify")
    assert {xorb.data[start + 4] for xorb in hub.xet_xorbs.values() for start in xorb.starts[:-1]} == {
        0,
        1,
        2,
    }
    for name in ("user/lfs", "user/xet"):
        assert hub.commits("dataset", name)[-1].message == "Upload folder using huggingface_hub"
        repo = hub.repos["dataset", name]
        found = dict(repo.commits[repo.branches["main"]])
        assert found.pop(".gitattributes") and found == files
    for xet in (False, True):
        before = len(hub.requests)
        shown = client(hub, tmp_path / str(xet), download, xet=xet)
        for hashes, lfs, by_xet in (shown[:3], shown[3:]):
            del hashes[".gitattributes"]
            assert hashes == {path: sha256(data) for path, data in files.items()}
            assert lfs == {path: sha256(files[path]) for path in large}
            assert set(by_xet) == large  # of both: the Hub knows a file by its content
        asked = [str(request) for request in hub.requests[before:]]
        assert any("GET /objects/" in text for text in asked) != xet
        assert any("GET /cas/xorbs/" in text for text in asked) == xet
    assert all(r.token in (None, "xet-read", "xet-write") for r in hub.requests if r.is_storage)


# --- who may what ------------------------------------------------------------------------------


def test_tokens(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("model", "org/open", {"a.txt": b"a"})
    hub.add("model", "lab/theirs", {"a.txt": b"a"})
    hub.add("model", "org/hidden", {"a.txt": b"a"})
    hub.repos["model", "org/hidden"].private = True
    code = """
    for token in (None, sys.argv[1], "hf_unknown", False):
        add = [Add("b.txt", b"b")]
        show([
            refused(api.whoami, token=token),
            refused(api.create_repo, "org/new", token=token),
            refused(api.create_commit, "org/open", add, commit_message="m", token=token),
            refused(api.create_commit, "lab/theirs", [Add("b.txt", b"b")], commit_message="m", token=token),
            refused(api.create_collection, "Title", namespace="org", token=token),
            refused(api.create_tag, "org/open", tag="t", token=token),
            refused(api.model_info, "org/hidden", token=token),
            [m.id for m in api.list_models(author="org", token=token)] if token != "hf_unknown" else [],
        ])
    show([api.whoami()["auth"]["accessToken"]["role"], api.whoami(sys.argv[1])["auth"]["accessToken"]["role"]])
    """
    http = "HfHubHTTPError"
    write, read, unknown, nobody, roles = client(hub, tmp_path, code, READ_TOKEN)
    fine, forbidden = [200, ""], [403, http]
    assert write[:3] + write[4:7] == [fine] * 6 and write[3] == forbidden
    assert read[0] == read[6] == fine and read[1:6] == [forbidden] * 5
    assert [status for status, _ in unknown[:7]] == [401] * 7
    assert [status for status, _ in nobody[1:7]] == [401] * 6
    assert nobody[6][1] == "RepositoryNotFoundError"
    assert write[7] == read[7] == ["org/open", "org/hidden", "org/new"]
    assert nobody[7] == ["org/open", "org/new"]
    assert roles == ["write", "read"]
    assert len(hub.commits()) == 1 and len(hub.collections) == 1


# --- listings ----------------------------------------------------------------------------------


def test_listings_come_in_pages(hub: LoopbackHub, tmp_path: Path) -> None:
    for i in range(7):
        card = f"---\ntags: [sae, n{i % 2}]\nbase_model: lab/m{i}\nbase_model_relation: adapter\n---\n"
        hub.add("model", f"org/sae-{i}", {"README.md": card.encode(), "a.bin": b"x", "b.txt": b"y"})
    hub.add("model", "lab/other", {"x": b""})
    hub.add("dataset", "org/index", {"registry.json": b"[]"})
    hub.add("space", "org/page", {"app.py": b""})
    hub.page_size = 3
    code = """
    ids = lambda found: [item.id for item in found]
    show(ids(api.list_models(author="org")))
    show(ids(api.list_models(author="org", limit=4)))
    show(ids(api.list_models(search="SAE-3")))
    show(ids(api.list_models(filter=["sae", "n1"], author="org")))
    show(ids(api.list_models(filter="base_model:adapter:lab/m2")))
    first = next(iter(api.list_models(author="org", full=True)))
    show([first.sha is not None, [s.rfilename for s in first.siblings]])
    first = next(iter(api.list_models(author="org", expand=["sha", "cardData"])))
    show([first.sha is not None, first.card_data.tags, first.siblings])
    show([ids(api.list_datasets(author="org")), ids(api.list_spaces(author="org"))])
    show(sorted(api.list_repo_files("org/sae-0")))
    for i in range(7):
        api.create_collection(f"Number {i}", namespace="user")
    show([c.title for c in api.list_collections(owner="user")])
    """
    names = [f"org/sae-{i}" for i in range(7)]
    assert client(hub, tmp_path, code) == [
        names,
        names[:4],
        ["org/sae-3"],
        names[1::2],
        ["org/sae-2"],
        [True, ["README.md", "a.bin", "b.txt"]],
        [True, ["sae", "n0"], None],
        [["org/index"], ["org/page"]],
        ["README.md", "a.bin", "b.txt"],
        [f"Number {i}" for i in range(7)],
    ]
    assert len(hub.asked(r"GET /api/collections$")) == 3


# --- collections -------------------------------------------------------------------------------


def test_life_of_a_collection(hub: LoopbackHub, tmp_path: Path) -> None:
    for i in range(6):
        hub.add("model", f"org/m{i}", {"x": b""})
    hub.add("dataset", "org/index", {"x": b""})
    hub.most_items = 7
    code = """
    def state(slug):
        return [[i.item_id, i.item_type, i.position, i.note] for i in api.get_collection(slug).items]
    parent = api.create_collection("SAEs of FAST (2025)", namespace="org", description="d" * 150)
    child = api.create_collection("Qwen", namespace="org", private=True)
    show([parent.slug, parent.description == "d" * 150, parent.private, child.private])
    show([refused(api.create_collection, "x", namespace="org", description="d" * 151), refused(api.create_collection, "x" * 61, namespace="org")])
    for i in range(5):
        api.add_collection_item(child.slug, f"org/m{i}", "model", note="n" * 500 if i else None)
    show(refused(api.add_collection_item, child.slug, "org/m5", "model", note="n" * 501))
    show([refused(api.add_collection_item, child.slug, "org/m0", "model", exists_ok=ok) for ok in (False, True)])
    show(refused(api.add_collection_item, child.slug, "org/none", "model"))
    api.add_collection_item(child.slug, "org/index", "dataset")
    api.add_collection_item(child.slug, "2509.00001", "paper")
    show(refused(api.add_collection_item, child.slug, "org/m5", "model"))
    items = api.get_collection(child.slug).items
    api.update_collection_item(child.slug, items[0].item_object_id, note="moved", position=6)
    api.delete_collection_item(child.slug, items[1].item_object_id)
    show([refused(api.delete_collection_item, child.slug, items[1].item_object_id, missing_ok=ok) for ok in (False, True)])
    api.delete_repo("org/m2")
    api.move_repo("org/m3", "user/m3")
    show([[i, t, p, (n or "")[:5]] for i, t, p, n in state(child.slug)])
    renamed = api.update_collection_metadata(child.slug, title="Qwen 2.5", private=False)
    show([renamed.slug != child.slug, renamed.slug[-24:] == child.slug[-24:], api.get_collection(child.slug).title])
    api.add_collection_item(parent.slug, child.slug, "collection")
    show(state(parent.slug) == [[renamed.slug, "collection", 0, None]])
    listed = list(api.list_collections(owner="org"))
    show([[c.title, len(c.items)] for c in listed])
    show([c.title for c in api.list_collections(item="models/user/m3")])
    second = api.create_collection("Qwen 2.5", namespace="org")
    show(second.slug != renamed.slug)
    api.delete_collection(second.slug)
    show([refused(api.delete_collection, second.slug, missing_ok=ok) for ok in (False, True)])
    show([refused(api.get_collection, child.slug, token=False), refused(api.delete_collection, child.slug, token=False)])
    """
    shown = client(hub, tmp_path, code)
    http = "HfHubHTTPError"
    parent = next(iter(hub.collections.values()))
    assert shown[0] == [f"org/saes-of-fast-2025-{parent.id}", True, False, True]
    assert shown[1:7] == [
        [[400, "BadRequestError"]] * 2,
        [400, "BadRequestError"],
        [[409, http], [200, ""]],
        [404, http],
        [400, "BadRequestError"],
        [[404, http], [200, ""]],
    ]
    items = [("user/m3", "model"), ("org/m4", "model"), ("org/index", "dataset")]
    items += [("2509.00001", "paper"), ("org/m0", "model")]
    notes = ["nnnnn", "nnnnn", "", "", "moved"]
    expected = [[*item, i, note] for i, (item, note) in enumerate(zip(items, notes, strict=True))]
    assert shown[7:] == [
        expected,
        [True, True, "Qwen 2.5"],
        True,
        [["SAEs of FAST (2025)", 1], ["Qwen 2.5", 4]],
        ["Qwen 2.5"],
        True,
        [[404, http], [200, ""]],
        [[200, ""], [401, http]],
    ]
    # On a Hub whose titles are unique the second one is refused, with the first one's slug.
    hub.unique_titles = True
    body = {"title": "Qwen 2.5", "namespace": "org", "private": False}
    status, answer = ask(hub, "POST", "/api/collections", body)
    assert status == 409 and answer["slug"] in {c.slug for c in hub.collections.values()}


# --- faults ------------------------------------------------------------------------------------


def test_faults_as_the_client_sees_them(hub: LoopbackHub, tmp_path: Path) -> None:
    weights = random.Random(0).randbytes(200_000)
    hub.add("model", "org/a", {"w.bin": weights, "t.txt": b"text"})
    created = hub.fail("repos/create", hub.lose, times=1, method="POST")
    limited = hub.fail("models/org/a$", too_many(7), times=2, method=None)
    server = hub.fail("whoami", failing(503), times=1)
    cut = hub.fail("GET /objects/", hub.cut, times=1)
    dropped = hub.fail("/commit/", hang_up, times=1, method="POST")
    put = hub.fail("PUT /uploads/", failing(500), times=1, method="PUT")
    code = """
    waits = []
    time.sleep = waits.append  # what the client would have waited
    show(refused(api.create_repo, "org/b"))
    show(refused(api.create_repo, "org/b"))
    show([refused(api.model_info, "org/a") for _ in range(3)])
    show(refused(api.whoami))
    path = api.hf_hub_download("org/a", "w.bin")
    import hashlib
    show(hashlib.sha256(open(path, "rb").read()).hexdigest())
    ops = lambda: [Add("new.bin", b"new")]
    show([refused(api.create_commit, "org/a", ops(), commit_message="m") for _ in range(2)])
    show(len(waits))
    """
    http, closed = "HfHubHTTPError", [0, "RemoteProtocolError"]
    shown = client(hub, tmp_path, code)
    assert shown[:2] == [closed, [409, http]]  # what was lost was done
    assert shown[2] == [[429, http], [429, http], [200, ""]]
    assert shown[3] == [503, http] and shown[4] == sha256(weights)
    assert shown[5] == [closed, [200, ""]] and shown[6] >= 1
    assert [len(met) for met in (created, limited, server, cut, dropped, put)] == [1, 2, 1, 1, 1, 1]
    assert sum(request.fault for request in hub.requests) == 7 and len(hub.commits()) == 1
    statuses = {request.status for request in hub.requests if request.fault}
    assert statuses == {0, 200, 429, 500, 503}

    # Wrong bytes of the right size: the client takes them, by either way.
    hub.faults.clear()
    ask(hub, "DELETE", "/api/repos/delete", {"name": "b", "organization": "org"})
    for xet, where in ((False, "/objects/"), (True, "/cas/xorbs/")):
        code = """
        api.create_repo("org/b", exist_ok=True)
        data = bytes.fromhex(sys.argv[1])
        api.create_commit("org/b", [Add("w.bin", data)], commit_message="m")
        took = open(api.hf_hub_download("org/b", "w.bin"), "rb").read()
        show([len(took) == len(data), took == data])
        """
        wrong = hub.corrupt(where)
        data = random.Random(xet).randbytes(5000)
        (took,) = client(hub, tmp_path / str(xet), code, data.hex(), xet=xet)
        assert took == [True, False] and wrong


def test_a_crowd_under_faults_leaves_what_it_meant(hub: LoopbackHub, tmp_path: Path) -> None:
    """Several processes of several threads, retrying; half of them by Xet."""
    hub.slow(0.001)
    met = hub.every(9)
    code = """
    from concurrent.futures import ThreadPoolExecutor
    pause, time.sleep = time.sleep, lambda seconds: pause(min(seconds, 0.01))
    def until_done(call, *args, **kwargs):
        for _ in range(20):
            try:
                return call(*args, **kwargs)
            except Exception as error:
                last = error
        raise last
    def push(i):
        name = f"org/{sys.argv[1]}-{i}"
        until_done(api.create_repo, name, exist_ok=True)
        data = name.encode() * 3000
        adds = lambda: [Add("w.safetensors", data), Add("cfg.json", name.encode())]
        until_done(lambda: api.create_commit(name, adds(), commit_message=name))
        until_done(api.add_collection_item, sys.argv[2], name, "model", exists_ok=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(push, range(6)))
    """
    body = {"title": "All", "namespace": "org"}
    slug = None
    while slug is None:
        try:
            slug = ask(hub, "POST", "/api/collections", body)[1]["slug"]
        except (OSError, http.client.HTTPException, KeyError, TypeError):
            continue
    script = CLIENT.replace("import os", "import json, sys, os", 1) + textwrap.dedent(code)
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", script, f"p{i}", slug],
            env=hub.env(tmp_path / str(i), xet=i % 2 == 1),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    for process in crowd:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    names = {f"org/p{p}-{i}" for p in range(4) for i in range(6)}
    assert {name for _, name in hub.repos} == names
    for (_, name), repo in hub.repos.items():
        files = repo.commits[repo.branches["main"]]
        assert files["w.safetensors"] == name.encode() * 3000
        assert files["cfg.json"] == name.encode()
        assert len(hub.commits("model", name)) == 1  # even where an answer was lost
    items = [item.id for item in next(iter(hub.collections.values())).items]
    assert len(items) == len(set(items)) and set(items) == names
    assert len(met) == len(hub.requests) // 9 > 10
    assert [r for r in hub.requests if r.fault] and set(map(id, met)) == {
        id(r) for r in hub.requests if r.fault
    }


def test_rate_limit(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("model", "org/a", {"t.txt": b"t", "w.bin": b"w"})
    hub.limit(4, 300)
    code = """
    from huggingface_hub.utils import get_session
    from huggingface_hub.utils._http import parse_ratelimit_headers
    for _ in range(6):
        answer = get_session().get(f"{api.endpoint}/api/models/org/a", headers={"Authorization": "Bearer " + os.environ["HF_TOKEN"]})
        limit = parse_ratelimit_headers(answer.headers)
        show([answer.status_code, limit.remaining, limit.limit, limit.window_seconds, limit.reset_in_seconds > 290])
    show([refused(api.model_info, "org/a"), refused(api.model_info, "org/a", token=sys.argv[1])])
    show([refused(api.hf_hub_download, "org/a", f) for f in ("t.txt", "w.bin")])
    """
    *counted, tokens, files = client(hub, tmp_path, code, READ_TOKEN)
    assert counted == [[200 if i < 4 else 429, max(3 - i, 0), 4, 300, True] for i in range(6)]
    assert tokens == [[429, "HfHubHTTPError"], [200, ""]] and files == [[200, ""]] * 2
    assert sum(request.fault for request in hub.requests) == 3


# --- cards -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "header", "said"),
    [
        ("model", "license: apache-2.0\nbase_model: lab/m\nbase_model_relation: adapter", None),
        ("model", "license: other\nlicense_name: mine\ntags: [a]\nbase_model: [lab/m, m]", None),
        ("model", "license: llama3.1\ndatasets: [lab/d]\nlibrary_name: fastzoo", None),
        ("model", "license: apache", '"license"'),
        ("model", "license: other", '"license_name"'),
        ("model", "- a list", "mapping"),
        ("model", "a: [", "YAML"),
        ("model", "base_model: {a: b}", '"base_model"'),
        ("model", "base_model: [a b]", '"base_model"'),
        ("model", "base_model_relation: sae", '"base_model_relation"'),
        ("model", "tags: sae", '"tags"'),
        ("model", "datasets: [1]", '"datasets"'),
        ("model", "model-index: {}", '"model-index"'),
        ("model", "model-index: [{name: n}]", "results"),
        ("model", "model-index: [{name: n, results: [{task: {}, metrics: []}]}]", "task.type"),
        (
            "model",
            "model-index: [{name: n, results: [{task: {type: t}, dataset: {type: d, name: d},"
            " metrics: [{type: l0, value: 0}]}]}]",
            None,
        ),
        ("model", "model-index: [{name: n, results: [{task: {type: t}, metrics: [{type: l0}]}]}]", "value"),
        ("dataset", "configs: [{config_name: a, data_files: results.csv}]", None),
        ("dataset", "configs: [{config_name: a, data_files: [{split: s, path: x.csv}]}]", None),
        ("dataset", "configs: [{data_files: x.csv}]", "config_name"),
        ("dataset", "configs: [{config_name: a}]", "data_files"),
    ],
)
def test_cards_are_checked(kind: str, header: str, said: str | None) -> None:
    errors, warnings = check_card(f"---\n{header}\n---\n# Title\n", kind)
    assert warnings == []
    assert errors == [] if said is None else said in errors[0]


def test_a_card_without_metadata_is_warned_of() -> None:
    assert check_card("# Title\n", "model") == ([], ["empty or missing yaml metadata in repo card"])


def test_it_runs_by_itself() -> None:
    hub = subprocess.Popen(
        [sys.executable, "-m", "hub_server", "--xet"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    try:
        assert hub.stdout is not None
        said = dict(hub.stdout.readline().strip().removeprefix("export ").split("=") for _ in "ab")
        address = said["HF_ENDPOINT"].removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request("GET", "/api/whoami-v2", headers={"Authorization": f"Bearer {TOKEN}"})
        assert json.loads(connection.getresponse().read())["name"] == "user"
    finally:
        hub.terminate()
        hub.communicate()
