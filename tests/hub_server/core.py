"""The loopback Hub without its endpoints: what it holds, who may do what, the server and its log.

An endpoint is a function from the Hub, a ``Request`` and the named groups of its path to a ``Response``,
registered with ``@route`` by the modules beside this one.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_server.data import Commit, Repo, is_large, sha256
from hub_server.faults import Faults, RateLimit
from hub_server.messages import Refusal, Request, Response, as_json, error

if TYPE_CHECKING:
    from hub_server.collections import Collection
    from hub_server.xet import Term, Xorb

TOKEN = "hf_loopback"
READ_TOKEN = "hf_loopback_read"


Endpoint = Callable[["LoopbackHub", Request, dict[str, str]], Response]
ROUTES: list[tuple[str, re.Pattern[str], Endpoint]] = []
KINDS = r"(?P<kind>model|dataset|space)s"
API = rf"/api/{KINDS}/(?P<id>[^/]+/[^/]+)"


def route(method: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint; ``pattern`` is matched with the whole percent-encoded path."""

    def register(endpoint: Endpoint) -> Endpoint:
        ROUTES.append((method, re.compile(pattern), endpoint))
        return endpoint

    return register


class LoopbackHub(Faults):
    """The server, started by ``with``; a test may change any attribute.

    Attributes:
        repos: (kind, id) to Repo.
        moved: (kind, former id) to the id of today.
        objects: sha256 to bytes, what the download host serves; put other bytes in to corrupt it.
        collections: id of 24 hex digits to Collection, in the order in which they were made.
        tokens: token to its role, "write" or "read"; any other token is refused.
        namespaces: where a write token may write; the first one is the user's.
        requests: everything asked of this Hub, in order; each says what became of it.
        foreign: what was asked of any other host (the clients are told to use this one as proxy).
        page_size: entries in one page of a listing.
        part_size: bytes above which an LFS object is sent in parts of that size; None: never.
        verify: whether clients are told to ask for an LFS object's check after sending it.
        most_items: above which a collection takes no more items; None: no limit.
        unique_titles: whether a second collection of the same title in a namespace is refused.
        xet_hashes: sha256 to the Xet hash of the files whose bytes are in the Xet store.
        xet_xorbs: hash to Xorb, the bundles of chunks of which those files consist.
        xet_files: Xet hash to the file's pieces.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.moved: dict[tuple[str, str], str] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.collections: dict[str, Collection] = {}
        self.collections_made = 0
        self.tokens = {TOKEN: "write", READ_TOKEN: "read"}
        self.namespaces: Sequence[str] = ("user", "org")
        self.requests: list[Request] = []
        self.foreign: list[str] = []
        self.faults: list[Callable[[Request], Response | None]] = []
        self.page_size = 1000
        self.part_size: int | None = None
        self.verify = False
        self.most_items: int | None = None
        self.unique_titles = False
        self.xet_hashes: dict[str, str] = {}
        self.xet_xorbs: dict[str, Xorb] = {}
        self.xet_files: dict[str, list[Term]] = {}
        self.rate_limit: RateLimit | None = None
        self.lock = threading.RLock()

    def start(self, port: int = 0) -> LoopbackHub:
        """Listen on 127.0.0.1; by default on any free port."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self.port = self._server.server_address[1]
        # Large files come from a host of another name, as on the real Hub: the client must not
        # send its token there, and reads X-Repo-Commit from the redirect only if the names differ.
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.download_host = f"http://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> LoopbackHub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

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
                if is_large(path, len(data)):
                    self.keep(repo, data)
        return sha

    def keep(self, repo: Repo, data: bytes) -> str:
        """Keep a large object; returns its sha256."""
        oid = sha256(data)
        self.objects[oid] = data
        repo.lfs.add(oid)
        return oid

    def commits(self, kind: str | None = None, repo_id: str | None = None) -> list[Commit]:
        """The commits that clients made: of one repository, of one kind or, without arguments, all.

        Repository by repository, oldest first. What a repository starts with ("initial commit") and
        what ``add`` brought are not among them.
        """
        with self.lock:
            repos = list(self.repos.values())
        found = [r for r in repos if kind in (None, r.kind) and repo_id in (None, r.id)]
        return [commit for repo in found for commit in repo.history if commit.pushed]

    def env(self, home: Path, *, xet: bool = False, **extra: str) -> dict[str, str]:
        """Environment for a subprocess whose clients know only this Hub; caches in ``home``.

        With ``xet`` large files go to and come from the Xet store, else by LFS.
        """
        env = {k: v for k, v in os.environ.items() if not _FOREIGN_SETTINGS.match(k)}
        env |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home / "hf"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": str(int(not xet)),
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

    def limit(self, requests: int, window_seconds: int) -> None:
        """Refuse more than ``requests`` API requests of a token in each window of time.

        Files (``/resolve/``) and the object storage are not counted, as on the real Hub, which has
        other limits for them.
        """
        self.rate_limit = RateLimit(requests, window_seconds)

    # --- answering ---

    def answer(self, request: Request) -> Response:
        """What this Hub says to a request."""
        limited = self.rate_limit is not None and not request.is_storage
        if self.rate_limit is None or not limited or "/resolve/" in request.path:
            return self._disturbed(request)
        allowed, headers = self.rate_limit.count(request.token)
        if allowed:
            response = self._disturbed(request)
        else:
            request.fault = True
            response = error(429, "TooManyRequests", "you have reached your rate limit")
            response.headers["Retry-After"] = headers["RateLimit"].rpartition("t=")[2]
        response.headers = {**headers, **response.headers}
        return response

    def _disturbed(self, request: Request) -> Response:
        for fault in list(self.faults):
            response = fault(request)
            if response is not None:
                request.fault = True
                return response
        return self.undisturbed(request)

    def undisturbed(self, request: Request) -> Response:
        """The answer without any fault."""
        method = "GET" if request.method == "HEAD" else request.method
        for allowed, pattern, endpoint in ROUTES:
            match = pattern.fullmatch(request.path)
            if allowed == method and match:
                groups = {key: unquote(value or "") for key, value in match.groupdict().items()}
                try:
                    with self.lock:  # an endpoint happens whole or, refusing, not at all
                        self._known(request)
                        return endpoint(self, request, groups)
                except Refusal as refusal:
                    return refusal.response
        return error(404, "NotFound", f"the loopback Hub has no {request}")

    # --- what an endpoint needs ---

    def role(self, request: Request) -> str | None:
        """What the sender may do: "write", "read" or, unknown, None."""
        return self.tokens.get(request.token or "")

    def _known(self, request: Request) -> None:
        if not request.is_storage and request.token and self.role(request) is None:
            message = "Invalid credentials in Authorization header"
            raise Refusal(error(401, "Unauthorized", message))

    def writer(self, request: Request, namespace: str) -> None:
        """Raises Refusal unless the sender may write in ``namespace``."""
        if request.token is None:
            raise Refusal(error(401, "Unauthorized", "Invalid username or password."))
        if self.role(request) != "write":
            message = "Forbidden: you must use a write token, this one can only read"
            raise Refusal(error(403, "Forbidden", message))
        if namespace not in self.namespaces:
            message = f'You don\'t have the rights to write under the namespace "{namespace}"'
            raise Refusal(error(403, "Forbidden", message))

    def repo(
        self, request: Request, groups: Mapping[str, str], write: bool = False, follow: bool = True
    ) -> Repo:
        """The repository of a request, if its sender may see it, and ``write`` to it.

        ``follow``: whether a former id leads to the id of today.
        """
        key = (groups["kind"], groups["id"])
        repo = self.repos.get(key)
        if repo is None and key in self.moved and follow:
            path = request.path.replace(quote(key[1]), quote(self.moved[key]), 1)
            raise Refusal(Response(307, b"", {"Location": request.url(path)}))
        if repo is None or (repo.private and self.role(request) is None):
            status = 401 if request.token is None else 404
            raise Refusal(error(status, "RepoNotFound", "Repository not found"))
        if write:
            self.writer(request, repo.id.split("/")[0])
        return repo

    def files(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        """Commit sha and files of a revision."""
        sha = repo.resolve(revision or "main")
        if sha is None:
            raise Refusal(error(404, "RevisionNotFound", f"Invalid rev id: {revision}"))
        return sha, repo.commits[sha]

    def page(self, request: Request, entries: Sequence[Any]) -> Response:
        """One page of a listing, with the address of the next one if there are more entries."""
        start, limit = request.first("cursor", "0"), request.first("limit", str(self.page_size))
        if not (start.isdigit() and limit.isdigit()):
            return error(400, "BadRequest", "cursor and limit are whole numbers")
        stop = int(start) + min(int(limit), self.page_size)
        response = as_json(entries[int(start) : stop])
        if stop < len(entries):
            following = self.endpoint + request.url(request.path, cursor=str(stop))
            response.headers["Link"] = f'<{following}>; rel="next"'
        return response


_FOREIGN_SETTINGS = re.compile(
    r"HF_|HUGGING_?FACE|TRANSFORMERS_|DATASETS_|(http|https|all|no|ftp)_proxy$", re.IGNORECASE
)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # clients that come at once


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, logs it, sends the answer."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with suppress(ConnectionError):  # clients may hang up as they like
            super().handle()

    def handle_any(self) -> None:
        body = self.body()
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
        response = self.hub.answer(request)
        request.status = response.status
        self.send(response)

    def body(self) -> bytes:
        """The whole body; raises ConnectionError if the client stops before its end."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.exactly(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.line().partition(b";")[0], 16):
            pieces.append(self.exactly(size))
            self.line()
        while self.line().strip():  # trailers
            pass
        return b"".join(pieces)

    def line(self) -> bytes:
        line = self.rfile.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the client stopped in the middle of its request")
        return line

    def exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionResetError("the client stopped in the middle of its request")
        return data

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
