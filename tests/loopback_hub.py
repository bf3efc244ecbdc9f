"""A Hub on 127.0.0.1 that the real huggingface_hub, datasets and transformers clients talk to.

The clients read their settings when they are imported, so a test runs them in a subprocess:

    with LoopbackHub() as hub:
        sha = hub.add("dataset", "org/name", {"data/train.jsonl": b"..."})
        subprocess.run([sys.executable, "-c", code], env=hub.env(tmp_path))
        assert not hub.foreign  # no other host was asked for anything

How it is built: ``Repo`` holds the data, ``LoopbackHub`` the repositories, the large objects and
the log; an endpoint is a function from a ``Request`` to a ``Response``, registered with ``@route``.
A fault is a function put into ``hub.faults``: what it returns, if anything, is the answer.
``hub.fail`` puts one there that befalls some of the requests; ``hub.cut`` and ``hang_up`` are faults
of the connection.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

TOKEN = "hf_loopback"
LARGE = (".safetensors", ".parquet", ".npz", ".bin", ".pt", ".pth", ".pkl", ".gz", ".zst", ".png")
"""Kept as LFS objects, as the Hub's default .gitattributes has it."""


# --- data --------------------------------------------------------------------------------------


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path: str, data: bytes) -> bool:
    """Whether a file is an LFS object; empty files never are."""
    return bool(data) and (path.endswith(LARGE) or len(data) > 10 * 2**20)


@dataclass
class Repo:
    """One repository: its commits, and branches and tags pointing at them."""

    kind: str  # model, dataset or space
    id: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Make a commit that holds exactly ``files``; returns its sha."""
        parent = self.branches.get(branch, "")
        content = [(path, sha256(data)) for path, data in sorted(files.items())]
        sha = hashlib.sha1(repr((self.kind, self.id, parent, content)).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """Commit sha of a branch, a tag, a ref or a (shortened) sha."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(name) or self.tags.get(name)
        if sha is None and re.fullmatch(r"[0-9a-f]{7,40}", revision):
            sha = next((sha for sha in self.commits if sha.startswith(revision)), None)
        return sha


@dataclass(frozen=True)
class Request:
    method: str
    host: str
    path: str  # percent-encoded, as received
    query: dict[str, list[str]]
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def authorized(self) -> bool:
        return "authorization" in self.headers

    def __str__(self) -> str:
        return f"{self.method} {unquote(self.path)}"


@dataclass
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    """Bytes of the body after which the connection is closed; None where it is not."""


def hang_up(request: Request) -> Response:
    """The fault of a connection that is closed without an answer."""
    return Response(0)


def as_json(value: Any, status: int = 200, **headers: str) -> Response:
    headers = {"Content-Type": "application/json; charset=utf-8", **headers}
    return Response(status, json.dumps(value).encode(), headers)


def error(status: int, code: str, message: str, sha: str = "") -> Response:
    """A refusal with the headers by which the client tells one from another."""
    headers = {"X-Error-Code": code, "X-Error-Message": " ".join(message.split())}
    if sha:
        headers["X-Repo-Commit"] = sha  # lets the client remember that a file does not exist
    response = as_json({"error": message}, status)
    response.headers.update(headers)
    return response


class Refusal(Exception):
    """Raised inside an endpoint to answer with ``response``."""

    def __init__(self, response: Response):
        self.response = response


# --- the server --------------------------------------------------------------------------------

Endpoint = Callable[["LoopbackHub", Request, dict[str, str]], Response]
ROUTES: list[tuple[str, re.Pattern[str], Endpoint]] = []
API = r"/api/(?P<kind>model|dataset|space)s/(?P<id>[^/]+/[^/]+)"


