"""Which files a model repository has at a revision, with their hashes: asked once, then remembered.

What is remembered lets files in the cache be verified without a network. It lies in the Hub's cache
folder beside the registry. Importing this module loads no other package than fastzoo.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fastzoo.core.errors import AccessError, HubError, InputError, NotFoundError
from fastzoo.core.files import read_json
from fastzoo.core.text import one_line
from fastzoo.hub.client import hub_errors, keep, resolve_model, state_folder
from fastzoo.hub.retries import patiently
from fastzoo.saes.references import is_plain

TRIES = 5
"""For each request, before it is given up: a quarter of a minute of pauses."""

MOST_FILES = 100_000
"""The largest repositories of SAEs have some thousands."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. ``size`` in bytes; ``digest``, in hex, is the sha256 of its bytes (64
    digits) or, where that is all the Hub lists, git's blob id (40)."""

    path: str
    size: int
    digest: str

    def hashes(self, path: Path) -> tuple[bool, str]:
        """Whether a file on this machine has these bytes, and its sha256."""
        size, sha256 = path.stat().st_size, hashlib.sha256()
        git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
                if len(self.digest) == 40:
                    git.update(chunk)
        found = (sha256 if len(self.digest) == 64 else git).hexdigest()
        return size == self.size and found == self.digest, sha256.hexdigest()


def read_listing(repo_id: str, revision: str | None) -> tuple[str, dict[str, RemoteFile]]:
    """Commit sha and files of a revision (by default main); files with hostile names are left out.

    A commit seen before costs no request, a branch or tag one. Where the Hub cannot be reached, what
    a branch or tag was when last seen is used, which is said on stderr.

    Raises:
        NotFoundError, AccessError, HubError.
    """
    sha = revision if revision and re.fullmatch("[0-9a-f]{40}", revision) else None
    sha = sha or _resolve(repo_id, revision or "main")
    kept = _folder(repo_id) / f"{sha}.json"
    files = _remembered_files(kept)
    if files is None:
        files = patiently(lambda: _ask(repo_id, sha, revision), f"the files of {repo_id}", TRIES)
        listed = {path: [file.size, file.digest] for path, file in files.items()}
        keep(kept, json.dumps(listed))
    return sha, files


def _resolve(repo_id: str, revision: str) -> str:
    # Hashed, since some systems take names for the same that differ in case.
    key = hashlib.sha256(revision.encode()).hexdigest()[:32]
    kept = _folder(repo_id) / f"revision-{key}.json"
    remembered = _remembered_sha(kept)
    tries = 1 if remembered else TRIES
    try:
        sha = patiently(lambda: resolve_model(repo_id, revision), repo_id, tries)
    except (NotFoundError, AccessError):
        raise
    except HubError as error:
        if remembered is None:
            raise
        print(
            f"note: {one_line(error, 200)}; {repo_id} is taken to be at {remembered[:12]} as before",
            file=sys.stderr,
        )
        return remembered
    if sha != remembered:
        keep(kept, json.dumps({"revision": revision, "sha": sha}))
    return sha


def _ask(repo_id: str, sha: str, revision: str | None) -> dict[str, RemoteFile]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with hub_errors("model", repo_id, revision or sha):
        entries = HfApi().list_repo_tree(repo_id, recursive=True, revision=sha)
        found = [e for e in islice(entries, MOST_FILES + 1) if isinstance(e, RepoFile)]
    if len(found) > MOST_FILES:
        raise HubError(f"{repo_id} lists more than {MOST_FILES} files, which no SAEs need")
    listed = (
        RemoteFile(e.path, e.size, e.lfs.sha256 if e.lfs else e.blob_id)
        for e in found
        if is_plain(e.path)
    )
    return {file.path: file for file in listed}


def _folder(repo_id: str) -> Path:
    org, _, name = repo_id.partition("/")
    return state_folder(org) / "listings" / name


def _remembered_sha(path: Path) -> str | None:
    try:
        sha = read_json(path).get("sha")
    except InputError:
        return None
    return sha if isinstance(sha, str) and re.fullmatch("[0-9a-f]{40}", sha) else None


def _remembered_files(path: Path) -> dict[str, RemoteFile] | None:
    """None where nothing is remembered, or something that this module did not write."""
    try:
        listed = read_json(path)
    except InputError:
        return None
    files = {}
    for name, facts in listed.items():
        match facts:
            case [int(size), str(digest)] if is_plain(name) and re.fullmatch(
                "[0-9a-f]{40}|[0-9a-f]{64}", digest
            ):
                files[name] = RemoteFile(name, size, digest)
            case _:
                return None
    return files
