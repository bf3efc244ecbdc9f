"""Third step of a pull: an SAE's files on this machine, where they are and whether they are right."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastzoo.core.errors import IntegrityError, OutputError
from fastzoo.core.files import partial_of, put_in_place, sync
from fastzoo.core.text import one_line
from fastzoo.hub.client import hub_errors
from fastzoo.hub.files import Content, HubFile

LEFTOVER_SECONDS = 3600.0
"""A partial file that was not written to for so long belongs to no download any more."""


@dataclass(frozen=True)
class SAEFiles:
    """The files to fetch for one SAE."""

    name: str
    """A zoo name, or the repository's name and the folder in it; also its place in ``--local-dir``."""
    repo_id: str
    sha: str
    folder: str
    """The folder of the repository that is the SAE's; '' is its root."""
    files: tuple[HubFile, ...]
    gone: tuple[str, ...] = ()
    """Files that such an SAE can have and this one lacks, as paths in the repository."""

    def inside(self, path: str) -> str:
        """A path of the repository relative to ``folder``."""
        return path[len(self.folder) + 1 :] if self.folder else path

    def without(self, paths: Sequence[str]) -> SAEFiles:
        return replace(self, files=tuple(file for file in self.files if file.path not in paths))

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def report(self, facts: Mapping[str, Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """For ``--json``, with more ``facts`` of each file, by path."""
        files = [{"path": self.inside(f.path), "size": f.size, **facts[f.path]} for f in self.files]
        about = {"name": self.name, "repo": self.repo_id, "revision": self.sha}
        return {**about, **more, "files": files, "bytes": self.size}


@dataclass
class Fetched:
    """An SAE whose files are all on this machine, and verified."""

    sae: SAEFiles
    path: Path = Path()
    """The folder of the SAE."""
    sha256: dict[str, str] = field(default_factory=dict)
    downloaded: int = 0
    """Bytes."""

    def report(self) -> dict[str, Any]:
        facts = {path: {"sha256": sha256} for path, sha256 in self.sha256.items()}
        return self.sae.report(facts, path=str(self.path)) | {"downloaded_bytes": self.downloaded}


def in_words(size: int) -> str:
    """A number of bytes, for people."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= power:
            return f"{size / power:.1f} {unit}"
    return f"{size} bytes"


def find(sae: SAEFiles, file: HubFile, local_dir: Path | None) -> Path | None:
    """Where a file already is, going by its name, commit and size; it still has to be verified."""
    from huggingface_hub import try_to_load_from_cache

    if local_dir is not None:
        final = local_dir / sae.name
        for place in (final / sae.inside(file.path), partial_of(final) / file.path):
            with suppress(OSError):
                if place.stat().st_size == file.size:
                    return place
    with hub_errors("model", sae.repo_id):
        cached = try_to_load_from_cache(sae.repo_id, file.path, revision=sae.sha)
    # Of whatever size: one that is damaged must be found and deleted.
    return Path(cached) if isinstance(cached, str) and os.path.exists(cached) else None


def verified(sae: SAEFiles, file: HubFile, path: Path) -> str:
    """The sha256 of a file, which is as published. Raises IntegrityError, and deletes it, if not."""
    try:
        content = Content(path)
        if file.holds(content):
            return content.sha256
    except OSError as error:
        raise OutputError(f"'{path}' cannot be read: {one_line(error.strerror)}") from None
    # Left in place it would be served again for ever: the client trusts what it has.
    with suppress(OSError):
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
    raise IntegrityError(
        f"{sae.repo_id}@{sae.sha[:12]}: {file.path} is not the file that was published (its hash "
        "differs), so it was damaged or replaced; the bad copy was deleted, run again to fetch it anew"
    )


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes had of a file that is now in the cache as a whole."""
    with suppress(OSError):
        blob = path.resolve()
        for old in blob.parent.glob(f"{blob.name}.*.incomplete"):
            if time.time() - old.stat().st_mtime > LEFTOVER_SECONDS:
                old.unlink()


def place_files(sae: SAEFiles, final: Path) -> None:
    """Move files that are complete in the partial folder to ``final``: the folder as a whole, or where
    there is one already each file that differs. Raises OSError."""
    staging = partial_of(final)
    if staging.is_dir():
        shutil.rmtree(staging / ".cache", ignore_errors=True)  # huggingface_hub's notes
        content = staging / sae.folder
        if not final.exists():
            for path in sorted(content.rglob("*")):
                sync(path)
            final.parent.mkdir(parents=True, exist_ok=True)
            put_in_place(content, final)
        for file in sae.files:
            new, old = content / sae.inside(file.path), final / sae.inside(file.path)
            if new.is_file():
                old.parent.mkdir(parents=True, exist_ok=True)
                sync(new)
                os.replace(new, old)
                sync(old.parent)
        shutil.rmtree(staging, ignore_errors=True)
    for gone in sae.gone:
        (final / sae.inside(gone)).unlink(missing_ok=True)