def route(method: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint; ``pattern`` is matched with the whole percent-encoded path."""

    def register(endpoint: Endpoint) -> Endpoint:
        ROUTES.append((method, re.compile(pattern), endpoint))
        return endpoint

    return register


class LoopbackHub:
    """The server, started by ``with``; a test may change ``repos``, ``objects`` and ``faults``.

    Attributes:
        repos: (kind, id) to Repo.
        objects: sha256 to bytes, what the download host serves; put other bytes in to corrupt it.
        requests: everything asked of this Hub, in order.
        foreign: what was asked of any other host (the clients are told to use this one as proxy).
        faults: functions from Request to Response or None, asked before the endpoints.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.foreign: list[str] = []
        self.faults: list[Callable[[Request], Response | None]] = []
        self.lock = threading.Lock()

    def __enter__(self) -> LoopbackHub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        # Large files come from a host of another name, as on the real Hub: the client must not
        # send its token there, and reads X-Repo-Commit from the redirect only if the names differ.
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.download_host = f"http://localhost:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(
        self,
        kind: str,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        branch: str = "main",
        tag: str | None = None,
    ) -> str:
        """Add a commit holding exactly ``files``, making the repository if need be; its sha."""
        with self.lock:
            repo = self.repos.setdefault((kind, repo_id), Repo(kind, repo_id))
            sha = repo.commit(files, branch)
            if tag is not None:
                repo.tags[tag] = sha
            for path, data in files.items():
                if is_large(path, data):
                    self.objects[sha256(data)] = data
        return sha

    def env(self, home: Path, **extra: str) -> dict[str, str]:
        """Environment for a subprocess whose clients know only this Hub; caches in ``home``."""
        env = {k: v for k, v in os.environ.items() if not _FOREIGN_SETTINGS.match(k)}
        env |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home / "hf"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # else datasets tells S3 what it loads
            "DISABLE_SAFETENSORS_CONVERSION": "1",  # else transformers asks a Space to do it
            "TOKENIZERS_PARALLELISM": "false",
        }
        # Anything meant for another host comes here too, is refused and stands in `foreign`.
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            env[name] = env[name.upper()] = self.endpoint
        env["no_proxy"] = env["NO_PROXY"] = "127.0.0.1,localhost"
        return env | extra

    def asked(self, pattern: str) -> list[str]:
        """The logged requests, as ``GET /path``, in which ``pattern`` is found."""
        return [text for text in map(str, list(self.requests)) if re.search(pattern, text)]

    def answer(self, request: Request) -> Response:
        """What this Hub says to a request."""
        for fault in list(self.faults):
            response = fault(request)
            if response is not None:
                return response
        return self.undisturbed(request)

    def fail(
        self,
        pattern: str,
        how: Callable[[Request], Response],
        *,
        after: int = 0,
        times: int | None = None,
    ) -> list[Request]:
        """Add the fault ``how``; it befalls GET requests in which ``pattern`` is found (as ``asked``).

        The first ``after`` of these are spared, and all once ``times`` were met. Returns the list of
        those that were met, which grows.
        """
        spared, met = [], []

        def fault(request: Request) -> Response | None:
            if request.method != "GET" or not re.search(pattern, str(request)):
                return None
            with self.lock:
                if len(spared) < after:
                    spared.append(request)
                    return None
                if times is not None and len(met) >= times:
                    return None
                met.append(request)
            return how(request)

        self.faults.append(fault)
        return met

    def cut(self, request: Request) -> Response:
        """The fault of a connection that is closed in the middle of the body."""
        response = self.undisturbed(request)
        return replace(response, sent=len(response.body) // 2)

    def undisturbed(self, request: Request) -> Response:
        """The answer without any fault."""
        method = "GET" if request.method == "HEAD" else request.method
        for allowed, pattern, endpoint in ROUTES:
            match = pattern.fullmatch(request.path)
            if allowed == method and match:
                groups = {key: unquote(value or "") for key, value in match.groupdict().items()}
                try:
                    return endpoint(self, request, groups)
                except Refusal as refusal:
                    return refusal.response
        return error(404, "NotFound", f"the loopback Hub has no {request}")

    def repo(self, request: Request, groups: Mapping[str, str]) -> Repo:
        """The repository of a request, if its sender may see it."""
        repo = self.repos.get((groups["kind"], groups["id"]))
        if repo is None or (repo.private and not request.authorized):
            raise Refusal(error(401, "RepoNotFound", "Repository not found"))
        return repo

    def files(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        """Commit sha and files of a revision."""
        sha = repo.resolve(revision or "main")
        if sha is None:
            raise Refusal(error(404, "RevisionNotFound", f"Invalid rev id: {revision}"))
        return sha, repo.commits[sha]


_FOREIGN_SETTINGS = re.compile(
    r"HF_|HUGGING_?FACE|TRANSFORMERS_|DATASETS_|(http|https|all|no|ftp)_proxy$", re.IGNORECASE
)


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, logs it, sends the answer."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with suppress(ConnectionError):  # clients may hang up as they like
            super().handle()

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        host = self.headers.get("Host", "")
        port = self.hub.port
        if self.command == "CONNECT" or host not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self.hub.foreign.append(f"{self.command} {self.path}")
            self.send(Response(502, b"the loopback Hub is the only host"))
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = parse_qs(url.query, keep_blank_values=True)
        request = Request(self.command, host, url.path, query, headers, body)
        with self.hub.lock:
            self.hub.requests.append(request)
        self.send(self.hub.answer(request))

    def send(self, response: Response) -> None:
        if response.status == 0:
            self.close_connection = True
            return
        self.send_response(response.status)
        for name, value in {"Content-Length": str(len(response.body)), **response.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[: response.sent])
        if response.sent is not None:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        pass


# --- endpoints: reading ------------------------------------------------------------------------


@route("GET", r"/api/whoami-v2")
def whoami(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    if request.headers.get("authorization") != f"Bearer {TOKEN}":
        return error(401, "Unauthorized", "Invalid credentials in Authorization header")
    token = {"displayName": "loopback", "role": "write"}
    orgs = [{"type": "org", "name": "org", "fullname": "org", "roleInOrg": "admin"}]
    who = {"type": "user", "name": "user", "fullname": "A User", "orgs": orgs}
    return as_json({**who, "auth": {"type": "access_token", "accessToken": token}})


@route("GET", rf"{API}(?:/revision/(?P<revision>[^/]+))?")
def info(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo = hub.repo(request, groups)
    sha, files = hub.files(repo, groups["revision"])
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
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "tags": card.get("tags", []),
        "cardData": card,
        "downloads": 0,
        "likes": 0,
        "createdAt": "2025-01-01T00:00:00.000Z",
        "lastModified": "2025-01-01T00:00:00.000Z",
        "siblings": siblings,
    }
    if "expand" in request.query:
        answer = {key: answer[key] for key in ("_id", "id", *request.query["expand"])}
    return as_json(answer)


@route("GET", rf"{API}/refs")
def refs(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo = hub.repo(request, groups)

    def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"{prefix}/{name}", "targetCommit": sha}
            for name, sha in names.items()
        ]

    branches, tags = listed(repo.branches, "refs/heads"), listed(repo.tags, "refs/tags")
    return as_json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


@route("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
def tree(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    sha, files = hub.files(hub.repo(request, groups), groups["revision"])
    prefix = groups["path"].strip("/") + "/" if groups["path"] else ""
    entries = {p: e for p, e in _entries(files).items() if p.startswith(prefix)}
    if prefix and not entries:
        return error(404, "EntryNotFound", f"{groups['path']} does not exist", sha)
    if request.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
        entries = {p: e for p, e in entries.items() if "/" not in p[len(prefix) :]}
    return as_json(list(entries.values()))


@route("POST", rf"{API}/paths-info/(?P<revision>[^/]+)")
def paths_info(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    _, files = hub.files(hub.repo(request, groups), groups["revision"])
    entries = _entries(files)
    if request.headers.get("content-type", "").startswith("application/json"):
        paths = json.loads(request.body)["paths"]
    else:
        paths = parse_qs(request.body.decode()).get("paths", [])
    return as_json([entries[path.strip("/")] for path in paths if path.strip("/") in entries])


@route(
    "GET",
    r"/(?:(?P<plural>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)/(?:resolve|raw)"
    r"/(?P<revision>[^/]+)/(?P<path>.+)",
)
def resolve(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    repo = hub.repo(request, {**groups, "kind": groups["plural"].removesuffix("s") or "model"})
    sha, files = hub.files(repo, groups["revision"])
    path = groups["path"]
    if repo.gated:
        return error(403, "GatedRepo", "Access to this repository is restricted")
    if path not in files:
        return error(404, "EntryNotFound", "Entry not found", sha)
    data = files[path]
    if not is_large(path, data):
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_blob_id(data)}"'}
        return ranged(request, data, headers)
    oid = sha256(data)
    headers = {
        "X-Repo-Commit": sha,
        "X-Linked-Etag": f'"{oid}"',
        "X-Linked-Size": str(len(data)),
        "Location": f"{hub.download_host}/objects/{oid}?path={quote(path, safe='')}",
    }
    return Response(302, b"", headers)


@route("GET", r"/objects/(?P<oid>[0-9a-f]{64})")
def download(hub: LoopbackHub, request: Request, groups: dict[str, str]) -> Response:
    if groups["oid"] not in hub.objects:
        return error(404, "EntryNotFound", "no such object")
    return ranged(request, hub.objects[groups["oid"]], {"ETag": f'"{groups["oid"]}"'})


def ranged(request: Request, data: bytes, headers: dict[str, str]) -> Response:
    """``data``, or the part of it that a Range header asks for."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if match is None or match.groups() == ("", ""):
        return Response(200, data, headers)
    first, last = match.groups()
    start = int(first) if first else max(len(data) - int(last), 0)
    stop = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= stop:
        return Response(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return Response(206, data[start:stop], headers)


def _blob(path: str, data: bytes) -> dict[str, Any]:
    """A file in the listing of an info: size, and sha256 if it is large."""
    blob: dict[str, Any] = {"size": len(data), "blobId": git_blob_id(data)}
    if is_large(path, data):
        blob["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
    return blob


def _entries(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Path to tree entry, of files and of the folders they lie in."""
    entries: dict[str, dict[str, Any]] = {}
    for path, data in sorted(files.items()):
        parts = path.split("/")
        for end in range(1, len(parts)):
            folder = "/".join(parts[:end])
            oid = git_blob_id(folder.encode())
            entries[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
        entry = {"type": "file", "oid": git_blob_id(data), "size": len(data), "path": path}
        if is_large(path, data):
            entry["oid"] = git_blob_id(b"pointer to " + sha256(data).encode())
            entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
        entries[path] = entry
    return entries


def _card(readme: bytes) -> dict[str, Any]:
    """The YAML header of a README."""
    import yaml

    match = re.match(r"---\n(.*?)\n---\n", readme.decode("utf-8", "replace"), re.DOTALL)
    card = yaml.safe_load(match[1]) if match else None
    return card if isinstance(card, dict) else {}
