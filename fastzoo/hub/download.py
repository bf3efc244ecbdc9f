"""Second step of a pull: downloads the files of SAEs, several at once, and verifies every one.

Only files that the caller names are fetched, each by its commit. huggingface_hub compares sizes only, and
trusts what it has in its cache; here the hash of every file is compared with the one published, after its
download and whenever it is found on this machine.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from fastzoo.core.errors import FastzooError, HubError, InputError, IntegrityError, OutputError
from fastzoo.core.files import MAX_JSON_BYTES, partial_of, refused
from fastzoo.core.lock import folder_lock
from fastzoo.core.progress import Progress
from fastzoo.core.threads import run_daemons
from fastzoo.hub.client import hub_errors
from fastzoo.hub.files import Content, HubFile
from fastzoo.hub.repo_files import TRIES_OF_DOWNLOADS
from fastzoo.hub.retries import with_retries
from fastzoo.hub.verified_files import (
    Fetched,
    SAEFiles,
    find,
    in_words,
    place_files,
    remove_leftovers,
    verified,
)

THREADS = 8
"""Files that are fetched at a time."""

UNREACHABLE = 3
"""SAEs in a row that the Hub could not be reached for, before the others are given up, too."""

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
"""What a disk that cannot be written says."""

STOP_SECONDS = 1.0
"""How long downloads may take to clean up after Ctrl-C."""


def fetch(
    saes: Sequence[SAEFiles], *, local_dir: Path | None = None, shown: bool = True
) -> list[Fetched | FastzooError]:
    """Fetch SAEs into the Hub's cache, or into ``local_dir``; each one's result, in order.

    A failure ends only the SAE that it belongs to; all of the others is fetched.

    Args:
        shown: whether to tell on stderr how far it is.

    Raises OutputError: not enough space; nothing was fetched. InputError: two SAEs would be written to the same place.
    """
    results: list[Fetched | FastzooError] = [_too_large(sae) or Fetched(sae) for sae in saes]
    wanted = [result.sae for result in results if isinstance(result, Fetched)]
    if local_dir is not None:
        _refuse_clashes(wanted)
    missing = [f for sae in wanted for f in sae.files if find(sae, f, local_dir) is None]
    size = sum(file.size for file in missing)
    _check_space(size, local_dir)
    if shown and size:
        _say(wanted, len(missing), size, local_dir)
    total = max(1, sum(sae.size for sae in wanted))
    with ExitStack() as held:
        if local_dir is not None and wanted:
            try:
                held.enter_context(folder_lock(local_dir, lambda line: print(line, file=sys.stderr)))
            except OSError as error:
                raise refused(local_dir, error) from None
        bar = held.enter_context(Progress("pulling", total, shown=shown and size > 0))
        _Downloads(results, local_dir, bar).run()
    return results


def _too_large(sae: SAEFiles) -> HubError | None:
    large = [file for file in sae.files if file.path.endswith(".json") and file.size > MAX_JSON_BYTES]
    most = f"such files have at most {MAX_JSON_BYTES}, so it is not fetched"
    return HubError(f"{sae.repo_id}: {large[0].path} has {large[0].size} bytes; {most}") if large else None


def _say(saes: Sequence[SAEFiles], files: int, size: int, local_dir: Path | None) -> None:
    what = saes[0].name if len(saes) == 1 else f"{len(saes)} SAEs"
    source = f" from {saes[0].repo_id}@{saes[0].sha[:12]}" if len(saes) == 1 else ""
    to = f" to {local_dir}" if local_dir is not None else ""
    print(f"fetching {what}{source}{to}: {files} files, {in_words(size)}", file=sys.stderr)


def _refuse_clashes(saes: Sequence[SAEFiles]) -> None:
    places: dict[str, SAEFiles] = {}
    for sae in saes:
        other = places.setdefault(sae.name.casefold(), sae)
        if other is not sae:
            both = f"{sae.repo_id}/{sae.folder} and {other.repo_id}/{other.folder}"
            raise InputError(f"{both} would both be written to {sae.name}; pull them into different folders")


def _check_space(size: int, local_dir: Path | None) -> None:
    from huggingface_hub import constants

    folder = Path(local_dir or constants.HF_HUB_CACHE).absolute()
    there = next(p for p in (folder, *folder.parents) if os.path.exists(p))
    with suppress(OSError):
        free = shutil.disk_usage(there).free
        if size > free:
            where = f"'{folder}', where {in_words(free)} are free"
            raise OutputError(f"{in_words(size)} are to be fetched into {where}; nothing was fetched")


class _Abandoned(Exception):
    """Ends a download that nobody waits for any more."""


Job = tuple[int, HubFile]
"""A file to fetch, and the number of its SAE."""


class _Downloads:
    """Fetches the files of several SAEs by several threads, the largest first. Fills in each of the ``results``, or
    replaces it by the SAE's first error."""

    def __init__(self, results: list[Fetched | FastzooError], local_dir: Path | None, bar: Progress) -> None:
        self.results, self.local_dir, self.bar = results, local_dir, bar
        self.jobs = [
            (i, file) for i, r in enumerate(results) if isinstance(r, Fetched) for file in r.sae.files
        ]
        self.left = Counter(i for i, _ in self.jobs)
        self.counted: Counter[Job] = Counter()
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.unreachable = self.files_done = 0

    def run(self) -> None:
        self.jobs.sort(key=lambda job: -job[1].size)
        run_daemons(self.jobs, self._one, self._done, workers=THREADS, stop=self.stop, grace=STOP_SECONDS)

    def _one(self, job: Job) -> int:
        index, file = job
        result = self.results[index]
        if not isinstance(result, Fetched):  # another file of it failed
            return index
        try:
            path, sha256, downloaded = self._get(result.sae, job)
            with self.lock:
                result.sha256[file.path] = sha256
                if downloaded:
                    self.unreachable = 0
                    result.downloaded += file.size
                if self.local_dir is None:
                    result.path = path.parents[result.sae.inside(file.path).count("/")]
                self.files_done += 1
            self.reach(job, file.size)
        except FastzooError as error:
            with self.lock:
                if self.results[index] is result:
                    self.results[index] = error
                    # A plain one is of the connection; the others are of this SAE alone.
                    self.unreachable += type(error) is HubError
        return index

    def reach(self, job: Job, now: int) -> None:
        """So many bytes of a file are here; fewer than before where a download began again."""
        with self.lock:
            by = now - self.counted[job]
            if by > 0:
                self.counted[job] = now
                sizes = f"{in_words(self.bar.done + by)} of {in_words(self.bar.total)}"
                self.bar.advance(by, f"{sizes}, {self.files_done} of {len(self.jobs)} files")

    def _done(self, index: int) -> None:
        """One file of an SAE has been tried; after the last its files are put in place."""
        self.left[index] -= 1
        result = self.results[index]
        if self.left[index] or self.local_dir is None or not isinstance(result, Fetched):
            return
        result.path = self.local_dir / result.sae.name
        try:
            place_files(result.sae, result.path)
        except OSError as error:
            self.results[index] = refused(result.path, error)

    def _get(self, sae: SAEFiles, job: Job) -> tuple[Path, str, bool]:
        """A file's place in the cache or a folder, its sha256, and whether it was downloaded."""
        file = job[1]
        path = find(sae, file, self.local_dir)
        staging = target = None
        if self.local_dir is not None:
            final = self.local_dir / sae.name
            staging = partial_of(final)
            target = staging / file.path
            if path is not None and (path == target or path.is_relative_to(final)):
                content = Content(path)
                if file.holds(content):
                    return path, content.sha256, False
                if path != target:
                    print(f"'{path}' is not what was published and is replaced", file=sys.stderr)
                target.unlink(missing_ok=True)
                path = find(sae, file, None)
        if path is None:
            path = self._download(sae, job, staging)
            return path, verified(sae, file, path), True
        sha256 = verified(sae, file, path)
        if target is None:
            return path, sha256, False
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        except OSError as error:
            raise refused(target, error) from None
        return target, verified(sae, file, target), False

    def _download(self, sae: SAEFiles, job: Job, staging: Path | None) -> Path:
        """Fetch a file into the cache, or into the folder ``staging``."""
        from huggingface_hub import constants, hf_hub_download

        path, bar = job[1].path, _bar_class(self, sae, job)
        if self.unreachable >= UNREACHABLE:
            raise HubError(f"{sae.name} was given up, as the Hub could not be reached for others")

        def attempt() -> Path:
            try:
                return Path(
                    hf_hub_download(sae.repo_id, path, revision=sae.sha, local_dir=staging, tqdm_class=bar)
                )
            except OSError as error:
                if error.errno in DISK:  # others are of the connection
                    raise refused(staging or Path(constants.HF_HUB_CACHE), error) from None
                raise

        with hub_errors("model", sae.repo_id, sae.sha):
            place = with_retries(attempt, f"{sae.name}: {path}", TRIES_OF_DOWNLOADS)
        if staging is None:
            remove_leftovers(place)
        return place


def _bar_class(downloads: _Downloads, sae: SAEFiles, job: Job) -> type:
    """What huggingface_hub takes for its progress bar: shows nothing, tells ``downloads`` what has come of a file,
    and ends it after Ctrl-C, or if the server sends more bytes than were published."""
    from huggingface_hub.utils import tqdm

    file = job[1]

    class Bar(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self.thread, self.now = threading.get_ident(), initial

        def update(self, n: float | None = 1) -> None:
            self.now += int(n or 0)
            if not downloads.stop.is_set() and self.now <= file.size:
                downloads.reach(job, self.now)
            # Xet tells from a thread of its own, where it would only print what is raised.
            elif threading.get_ident() == self.thread:
                if downloads.stop.is_set():
                    raise _Abandoned
                what = f"{sae.repo_id}@{sae.sha[:12]}: {file.path} has {file.size} bytes"
                raise IntegrityError(f"{what}, and the server sends more; nothing of it was kept")

        def update_transfer(self, *args: Any, **kwargs: Any) -> None:
            """Xet's bytes on the wire, which are not those of the file, and their speed."""

        set_transfer_postfix_str = update_transfer

    return Bar
