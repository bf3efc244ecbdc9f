"""Files into a repository on the Hub: sent until they are there, and never twice.

Nothing is believed but what the Hub lists afterwards. A commit whose answer was lost is found there,
not made again; one that somebody else made meanwhile is read first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fastzoo.core.errors import InputError, IntegrityError, NotFoundError
from fastzoo.core.files import sha256_of
from fastzoo.core.text import one_line
from fastzoo.hub.client import hub_errors
from fastzoo.hub.registry import FileFacts
from fastzoo.hub.retries import TRIES, passes_by_itself, patiently, wait

MOST_COMMITS = 3
"""Commits that went well but left other bytes than were sent, before the Hub is given up."""


@dataclass
class Content:
    """What a file is to hold: the bytes of a local one, or these."""

    source: Path | bytes

    def __post_init__(self) -> None:
        self._as_found = self._state()

    def _state(self) -> tuple[int, int] | None:
        if isinstance(self.source, bytes):
            return None
        found = self.source.stat()
        return found.st_size, found.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raise InputError if the file is not as it was when this was made."""
        try:
            same = self._state() == self._as_found
        except OSError:
            same = False
        if not same:
            raise InputError(
                f"'{self.source!s}' was changed while it was being published; push it again once "
                "nothing writes to it"
            )

    @cached_property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        return sha256_of(self.source)

    @cached_property
    def git_id(self) -> str:
        """Git's name of these bytes, which is all that the Hub lists of a small file."""
        data = bytes(self)
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def __bytes__(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    @property
    def facts(self) -> FileFacts:
        return FileFacts(self.size, self.sha256)


@dataclass(frozen=True)
class Listed:
    """A file as the Hub lists it."""

    size: int | None
    git_id: str | None
    sha256: str | None
    """None where the file is small and kept in git itself."""

    def holds(self, content: Content) -> bool:
        if self.size != content.size:
            return False
        return self.sha256 == content.sha256 if self.sha256 else self.git_id == content.git_id


@dataclass(frozen=True)
class Remote:
    """A repository's main branch as the Hub lists it."""

    sha: str | None = None
    files: Mapping[str, Listed] = field(default_factory=dict)
    private: bool = False


def look(kind: str, repo_id: str, revision: str | None = None) -> Remote:
    """What a repository holds, in one request.

    Raises:
        NotFoundError, AccessError, HubError.
    """
    with hub_errors(kind, repo_id, revision):
        return patiently(lambda: _look(kind, repo_id, revision), f"{kind} {repo_id}")


def look_or_make(kind: str, repo_id: str, *, private: bool, sdk: str | None = None) -> Remote:
    """What a repository holds, which is made if it is not there.

    Raises:
        AccessError, HubError.
    """
    try:
        return look(kind, repo_id)
    except NotFoundError:
        make_repo(kind, repo_id, private=private, sdk=sdk)
        # Somebody else may have made it, and written to it, in the same moment.
        return look(kind, repo_id)


def make_repo(kind: str, repo_id: str, *, private: bool, sdk: str | None = None) -> bool:
    """Make a repository; False if it is there already.

    Raises:
        AccessError, HubError.
    """
    from huggingface_hub import create_repo
    from huggingface_hub.errors import HfHubHTTPError

    def make() -> bool:
        try:
            create_repo(repo_id, repo_type=kind, private=private, space_sdk=sdk)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            return False
        return True

    with hub_errors(kind, repo_id):
        return patiently(make, f"making {kind} {repo_id}")


def put(
    kind: str,
    repo_id: str,
    wanted: Callable[[Remote], Mapping[str, Content]],
    remote: Remote,
    message: str,
) -> tuple[Remote, Mapping[str, Content]]:
    """Make commits until a repository holds files, each made from what it held before.

    Args:
        wanted: path to content, for what the repository holds; asked again after each change of it.
        remote: what it holds; ``Remote()`` for one just made.

    Returns:
        What it holds in the end, and the files that were wanted of that.

    Raises:
        InputError: the Hub refuses the card's metadata or a file; a file was changed meanwhile.
        IntegrityError: it goes on holding other bytes than were sent.
        AccessError, HubError.
    """
    failed = done = 0
    while True:
        files = wanted(remote)
        missing = {
            path: content
            for path, content in files.items()
            if path not in remote.files or not remote.files[path].holds(content)
        }
        if done or not missing:
            # hf_xet believes the hash that it is given: of a file that changes while it is sent, the
            # Hub could list what it was.
            for content in files.values():
                content.check_unchanged()
        if not missing:
            return remote, files
        if done == MOST_COMMITS:
            raise IntegrityError(
                f"{repo_id}: the Hub took {one_line(', '.join(missing), 200)} {done} times and does not "
                "hold the bytes that were sent; push again later"
            )
        revision = None
        try:
            revision = _commit(kind, repo_id, missing, remote.sha, message)
            done += 1
        except Exception as error:
            overtaken = _status(error) == 412
            failed += 1
            if failed == TRIES or not (overtaken or passes_by_itself(error)):
                for content in missing.values():
                    content.check_unchanged()
                with hub_errors(kind, repo_id):
                    raise
            if failed > 1 or not overtaken:
                wait(error, f"{kind} {repo_id}", failed)
        # Of a commit whose answer was lost only this tells.
        remote = look(kind, repo_id, revision)


def read_text(repo_id: str, path: str, kind: str, revision: str | None) -> str:
    """A small file of the Hub.

    Raises:
        NotFoundError, AccessError, HubError.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    def get() -> str:
        url = hf_hub_url(repo_id, path, repo_type=kind, revision=revision)
        response = get_session().get(url, headers=build_hf_headers(), timeout=60)
        hf_raise_for_status(response)
        return response.text

    with hub_errors(kind, repo_id, revision):
        return patiently(get, f"{kind} {repo_id}, {path}")


def _commit(
    kind: str, repo_id: str, files: Mapping[str, Content], parent: str | None, message: str
) -> str:
    """The commit's sha."""
    from huggingface_hub import CommitOperationAdd, create_commit
    from huggingface_hub.errors import HfHubHTTPError

    operations = []
    for path, content in files.items():
        operation = CommitOperationAdd(path, content.source)
        operation.upload_info.sha256 = bytes.fromhex(content.sha256)
        operations.append(operation)
    try:
        commit = create_commit(
            repo_id,
            operations,
            commit_message=message,
            repo_type=kind,
            parent_commit=parent,
        )
    except ValueError as error:
        if "metadata" not in str(error):  # an answer that is no JSON is a ValueError, too
            raise
        raise InputError(f"{repo_id}: its card is refused: {one_line(error, 300)}") from None
    except HfHubHTTPError as error:
        if _status(error) not in (400, 413, 422):
            raise
        for content in files.values():
            content.check_unchanged()
        raise InputError(f"{repo_id}: the Hub refuses it: {one_line(error, 300)}") from error
    return commit.oid


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _look(kind: str, repo_id: str, revision: str | None) -> Remote:
    from huggingface_hub import HfApi

    info: Any = HfApi().repo_info(
        repo_id, repo_type=kind, revision=revision, files_metadata=True, timeout=60
    )
    files = {
        file.rfilename: Listed(file.size, file.blob_id, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or ()
    }
    return Remote(info.sha, files, bool(info.private))
