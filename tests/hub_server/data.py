"""What a repository of the loopback Hub consists of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

LARGE = (".safetensors", ".parquet", ".npz", ".bin", ".pt", ".pth", ".pkl", ".gz", ".zst", ".png")
"""Kept as LFS objects, as the Hub's default .gitattributes has it."""
LARGE_BYTES = 10 * 2**20


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path: str, size: int) -> bool:
    """Whether a file of ``size`` bytes is an LFS object; empty files never are."""
    return size > 0 and (path.endswith(LARGE) or size > LARGE_BYTES)


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str  # empty for the first
    branch: str
    message: str
    description: str
    pushed: bool
    """Whether a client made it; otherwise it came with the repository or by ``hub.add``."""


@dataclass
class Repo:
    """One repository: its commits, and branches and tags pointing at them.

    Attributes:
        commits: sha to the files of that commit.
        history: the commits of all branches in the order in which they were made.
        lfs: sha256 of the large objects that were brought here, committed or not.
        gated: False, or "auto" or "manual" (True is "auto").
        accepted: whether the tests' user may read it although it is gated.
    """

    kind: str  # model, dataset or space
    id: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: list[Commit] = field(default_factory=list)
    lfs: set[str] = field(default_factory=set)
    gated: bool | str = False
    accepted: bool = False
    private: bool = False
    sdk: str | None = None

    def commit(
        self,
        files: Mapping[str, bytes],
        branch: str = "main",
        message: str = "",
        description: str = "",
        pushed: bool = False,
    ) -> str:
        """Make a commit that holds exactly ``files``; returns its sha."""
        parent = self.branches.get(branch, "")
        content = [(path, sha256(data)) for path, data in sorted(files.items())]
        sha = hashlib.sha1(repr((self.kind, self.id, parent, content)).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        self.history.append(Commit(sha, parent, branch, message, description, pushed))
        return sha

    def resolve(self, revision: str) -> str | None:
        """Commit sha of a branch, a tag, a ref or a (shortened) sha."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(name) or self.tags.get(name)
        if sha is None and re.fullmatch(r"[0-9a-f]{7,40}", revision):
            sha = next((sha for sha in self.commits if sha.startswith(revision)), None)
        return sha

    def url(self, endpoint: str) -> str:
        prefix = "" if self.kind == "model" else f"{self.kind}s/"
        return f"{endpoint}/{prefix}{self.id}"
