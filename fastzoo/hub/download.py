"""Downloads the files of SAEs, several at once, and verifies every one of them.

Only files that the caller names are fetched, each by its commit. huggingface_hub compares sizes only,
and trusts what it has in its cache; here the hash of every file is compared with the one published,
after its download and whenever it is found on this machine. Importing this module does not load
huggingface_hub.
"""

from __future__ import annotations

import errno
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from fastzoo.core.errors import FastzooError, HubError, InputError, IntegrityError, OutputError
from fastzoo.core.files import MAX_JSON_BYTES, partial_of, refused
from fastzoo.core.lock import folder_lock
from fastzoo.core.progress import Progress
from fastzoo.hub.client import hub_errors
from fastzoo.hub.listing import TRIES, RemoteFile
from fastzoo.hub.retries import patiently
from fastzoo.hub.sae_files import (
    Fetched,
    SAEFiles,
    copy_file,
    here,
    in_words,
    publish_files,
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

    A failure ends only the SAE that it befalls; of the others all is fetched.

    Args:
        shown: whether to tell on stderr how far it is.

    Raises:
        OutputError: not enough space; nothing was fetched.
        InputError: two SAEs would be written to the same place.
    """
    refused_saes = {sae: error for sae in saes if (error := _unbearable(sae))}
    bearable = [sae for sae in saes if sae not in refused_saes]
    if local_dir is not None:
        _refuse_clashes(bearable)
    missing = [f for sae in bearable for f in sae.files if here(sae, f, local_dir) is None]
    size = sum(file.size for file in missing)
    _check_space(size, local_dir)
    if shown and size:
        _say(bearable, len(missing), size, local_dir)
    lock = ExitStack()
    if local_dir is not None and bearable:
        try:
            lock = folder_lock(local_dir, lambda line: print(line, file=sys.stderr))
        except OSError as error:
            raise refused(local_dir, error) from None
    with lock:
        total = sum(sae.size for sae in bearable)
        with Progress("pulling", max(total, 1), shown=shown and size > 0) as bar:
            results = iter(_Downloads(bearable, local_dir, bar).run())
    return [refused_saes.get(sae) or next(results) for sae in saes]


def _unbearable(sae: SAEFiles) -> HubError | None:
    for file in sae.files:
        if file.path.endswith(".json") and file.size > MAX_JSON_BYTES:
            return HubError(
                f"{sae.repo_id}: {file.path} has {file.size} bytes; such files have at most "
                f"{MAX_JSON_BYTES}, so it is not fetched"
            )
    return None


def _say(saes: Sequence[SAEFiles], files: int, size: int, local_dir: Path | None) -> None:
    what = saes[0].name if len(saes) == 1 else f"{len(saes)} SAEs"
    source = f" from {saes[0].repo_id}@{saes[0].sha[:12]}" if len(saes) == 1 else ""
    to = f" to {local_dir}" if local_dir is not None else ""
    print(f"fetching {what}{source}{to}: {files} files, {in_words(size)}", file=sys.stderr)


def _refuse_clashes(saes: Iterable[SAEFiles]) -> None:
    places: dict[str, SAEFiles] = {}
    for sae in saes:
        other = places.setdefault(sae.name.casefold(), sae)
        if other is not sae:
            raise InputError(
                f"{sae.repo_id}/{sae.folder} and {other.repo_id}/{other.folder} would both be written "
                f"to {sae.name}; pull them into different folders"
            )


def _check_space(size: int, local_dir: Path | None) -> None:
    from huggingface_hub import constants

    folder = Path(local_dir or constants.HF_HUB_CACHE).absolute()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    with suppress(OSError):
        free = shutil.disk_usage(there).free
        if size > free:
            raise OutputError(
                f"{in_words(size)} are to be fetched into '{folder}', where {in_words(free)} are free; "
                "nothing was fetched"
            )


class _Abandoned(Exception):
    """Ends a download that nobody waits for any more."""


class _Downloads:
    """The files of several SAEs, by several threads, the largest first."""

    def __init__(self, saes: Sequence[SAEFiles], local_dir: Path | None, bar: Progress) -> None:
        self.saes, self.local_dir, self.bar = saes, local_dir, bar
        self.results: list[Fetched | BaseException] = [Fetched(sae, Path()) for sae in saes]
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.unreachable = 0
        self.files = sum(len(sae.files) for sae in saes)
        self.files_done = 0

    def run(self) -> list[Fetched | FastzooError]:
        jobs = [(i, file) for i, sae in enumerate(self.saes) for file in sae.files]
        jobs.sort(key=lambda job: -job[1].size)
        waiting: queue.SimpleQueue[tuple[int, RemoteFile]] = queue.SimpleQueue()
        ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)

        def work() -> None:
            while not self.stop.is_set():
                try:
                    index, file = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._one(index, file)
                finally:
                    ended.put(index)

        # Daemons: after Ctrl-C nobody waits for a connection that says nothing.
        threads = [
            threading.Thread(target=work, daemon=True) for _ in range(min(THREADS, len(jobs)))
        ]
        for thread in threads:
            thread.start()
        left = [len(sae.files) for sae in self.saes]
        results: list[Fetched | FastzooError] = []
        try:
            for _ in jobs:
                index = ended.get()
                left[index] -= 1
                if left[index] == 0:
                    self._complete(index)
            for result in self.results:
                if not isinstance(result, Fetched | FastzooError):
                    raise result
                results.append(result)
            return results
        finally:
            self.stop.set()
            until = time.monotonic() + STOP_SECONDS
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))

    def _one(self, index: int, file: RemoteFile) -> None:
        sae, result = self.saes[index], self.results[index]
        if not isinstance(result, Fetched):
            return
        try:
            counted = _Counted(self, sae, file)
            path, sha256, downloaded = self._get(sae, file, counted)
            with self.lock:
                result.sha256[file.path] = sha256
                if downloaded:
                    self.unreachable = 0
                    result.downloaded += file.size
                if self.local_dir is None:
                    depth = len(PurePosixPath(sae.inside(file.path)).parts)
                    result.path = path.parents[depth - 1]
                self.files_done += 1
            counted.finish()
        except BaseException as error:
            with self.lock:
                if isinstance(self.results[index], Fetched):
                    self.results[index] = error
                    # A plain one is of the connection; the others are of this SAE alone.
                    self.unreachable += type(error) is HubError

    def _get(self, sae: SAEFiles, file: RemoteFile, counted: _Counted) -> tuple[Path, str, bool]:
        """A file's place, its sha256, and whether it was downloaded."""
        from huggingface_hub import constants, hf_hub_download

        path = here(sae, file, self.local_dir)
        staging: Path | None = None
        if self.local_dir is not None:
            final = self.local_dir / sae.name
            staging = partial_of(final)
            target = staging / file.path
            if path is not None and (path == target or path.is_relative_to(final)):
                same, sha256 = file.hashes(path)
                if same:
                    return path, sha256, False
                if path != target:
                    print(f"'{path}' is not what was published and is replaced", file=sys.stderr)
                target.unlink(missing_ok=True)
                path = here(sae, file, None)
            if path is not None:
                verified(sae, file, path)
                copy_file(path, target)
                return target, verified(sae, file, target), False
        if path is not None:
            return path, verified(sae, file, path), False

        if self.unreachable >= UNREACHABLE:
            raise HubError(f"{sae.name} was given up, as the Hub could not be reached for others")

        def attempt() -> str:
            counted.restart()
            try:
                return hf_hub_download(
                    sae.repo_id,
                    file.path,
                    revision=sae.sha,
                    local_dir=staging,
                    tqdm_class=_bar_class(counted.received),
                )
            except OSError as error:
                if error.errno in DISK:  # others are of the connection
                    place = staging or Path(constants.HF_HUB_CACHE)
                    raise refused(place, error) from None
                raise

        with hub_errors("model", sae.repo_id, sae.sha):
            path = Path(patiently(attempt, f"{sae.name}: {file.path}", TRIES))
        if staging is None:
            remove_leftovers(path)
        return path, verified(sae, file, path), True

    def _complete(self, index: int) -> None:
        """All files of an SAE have been tried."""
        result = self.results[index]
        if self.local_dir is None or not isinstance(result, Fetched):
            return
        final = self.local_dir / result.sae.name
        try:
            publish_files(result.sae, final)
        except OSError as error:
            self.results[index] = refused(final, error)
        result.path = final


class _Counted:
    """Bytes of one file, for the bar and to notice a server that sends without end."""

    def __init__(self, downloads: _Downloads, sae: SAEFiles, file: RemoteFile) -> None:
        self.downloads, self.sae, self.file = downloads, sae, file
        self.now = self.most = 0

    def restart(self) -> None:
        self.now = 0

    def received(self, count: int) -> None:
        """Raises _Abandoned after Ctrl-C, IntegrityError for more bytes than were published."""
        if self.downloads.stop.is_set():
            raise _Abandoned
        self.now += count
        if self.now > self.file.size:
            raise IntegrityError(
                f"{self.sae.repo_id}@{self.sae.sha[:12]}: {self.file.path} has {self.file.size} bytes, "
                "and the server sends more; nothing of it was kept"
            )
        self._show()

    def finish(self) -> None:
        self.now = self.file.size
        self._show()

    def _show(self) -> None:
        if self.now > self.most:
            downloads = self.downloads
            with downloads.lock:
                bar, by = downloads.bar, self.now - self.most
                sizes = f"{in_words(bar.done + by)} of {in_words(bar.total)}"
                bar.advance(by, f"{sizes}, {downloads.files_done} of {downloads.files} files")
            self.most = self.now


def _bar_class(received: Callable[[int], None]) -> type:
    """What huggingface_hub takes for its progress bar: shows nothing, and tells ``received``."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self.thread = threading.get_ident()

        def update(self, n: float | None = 1) -> None:
            try:
                received(int(n or 0))
            except (_Abandoned, IntegrityError):
                # Xet tells from a thread of its own, where it would only print what is raised.
                if threading.get_ident() == self.thread:
                    raise

        def update_transfer(self, n: int) -> None:
            """Xet's bytes on the wire, which are not those of the file."""

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None:
            """Their speed."""

    return Bar
