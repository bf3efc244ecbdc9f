"""Endpoints of the loopback Hub: checking a card, sending large files by LFS, committing."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any

from hub_server.cards import check_card
from hub_server.core import API, LoopbackHub, route
from hub_server.data import LARGE_BYTES, Repo, git_blob_id, is_large, sha256
from hub_server.messages import Refusal, Request, Response, as_json, error
from hub_server.xet import take_from_xet

GIT = r"/(?:(?P<plural>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs"


@route("POST", r"/api/validate-yaml")
def validate_yaml(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    asked = request.json()
    errors, warnings = check_card(str(asked.get("content")), asked.get("repoType") or "model")
    answer = {
        "errors": [{"message": text} for text in errors],
        "warnings": [{"message": text} for text in warnings],
    }
    return as_json(answer, 400 if errors else 200)


# --- large files -------------------------------------------------------------------------------


@route("POST", rf"{API}/preupload/(?P<revision>[^/]+)")
def preupload(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    """How each file is to be sent. No .gitignore is looked at."""
    repo = hub.repo(request, groups, write=True)
    if "create_pr" in request.query:
        return error(400, "BadRequest", "the loopback Hub has no pull requests")
    _, present = hub.files(repo, groups["revision"])
    asked = request.json().get("files", [])
    if len(asked) > 256:
        return error(400, "BadRequest", "at most 256 files at a time")
    files = []
    for file in asked:
        path, mode = file["path"], "lfs" if is_large(file["path"], file["size"]) else "regular"
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
        if path in present:
            data = present[path]
            known = is_large(path, len(data))
            files[-1]["oid"] = sha256(data) if known else git_blob_id(data)
    return as_json({"files": files})


@route("POST", rf"{GIT}/objects/batch")
def lfs_batch(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo = _repo(hub, request, groups)
    asked = request.json()
    if asked.get("operation") != "upload":
        return error(400, "BadRequest", "the loopback Hub's LFS only takes uploads")
    objects: list[dict[str, Any]] = []
    for wanted in asked["objects"]:
        oid, size = str(wanted["oid"]), int(wanted["size"])
        objects.append({"oid": oid, "size": size})
        if oid not in repo.lfs:
            in_parts = hub.part_size is not None and size > hub.part_size
            in_parts = in_parts and "multipart" in asked.get("transfers", ())
            upload = _in_parts(hub, repo, oid, size) if in_parts else _whole(hub, repo, oid)
            objects[-1]["actions"] = {"upload": upload}
            if hub.verify:
                check = {"href": f"{repo.url(hub.endpoint)}.git/info/lfs/verify"}
                objects[-1]["actions"]["verify"] = check
    parts = any("header" in o.get("actions", {}).get("upload", {}) for o in objects)
    return as_json({"transfer": "multipart" if parts else "basic", "objects": objects})


def _whole(hub: LoopbackHub, repo: Repo, oid: str) -> dict[str, Any]:
    return {"href": f"{hub.download_host}/uploads/{repo.kind}/{repo.id}/{oid}"}


def _in_parts(hub: LoopbackHub, repo: Repo, oid: str, size: int) -> dict[str, Any]:
    assert hub.part_size is not None
    header = {"chunk_size": str(hub.part_size)}
    for part in range(1, -(-size // hub.part_size) + 1):
        header[f"{part:05d}"] = f"{_whole(hub, repo, oid)['href']}/{part}"
    return {"href": f"{hub.endpoint}/api/complete/{repo.kind}/{repo.id}/{oid}", "header": header}


UPLOAD = r"/(?P<kind>model|dataset|space)/(?P<id>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})"


@route("PUT", rf"/uploads{UPLOAD}")
def put_object(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    return _keep(hub, request, groups, request.body)


@route("PUT", rf"/uploads{UPLOAD}/(?P<part>\d+)")
def put_part(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    hub.parts.setdefault(groups["oid"], {})[int(groups["part"])] = request.body
    return Response(200, b"", {"ETag": f'"{_etag(request.body)}"'})


@route("POST", rf"/api/complete{UPLOAD}")
def complete(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    parts = hub.parts.get(groups["oid"], {})
    for part in request.json().get("parts", []):
        data = parts.get(part["partNumber"])
        if data is None or part["etag"].strip('"') != _etag(data):
            return error(400, "BadRequest", f"part {part['partNumber']} is not the one sent")
    answer = _keep(hub, request, groups, b"".join(data for _, data in sorted(parts.items())))
    hub.parts.pop(groups["oid"], None)
    return answer


def _etag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def _keep(hub: LoopbackHub, request: Request, groups: dict[str, str], data: bytes) -> Response:
    """Keep an object that was sent, if it is the one announced."""
    repo = hub.repos.get((groups["kind"], groups["id"]))
    if repo is None:
        return error(404, "RepoNotFound", "Repository not found")
    if sha256(data) != groups["oid"]:
        message = f"the sha256 of the {len(data)} bytes sent is not {groups['oid']}"
        return error(400, "BadDigest", message)
    hub.keep(repo, data)
    return Response()


@route("POST", rf"{GIT}/verify")
def verify(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo, asked = _repo(hub, request, groups), request.json()
    oid = asked.get("oid", "")
    if oid not in repo.lfs or len(hub.objects[oid]) != asked.get("size"):
        return error(404, "EntryNotFound", f"there is no object {oid} of this size")
    return as_json({})


def _repo(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Repo:
    kind = groups["plural"].removesuffix("s") or "model"
    return hub.repo(request, {**groups, "kind": kind}, write=True)


# --- committing --------------------------------------------------------------------------------


@route("POST", rf"{API}/commit/(?P<revision>[^/]+)")
def commit(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    """A commit that changes nothing is not made: the answer names the one that is there."""
    repo = hub.repo(request, groups, write=True)
    if "create_pr" in request.query:
        return error(400, "BadRequest", "the loopback Hub has no pull requests")
    branch = groups["revision"].removeprefix("refs/heads/")
    if branch not in repo.branches:
        return error(404, "RevisionNotFound", f"Invalid rev id: {branch}")
    head = repo.branches[branch]
    header, *changes = _lines(request.body)
    summary, parent = header["value"].get("summary"), header["value"].get("parentCommit")
    if header["key"] != "header" or not summary:
        return error(400, "BadRequest", "the first line is a header with a summary")
    if parent is not None and parent != head:
        message = "A commit has happened since. Please refresh and try again."
        return error(412, "PreconditionFailed", message)
    files = dict(repo.commits[head])
    for change in changes:
        _apply(hub, repo, files, change["key"], change["value"])
    if files != repo.commits[head]:
        for path, data in files.items():
            if is_large(path, len(data)) and sha256(data) not in repo.lfs:
                hub.keep(repo, data)  # one that was sent with the commit
        description = header["value"].get("description", "")
        head = repo.commit(files, branch, summary, description, pushed=True)
    url = f"{repo.url(hub.endpoint)}/commit/{head}"
    return as_json({"success": True, "commitOid": head, "commitUrl": url, "hookOutput": ""})


def _lines(body: bytes) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    except ValueError:
        lines = []
    if not lines or not all({"key", "value"} <= set(line) for line in lines):
        raise Refusal(error(400, "BadRequest", "the body is not lines of JSON with key and value"))
    return lines


def _apply(hub: LoopbackHub, repo: Repo, files: dict[str, bytes], key: str, value: dict[str, Any]) -> None:
    """Do one line of a commit to ``files``; raises Refusal."""
    path = str(value["path"])
    if {"", ".", "..", ".git"} & set(path.removesuffix("/").split("/")):
        raise Refusal(error(400, "BadRequest", f"{path!r} is no path of a file"))
    if key == "file":
        files[path] = _sent(repo, path, value)
    elif key == "lfsFile":
        files[path] = _object(hub, repo, path, value)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            message = f"A file with this name doesn't exist: {path}"
            raise Refusal(error(404, "EntryNotFound", message))
    elif key == "deletedFolder":
        inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not inside:
            message = f"A folder with this name doesn't exist: {path}"
            raise Refusal(error(404, "EntryNotFound", message))
        for name in inside:
            del files[name]
    else:
        raise Refusal(error(400, "BadRequest", f"unknown operation {key!r}"))


def _sent(repo: Repo, path: str, value: dict[str, Any]) -> bytes:
    """The bytes of a file that came with the commit."""
    try:
        data = base64.b64decode(value["content"], validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(error(400, "BadRequest", f"{path}: not base64")) from None
    if len(data) > LARGE_BYTES:
        message = f"{path}: files of more than {LARGE_BYTES} bytes must be sent by LFS or Xet"
        raise Refusal(error(400, "BadRequest", message))
    if path == "README.md":
        errors, _ = check_card(data.decode("utf-8", "replace"), repo.kind)
        if errors:
            raise Refusal(error(400, "BadRequest", f"Invalid metadata in README.md: {errors[0]}"))
    return data


def _object(hub: LoopbackHub, repo: Repo, path: str, value: dict[str, Any]) -> bytes:
    """The bytes of a large file, which must have been sent before."""
    oid = str(value["oid"])
    if oid not in repo.lfs and oid in hub.xet_hashes:
        hub.keep(repo, take_from_xet(hub, oid))
    if oid not in repo.lfs:
        message = f"{path}: the LFS pointer points to {oid}, which was not sent"
        raise Refusal(error(400, "BadRequest", message))
    data = hub.objects[oid]
    if value.get("size", len(data)) != len(data):
        raise Refusal(error(400, "BadRequest", f"{path}: {oid} has {len(data)} bytes"))
    return data
