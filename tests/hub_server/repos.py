"""Endpoints of the loopback Hub: making, moving, setting and removing repositories and refs."""

from __future__ import annotations

import re

from hub_server.core import API, LoopbackHub, route
from hub_server.data import LARGE, Repo
from hub_server.messages import Request, Response, as_json, error

NAME = re.compile(r"(?!.*(--|\.\.))(?!.*\.git$)[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
ATTRIBUTES = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE).encode()
SDKS = ("gradio", "docker", "static")
OK = {"success": True}


@route("POST", r"/api/repos/create")
def create(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    asked = request.json()
    kind, name = asked.get("type") or "model", str(asked.get("name"))
    namespace = asked.get("organization") or hub.namespaces[0]
    hub.writer(request, namespace)
    if kind not in ("model", "dataset", "space"):
        return error(400, "BadRequest", f"unknown type of repository {kind!r}")
    if not NAME.fullmatch(name):
        return error(400, "BadRequest", f"{name!r} is no repository's name")
    if kind == "space" and asked.get("sdk") not in SDKS:
        return error(400, "BadRequest", f"sdk: one of {', '.join(SDKS)}")
    repo = Repo(kind, f"{namespace}/{name}", private=asked.get("visibility") == "private")
    repo.sdk = asked.get("sdk")
    answer = {"url": repo.url(hub.endpoint), "name": repo.id, "id": repo.id}
    if (kind, repo.id) in hub.repos:
        message = f"You already created this {kind} repo: {repo.id}"
        return error(409, "RepoExists", message, **answer)
    repo.commit({".gitattributes": ATTRIBUTES}, message="initial commit")
    hub.moved.pop((kind, repo.id), None)
    hub.repos[kind, repo.id] = repo
    return as_json(answer)


@route("DELETE", r"/api/repos/delete")
def delete(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    asked = request.json()
    namespace = asked.get("organization") or hub.namespaces[0]
    key = (asked.get("type") or "model", f"{namespace}/{asked.get('name')}")
    hub.repo(request, {"kind": key[0], "id": key[1]}, write=True, follow=False)
    del hub.repos[key]
    for collection in hub.collections.values():
        collection.items = [i for i in collection.items if (i.type, i.id) != key]
    return as_json(OK)


@route("POST", r"/api/repos/move")
def move(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    asked = request.json()
    kind, old, new = (str(asked.get(key)) for key in ("type", "fromRepo", "toRepo"))
    repo = hub.repo(request, {"kind": kind, "id": old}, write=True, follow=False)
    namespace, _, name = new.partition("/")
    hub.writer(request, namespace)
    if not NAME.fullmatch(name):
        return error(400, "BadRequest", f"{new!r} is no repository's name")
    if (kind, new) in hub.repos:
        return error(409, "RepoExists", f"there is a {kind} {new} already")
    hub.repos[kind, new] = hub.repos.pop((kind, old))
    repo.id = new
    for key, to in hub.moved.items():
        if (key[0], to) == (kind, old):
            hub.moved[key] = new
    hub.moved.pop((kind, new), None)
    hub.moved[kind, old] = new
    for collection in hub.collections.values():
        for item in collection.items:
            if (item.type, item.id) == (kind, old):
                item.id = new
    return as_json(OK)


@route("PUT", rf"{API}/settings")
def settings(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo = hub.repo(request, groups, write=True)
    asked = request.json()
    visibility, gated = asked.get("visibility", "public"), asked.get("gated", False)
    if visibility not in ("public", "private") or gated not in (False, "auto", "manual"):
        return error(400, "BadRequest", "visibility: public or private; gated: auto, manual, false")
    if "visibility" in asked:
        repo.private = visibility == "private"
    if "gated" in asked:
        repo.gated, repo.accepted = gated, True  # whoever owns it may read it
    return as_json({"private": repo.private, "gated": repo.gated})


# --- refs --------------------------------------------------------------------------------------


@route("POST", rf"{API}/branch/(?P<name>[^/]+)")
def create_branch(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo = hub.repo(request, groups, write=True)
    asked = request.json() if request.body else {}
    return _point(hub, repo, repo.branches, groups["name"], asked.get("startingPoint", ""))


@route("POST", rf"{API}/tag/(?P<revision>[^/]+)")
def create_tag(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo = hub.repo(request, groups, write=True)
    name = request.json().get("tag")
    return _point(hub, repo, repo.tags, str(name), groups["revision"])


def _point(hub: LoopbackHub, repo: Repo, names: dict[str, str], name: str, revision: str) -> Response:
    if not re.fullmatch(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._/+-]*", name):
        return error(400, "BadRequest", f"{name!r} is no name of a branch or tag")
    sha, _ = hub.files(repo, revision)
    if name in names:
        return error(409, "Conflict", f"Reference {name} exists already")
    names[name] = sha
    return as_json(OK)


@route("DELETE", rf"{API}/(?P<what>branch|tag)/(?P<name>[^/]+)")
def delete_ref(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo = hub.repo(request, groups, write=True)
    names = repo.branches if groups["what"] == "branch" else repo.tags
    if groups["name"] not in names:
        return error(404, "RevisionNotFound", f"Invalid rev id: {groups['name']}")
    if names is repo.branches and groups["name"] == "main":
        return error(403, "Forbidden", "the main branch cannot be deleted")
    del names[groups["name"]]
    return as_json(OK)
