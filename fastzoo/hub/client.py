"""Asking the Hub: which commit a revision is, and what goes wrong in one line each."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from fastzoo.core.errors import AccessError, FastzooError, HubError, InputError, IntegrityError, NotFoundError
from fastzoo.core.files import MAX_JSON_BYTES, write_text
from fastzoo.core.text import one_line
from fastzoo.core.version import __version__

LOGIN = "log in with 'hf auth login'"

OFFLINE = "offline mode is on; unset HF_HUB_OFFLINE"


def commit_of(kind: str, repo_id: str, revision: str | None = None) -> str:
    """Sha of the commit that a revision of a model or dataset repository is (by default of main).

    Raises NotFoundError, AccessError, HubError: no such repository or revision, no access, no network.
    """
    from huggingface_hub import HfApi

    with hub_errors(kind, repo_id, revision):
        # Only the sha: the whole answer lists every file, which is megabytes for some datasets.
        ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
        sha = ask(repo_id, revision=revision, timeout=30, expand=["sha"]).sha
    if not sha:
        raise NotFoundError(f"the Hub knows no commit of {kind} repository {repo_id}; is it empty?")
    return sha


_UNREACHABLE = "cannot reach {hub} for {what} ({cause}); check the network{instead}"

# huggingface_hub takes for granted that every answer is the JSON that it should be.
_NOT_JSON = (
    "the answer of {hub} for {what} does not come from a Hub ({kind}: {said}); "
    "check HF_ENDPOINT, and whether a proxy answers in its place"
)

_MEANINGS: dict[str, tuple[type[FastzooError], str]] = {
    "RepositoryNotFoundError": (
        NotFoundError,
        "no {what} on {hub}; check the spelling, or {login} if it is private",
    ),
    "RevisionNotFoundError": (
        NotFoundError,
        "{what} has no revision '{revision}'; give a branch, a tag or a full commit sha",
    ),
    "GatedRepoError": (AccessError, "{what} is gated; accept its conditions at {page} and {login}"),
    # Raised by a header that cannot be encoded. It quotes the token itself.
    "UnicodeEncodeError": (
        AccessError,
        "the token (HF_TOKEN, or the saved one) has characters that no token has; {login} again",
    ),
    "HFValidationError": (InputError, "'{name}' is not a valid repository name, such as org/name"),
    "OfflineModeIsEnabled": (HubError, "{what} is needed from {hub}, but {offline}{instead}"),
    "LocalEntryNotFoundError": (HubError, _UNREACHABLE),
    "HTTPError": (HubError, _UNREACHABLE),
    "OSError": (HubError, "{what} could not be fetched: {said}"),
    **dict.fromkeys(("ValueError", "KeyError", "TypeError", "AttributeError"), (HubError, _NOT_JSON)),
}
"""What errors of huggingface_hub mean, by the name of their class or of its nearest base class."""


@contextmanager
def hub_errors(kind: str, repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises about a model, dataset, space, collection or namespace into one line of ours."""
    try:
        yield
    except FastzooError:
        raise
    except Exception as error:
        ours = _in_one_line(error, kind, repo_id, revision)
        if ours is None:
            raise
        # A failed connection keeps its cause, which decides whether it is tried again.
        raise ours from (error if type(ours) is HubError else None)


def _in_one_line(error: Exception, kind: str, repo_id: str, revision: str | None) -> FastzooError | None:
    from huggingface_hub import constants

    hub, name, login = constants.ENDPOINT, one_line(repo_id, 100), f"{LOGIN}, with a token that may do this"
    what = f"{kind if kind in ('collection', 'namespace') else f'{kind} repository'} {name}"
    words = {
        "hub": hub,
        "name": name,
        "what": what,
        "kind": type(error).__name__,
        "said": one_line(error, 150),
        "cause": one_line(error.__cause__ or error, 100),
        "revision": one_line(revision, 60),
        "page": f"{hub}/{'datasets/' if kind == 'dataset' else ''}{repo_id}",
        "instead": "" if kind == "namespace" else ", or name a local folder instead",
        "login": LOGIN,
        "offline": OFFLINE,
    }
    for base in type(error).__mro__:
        if base.__name__ in _MEANINGS:
            ours, text = _MEANINGS[base.__name__]
            return ours(text.format(**words))
        if base.__name__ == "HfHubHTTPError":
            if status_of(error) == 404:
                return NotFoundError(f"no {what} on {hub}: {words['said']}")
            return refusal(error, hub, f" for {what}", words["said"], login)
    return None


def refusal(error: Exception, server: str, what: str, said: str, login: str) -> HubError:
    """An answer that is an error (huggingface_hub's HfHubHTTPError), in one line. ``what`` is " for ..." what was
    asked for, or nothing; ``said`` the server's own words; ``login`` what to do if access was refused."""
    status = status_of(error)
    if status in (401, 403):
        return AccessError(f"{server} refused access{what} ({status}); {login}")
    if status == 429:
        return HubError(f"{server} is rate limiting; wait some minutes and run again")
    kind = NotFoundError if status == 404 else HubError
    return kind(f"{server} answered {status}{what}: {said}")


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status of an error that is a server's answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def read_file(
    kind: str, repo_id: str, path: str, revision: str | None = None, *, seconds: float = 60.0
) -> bytes:
    """A small file of the Hub, in one request. The Hub may be silent for ``seconds``, and its whole answer take as long.

    Raises NotFoundError, AccessError, HubError, or IntegrityError: it is larger than such files are.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repo_id, path, repo_type=kind, revision=revision)
    headers = build_hf_headers(library_name="fastzoo", library_version=__version__)
    content, until = bytearray(), time.monotonic() + seconds
    with (
        hub_errors(kind, repo_id, revision),
        get_session().stream("GET", url, headers=headers, timeout=seconds) as response,
    ):
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        for piece in response.iter_bytes(1 << 16):
            content += piece
            if len(content) > MAX_JSON_BYTES:
                raise IntegrityError(f"{repo_id}: {path} has more than {MAX_JSON_BYTES} bytes")
            if time.monotonic() > until:
                raise HubError(f"{repo_id}: {path} took more than {seconds:.0f} s to come")
    return bytes(content)


def state_folder(namespace: str) -> Path:
    """Where what is known of a namespace is kept: beside the other Hub caches, per endpoint."""
    from huggingface_hub import constants

    host = re.sub(r"[^A-Za-z0-9.-]", "_", urlsplit(constants.ENDPOINT).netloc)
    return Path(constants.HF_HOME) / "fastzoo" / host / namespace


def write_cached(path: Path, text: str) -> None:
    """Write a file of ``state_folder``, or do without it where that cannot be written."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
