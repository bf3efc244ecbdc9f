"""Which files a model repository has at a revision, with their hashes: asked once, then remembered.

What is remembered lets files in the cache be verified without a network. It lies in the Hub's cache
folder beside the registry. Importing this module loads no other package than fastzoo.
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
from fastzoo.hub.client import hub_errors, resolve_model, state_folder, write_cached
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
    sha = revision if revision and SHA1.fullmatch(revision) else None
    sha = sha or _resolve(repo_id, revision or "main")
    cached = _folder(repo_id) / f"{sha}.json"
    files = _remembered_files(cached)
    if files is None:
        what = f"the files of {repo_id}"
        files = with_retries(lambda: _ask(repo_id, sha, revision), what, TRIES_OF_DOWNLOADS)
        listed = {path: [file.size, file.digest] for path, file in files.items()}
        write_cached(cached, json.dumps(listed))
    return Listing(repo_id, sha, files)


def _resolve(repo_id: str, revision: str) -> str:
    # Hashed, since some file systems do not tell upper from lower case.
    key = hashlib.sha256(revision.encode()).hexdigest()[:32]
    cached = _folder(repo_id) / f"revision-{key}.json"
    remembered = _remembered_sha(cached)
    tries = 1 if remembered else TRIES_OF_DOWNLOADS
    try:
        sha = with_retries(lambda: resolve_model(repo_id, revision), repo_id, tries)
    except HubError as error:
        if remembered is None or isinstance(error, NotFoundError | AccessError):
            raise
        print(
            f"note: {one_line(error, 200)}; {repo_id} is taken to be at {remembered[:12]} as before", file=sys.stderr
        )
        return remembered
    if sha != remembered:
        write_cached(cached, json.dumps({"revision": revision, "sha": sha}))
    return sha


def _ask(repo_id: str, sha: str, revision: str | None) -> dict[str, HubFile]:
    from huggingface_hub import HfApi, RepoFile

    with hub_errors("model", repo_id, revision or sha):
        entries = HfApi().list_repo_tree(repo_id, recursive=True, revision=sha)
        found = [e for e in islice(entries, MOST_FILES + 1) if isinstance(e, RepoFile)]
    if len(found) > MOST_FILES:
        raise HubError(f"{repo_id} lists more than {MOST_FILES} files, which no SAEs need")
    return {e.path: HubFile(e.path, e.size, e.lfs.sha256 if e.lfs else e.blob_id) for e in found if is_plain(e.path)}


def _folder(repo_id: str) -> Path:
    org, _, name = repo_id.partition("/")
    return state_folder(org) / "listings" / name


def _remembered_sha(path: Path) -> str | None:
    with suppress(InputError):
        sha = read_json(path).get("sha")
        if isinstance(sha, str) and SHA1.fullmatch(sha):
            return sha
    return None


def _is_valid(file: HubFile) -> bool:
    return is_plain(file.path) and type(file.size) is int and bool(HASH.fullmatch(file.digest))


def _remembered_files(path: Path) -> dict[str, HubFile] | None:
    """None where nothing is remembered, or something that this module did not write."""
    with suppress(InputError, TypeError, ValueError):
        files = {name: HubFile(name, *facts) for name, facts in read_json(path).items()}
        if all(map(_is_valid, files.values())):
            return files
    return None
