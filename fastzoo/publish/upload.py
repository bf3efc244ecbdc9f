"""Files into a repository on the Hub: sent until they are there, and never twice.

Only what the Hub lists afterwards counts. A commit whose answer was lost is found there and not made
again; one that somebody else made meanwhile is read first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastzoo.core.errors import InputError, IntegrityError, NotFoundError
from fastzoo.core.text import one_line
from fastzoo.hub.client import hub_errors, read_file, status_of
from fastzoo.hub.files import Content, HubFile
from fastzoo.hub.retries import TRIES, is_transient, wait, with_retries

MOST_COMMITS = 3
"""Commits that the Hub took but then lists with other bytes, before it is given up."""


@dataclass(frozen=True)
class Remote:
    """A repository's main branch as the Hub lists it."""

    sha: str | None = None
    files: Mapping[str, HubFile] = field(default_factory=dict)
    private: bool = False


def look(kind: str, repo_id: str, revision: str | None = None) -> Remote:
    """What a repository holds, in one request. Raises NotFoundError, AccessError, HubError."""
    from huggingface_hub import HfApi

    def ask() -> Remote:
        info: Any = HfApi().repo_info(
            repo_id, repo_type=kind, revision=revision, files_metadata=True, timeout=60
        )
        files = [
            HubFile(f.rfilename, f.size, f.lfs.sha256 if f.lfs else str(f.blob_id))
            for f in info.siblings or ()
        ]
        return Remote(info.sha, {file.path: file for file in files}, bool(info.private))

    with hub_errors(kind, repo_id, revision):
        return with_retries(ask, f"{kind} {repo_id}")


def look_or_make(kind: str, repo_id: str, *, private: bool, sdk: str | None = None) -> Remote:
    """What a repository holds, which is made if it is not there. Raises AccessError, HubError."""
    try:
        return look(kind, repo_id)
    except NotFoundError:
        make_repo(kind, repo_id, private=private, sdk=sdk)
        # Somebody else may have made it, and written to it, in the same moment.
        return look(kind, repo_id)


def make_repo(kind: str, repo_id: str, *, private: bool, sdk: str | None = None) -> bool:
    """Make a repository; False if it is there already. Raises AccessError, HubError."""
    from huggingface_hub import create_repo
    from huggingface_hub.errors import HfHubHTTPError

    def make() -> bool:
        try:
            create_repo(repo_id, repo_type=kind, private=private, space_sdk=sdk)
        except HfHubHTTPError as error:
            if status_of(error) != 409:
                raise
            return False
        return True

    with hub_errors(kind, repo_id):
        return with_retries(make, f"making {kind} {repo_id}")


def put(
    kind: str, repo_id: str, wanted: Callable[[Remote], Mapping[str, Content]], remote: Remote, message: str
) -> tuple[Remote, Mapping[str, Content]]:
    """Make commits until a repository holds files, each of them on top of what it held before.

    ``wanted`` gives path to content for what the repository holds, which is ``remote`` at first. Returns what
    it holds in the end, and the files that were wanted of that.

    Raises InputError: the Hub refuses the card's metadata or a file, or a file was changed meanwhile.
    IntegrityError: the Hub keeps listing other bytes than were sent. Also AccessError, HubError.
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
            _check_unchanged(files.values())
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
            overtaken = status_of(error) == 412
            failed += 1
            if failed == TRIES or not (overtaken or is_transient(error)):
                _check_unchanged(missing.values())
                with hub_errors(kind, repo_id):
                    raise
            if failed > 1 or not overtaken:
                wait(error, f"{kind} {repo_id}", failed)
        # Only this tells of a commit whose answer was lost.
        remote = look(kind, repo_id, revision)


def read_text(repo_id: str, path: str, kind: str, revision: str | None) -> str:
    """A small file of the Hub. Raises NotFoundError, AccessError, HubError, IntegrityError."""
    what = f"{kind} {repo_id}, {path}"
    return with_retries(lambda: read_file(kind, repo_id, path, revision), what).decode("utf-8", "replace")


def _commit(kind: str, repo_id: str, files: Mapping[str, Content], parent: str | None, message: str) -> str:
    """The commit's sha."""
    from huggingface_hub import CommitOperationAdd, create_commit
    from huggingface_hub.errors import HfHubHTTPError

    operations = [CommitOperationAdd(path, content.source) for path, content in files.items()]
    for operation, content in zip(operations, files.values(), strict=True):
        operation.upload_info.sha256 = bytes.fromhex(content.sha256)
    try:
        return create_commit(
            repo_id, operations, commit_message=message, repo_type=kind, parent_commit=parent
        ).oid
    except ValueError as error:
        if "metadata" not in str(error):  # an answer that is not JSON is a ValueError, too
            raise
        raise InputError(f"{repo_id}: its card is refused: {one_line(error, 300)}") from None
    except HfHubHTTPError as error:
        if status_of(error) not in (400, 413, 422):
            raise
        _check_unchanged(files.values())
        raise InputError(f"{repo_id}: the Hub refuses it: {one_line(error, 300)}") from error


def _check_unchanged(contents: Iterable[Content]) -> None:
    for content in contents:
        content.check_unchanged()
