"""Which files a model repository has at a revision, with their hashes: asked once, then remembered.

What is remembered lets files in the cache be verified without a network. It lies in the Hub's cache
folder beside the registry.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fastzoo.core.errors import AccessError, HubError, InputError, NotFoundError
from fastzoo.core.files import read_json
from fastzoo.core.text import one_line
from fastzoo.hub.client import commit_of, hub_errors, state_folder, write_cached
from fastzoo.hub.files import HASH, SHA1, HubFile
from fastzoo.hub.retries import with_retries
from fastzoo.saes.references import is_plain

TRIES_OF_DOWNLOADS = 5
"""For each request before a download, and each file: a quarter of a minute of pauses."""

MOST_FILES = 100_000
"""The largest repositories of SAEs have some thousands."""


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit, by path."""

    repo_id: str
    sha: str
    files: Mapping[str, HubFile]


def read_listing(repo_id: str, revision: str | None) -> Listing:
    """The files of a revision (by default main); those with hostile names are left out.

    A commit seen before costs no request, a branch or tag one. Where the Hub cannot be reached, a
    branch or tag is taken for what it was when last seen, which is said on stderr.

    Raises NotFoundError, AccessError, HubError.
    """
    org, _, name = repo_id.partition("/")
    folder = state_folder(org) / "listings" / name
    revision = revision or "main"
    sha = revision if SHA1.fullmatch(revision) else _commit(folder, repo_id, revision)
    cached = folder / f"{sha}.json"
    files = _remembered_files(cached)
    if files is None:
        what = f"the files of {repo_id}"
        files = with_retries(lambda: _ask(repo_id, sha, revision), what, TRIES_OF_DOWNLOADS)
        write_cached(cached, json.dumps({path: [file.size, file.digest] for path, file in files.items()}))
    return Listing(repo_id, sha, files)


def _commit(folder: Path, repo_id: str, revision: str) -> str:
    """The commit that a branch or tag is by now, or was when last seen."""
    # Hashed, since some file systems do not tell upper from lower case.
    key = hashlib.sha256(revision.encode()).hexdigest()[:32]
    cached = folder / f"revision-{key}.json"
    remembered = ""
    with suppress(InputError):
        remembered = str(read_json(cached).get("sha"))
    known = SHA1.fullmatch(remembered) is not None
    try:
        sha = with_retries(
            lambda: commit_of("model", repo_id, revision), repo_id, 1 if known else TRIES_OF_DOWNLOADS
        )
    except HubError as error:
        if not known or isinstance(error, NotFoundError | AccessError):
            raise
        print(
            f"note: {one_line(error, 200)}; {repo_id} is taken to be at {remembered[:12]} as before",
            file=sys.stderr,
        )
        return remembered
    if sha != remembered:
        write_cached(cached, json.dumps({"revision": revision, "sha": sha}))
    return sha


def _ask(repo_id: str, sha: str, revision: str) -> dict[str, HubFile]:
    from huggingface_hub import HfApi, RepoFile

    with hub_errors("model", repo_id, revision):
        entries = HfApi().list_repo_tree(repo_id, recursive=True, revision=sha)
        found = [e for e in islice(entries, MOST_FILES + 1) if isinstance(e, RepoFile)]
    if len(found) > MOST_FILES:
        raise HubError(f"{repo_id} lists more than {MOST_FILES} files, which no SAEs need")
    return {
        e.path: HubFile(e.path, e.size, e.lfs.sha256 if e.lfs else e.blob_id)
        for e in found
        if is_plain(e.path)
    }


def _remembered_files(path: Path) -> dict[str, HubFile] | None:
    """None where nothing is remembered, or something that this module did not write."""
    with suppress(InputError, TypeError, ValueError):
        files = {name: HubFile(name, *facts) for name, facts in read_json(path).items()}
        if all(is_plain(f.path) and type(f.size) is int and HASH.fullmatch(f.digest) for f in files.values()):
            return files
    return None
