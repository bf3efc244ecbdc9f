"""Endpoints of the loopback Hub: who one is, repositories, their refs, listings and files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote

from hub_server.core import API, KINDS, LoopbackHub, route
from hub_server.data import Repo, git_blob_id, is_large, sha256
from hub_server.messages import Refusal, Request, Response, as_json, error

DATE = "2025-01-01T00:00:00.000Z"


@route("GET", r"/api/whoami-v2")
def whoami(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    role = hub.role(request)
    if role is None:
        return error(401, "Unauthorized", "Invalid credentials in Authorization header")
    token = {"displayName": "loopback", "role": role}
    user, *others = hub.namespaces
    orgs = [{"type": "org", "name": o, "fullname": o, "roleInOrg": "admin"} for o in others]
    who = {"type": "user", "name": user, "fullname": "A User", "orgs": orgs}
    return as_json({**who, "auth": {"type": "access_token", "accessToken": token}})


# --- repositories ------------------------------------------------------------------------------


@route("GET", rf"/api/{KINDS}")
def listing(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    """Oldest first; a sort that is asked for is not done."""
    found = []
    for repo in hub.repos.values():
        sha = repo.resolve("main")
        if repo.kind != groups["kind"] or (repo.private and hub.role(request) is None):
            continue
        if sha is None or request.first("author", repo.id.split("/")[0]) != repo.id.split("/")[0]:
            continue
        if request.first("search").lower() not in repo.id.lower():
            continue
        answer = _info(hub, repo, sha, repo.commits[sha], request)
        filters = {tag for value in request.query.get("filter", []) for tag in value.split(",")}
        if filters <= set(_tags(_card(repo.commits[sha].get("README.md", b"")))):
            if "full" not in request.query and "expand" not in request.query:
                wanted = "_id id private gated downloads likes tags createdAt sdk".split()
                wanted += ["cardData"] * ("cardData" in request.query)
                answer = {key: answer[key] for key in wanted if key in answer}
            found.append(answer)
    return hub.page(request, found)


@route("GET", rf"{API}(?:/revision/(?P<revision>[^/]+))?")
def info(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo = hub.repo(request, groups)
    sha, files = hub.files(repo, groups["revision"])
    return as_json(_info(hub, repo, sha, files, request))


def _info(
    hub: LoopbackHub, repo: Repo, sha: str, files: Mapping[str, bytes], request: Request
) -> dict[str, Any]:
    card = _card(files.get("README.md", b""))
    siblings = [{"rfilename": path} for path in sorted(files)]
    if "blobs" in request.query:
        siblings = [{**s, **_blob(s["rfilename"], files[s["rfilename"]])} for s in siblings]
    answer = {
        "_id": git_blob_id(repo.id.encode())[:24],
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": sha,
        "private": repo.private,
        "gated": "auto" if repo.gated is True else repo.gated,
        "disabled": False,
        "tags": _tags(card),
        "cardData": card,
        "downloads": 0,
        "likes": 0,
        "createdAt": DATE,
        "lastModified": DATE,
        "siblings": siblings,
    }
    if repo.sdk is not None:
        answer["sdk"] = repo.sdk
    if "expand" in request.query:
        wanted = ("_id", "id", *request.query["expand"])
        answer = {key: answer[key] for key in wanted if key in answer}
    return answer


@route("GET", rf"{API}/refs")
def refs(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo = hub.repo(request, groups)

    def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"{prefix}/{name}", "targetCommit": sha} for name, sha in names.items()]

    branches, tags = listed(repo.branches, "refs/heads"), listed(repo.tags, "refs/tags")
    return as_json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


@route("GET", rf"{API}/commits/(?P<revision>[^/]+)")
def commits(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo = hub.repo(request, groups)
    sha, _ = hub.files(repo, groups["revision"])
    known = {commit.sha: commit for commit in repo.history}
    listed = []
    while sha in known:
        commit = known[sha]
        who = {"authors": [{"user": hub.namespaces[0]}], "date": DATE}
        listed.append({"id": sha, "title": commit.message, "message": commit.description, **who})
        sha = commit.parent
    return hub.page(request, listed)


@route("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
def tree(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    sha, files = hub.files(hub.repo(request, groups), groups["revision"])
    prefix = groups["path"].strip("/") + "/" if groups["path"] else ""
    entries = {p: e for p, e in _entries(hub, files).items() if p.startswith(prefix)}
    if prefix and not entries:
        return error(404, "EntryNotFound", f"{groups['path']} does not exist", sha)
    if request.first("recursive", "false").lower() not in ("true", "1"):
        entries = {p: e for p, e in entries.items() if "/" not in p[len(prefix) :]}
    return hub.page(request, list(entries.values()))


@route("POST", rf"{API}/paths-info/(?P<revision>[^/]+)")
def paths_info(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    _, files = hub.files(hub.repo(request, groups), groups["revision"])
    entries = _entries(hub, files)
    if request.headers.get("content-type", "").startswith("application/json"):
        paths = json.loads(request.body)["paths"]
    else:
        paths = parse_qs(request.body.decode()).get("paths", [])
    return as_json([entries[path.strip("/")] for path in paths if path.strip("/") in entries])


# --- files -------------------------------------------------------------------------------------


@route(
    "GET",
    r"/(?:(?P<plural>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)/(?:resolve|raw)"
    r"/(?P<revision>[^/]+)/(?P<path>.+)",
)
def resolve(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    kind = groups["plural"].removesuffix("s") or "model"
    repo = hub.repo(request, {**groups, "kind": kind})
    sha, files = hub.files(repo, groups["revision"])
    path = groups["path"]
    granted(hub, request, repo)
    if path not in files:
        return error(404, "EntryNotFound", "Entry not found", sha)
    data = files[path]
    if not is_large(path, len(data)):
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_blob_id(data)}"'}
        return ranged(request, data, headers)
    oid = sha256(data)
    headers = {
        "X-Repo-Commit": sha,
        "X-Linked-Etag": f'"{oid}"',
        "X-Linked-Size": str(len(data)),
        "Location": f"{hub.download_host}/objects/{oid}?path={quote(path, safe='')}",
    }
    if oid in hub.xet_hashes:
        tokens = f"{hub.endpoint}/api/{kind}s/{repo.id}/xet-read-token/{sha}"
        headers |= {"X-Xet-Hash": hub.xet_hashes[oid], "Link": f'<{tokens}>; rel="xet-auth"'}
    return Response(302, b"", headers)


@route("GET", r"/objects/(?P<oid>[0-9a-f]{64})")
def download(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    if groups["oid"] not in hub.objects:
        return error(404, "EntryNotFound", "no such object")
    return ranged(request, hub.objects[groups["oid"]], {"ETag": f'"{groups["oid"]}"'})


def ranged(request: Request, data: bytes, headers: dict[str, str]) -> Response:
    """``data``, or the part of it that a Range header asks for."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    start, stop = byte_range(request, len(data))
    if (start, stop) == (0, len(data)) and (not data or "range" not in request.headers):
        return Response(200, data, headers)
    if start >= stop:
        return Response(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return Response(206, data[start:stop], headers)


def byte_range(request: Request, size: int) -> tuple[int, int]:
    """First byte that a Range header asks for and the one after the last; all of them without one."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if match is None or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    return start, min(int(last) + 1, size) if first and last else size


def granted(hub: LoopbackHub, request: Request, repo: Repo) -> None:
    """Raises Refusal if a gate keeps the sender out."""
    if repo.gated and (hub.role(request) is None or not repo.accepted):
        status = 403 if request.token else 401
        message = "Access to this repository is restricted"
        raise Refusal(error(status, "GatedRepo", message))


def _blob(path: str, data: bytes) -> dict[str, Any]:
    """A file in the listing of an info: size, and sha256 if it is large."""
    blob: dict[str, Any] = {"size": len(data), "blobId": git_blob_id(data)}
    if is_large(path, len(data)):
        blob["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
    return blob


def _entries(hub: LoopbackHub, files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Path to tree entry, of files and of the folders they lie in."""
    entries: dict[str, dict[str, Any]] = {}
    for path, data in sorted(files.items()):
        parts = path.split("/")
        for end in range(1, len(parts)):
            folder = "/".join(parts[:end])
            oid = git_blob_id(folder.encode())
            entries[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
        entry = {"type": "file", "oid": git_blob_id(data), "size": len(data), "path": path}
        if is_large(path, len(data)):
            oid = sha256(data)
            entry["oid"] = git_blob_id(b"pointer to " + oid.encode())
            entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
            if oid in hub.xet_hashes:
                entry["xetHash"] = hub.xet_hashes[oid]
        entries[path] = entry
    return entries


def _card(readme: bytes) -> dict[str, Any]:
    """The YAML header of a README."""
    import yaml

    match = re.match(r"---\n(.*?)\n---\n", readme.decode("utf-8", "replace"), re.DOTALL)
    card = yaml.safe_load(match[1]) if match else None
    return card if isinstance(card, dict) else {}


def _tags(card: Mapping[str, Any]) -> list[str]:
    """The card's own tags and those that the Hub makes of its other keys."""

    def several(key: str) -> list[Any]:
        value = card.get(key) or []
        return value if isinstance(value, list) else [value]

    tags = [*several("library_name"), *several("tags")]
    tags += [f"license:{name}" for name in several("license")]
    tags += [f"dataset:{name}" for name in several("datasets")]
    tags += [f"base_model:{name}" for name in several("base_model")]
    if relation := card.get("base_model_relation"):
        tags += [f"base_model:{relation}:{name}" for name in several("base_model")]
    return [str(tag) for tag in tags]
