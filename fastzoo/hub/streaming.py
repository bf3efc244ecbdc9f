"""Files on the Hub, read piece by piece over connections that may fail.

A piece that failed is soon asked for again, so a dropped connection costs one piece and not what was
read of the file before it. Longer failures are left to the reader: pyarrow calls from a thread of its
own, where Ctrl-C does not end a pause. huggingface_hub's own retries would pause there for 23 seconds,
log several lines, and take a short answer for a whole one.

This module loads huggingface_hub; import it where it is needed.
"""

from __future__ import annotations

import re
from typing import Any

import fsspec
from huggingface_hub import HfFileSystem, constants
from huggingface_hub.hf_file_system import HfFileSystemFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from fastzoo.hub.retries import with_retries

TRIES_OF_PIECES = 3

LONGEST_PAUSE = 5.0
"""Seconds before a further try of one piece; after that the file is given up."""


class RetryingFile(HfFileSystemFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        headers = build_hf_headers(token=self.fs.token) | {"range": f"bytes={start}-{end - 1}"}

        def fetch() -> bytes:
            response = get_session().get(
                self.url(), headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            )
            hf_raise_for_status(response)
            if len(response.content) != end - start:
                raise ConnectionError(f"{len(response.content)} of {end - start} bytes came")
            return response.content

        file = re.sub("@[^/]*", "", self.path, count=1)  # datasets/org/name/path, the commit left out
        return with_retries(fetch, f"{file}, bytes {start} to {end}", TRIES_OF_PIECES, LONGEST_PAUSE)


class RetryingFileSystem(HfFileSystem):
    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        if mode != "rb" or block_size == 0:  # written, or read as one stream
            return super()._open(path, mode, block_size, revision, **kwargs)
        return RetryingFile(self, path, revision, mode=mode, block_size=block_size, **kwargs)


def use_retrying_files() -> None:
    """Let all of this process read hf:// addresses so, datasets above all."""
    fsspec.register_implementation("hf", RetryingFileSystem, clobber=True)


def parquet_rows(url: str) -> int:
    """Number of rows of a Parquet file, of which only the end is read."""
    from pyarrow.parquet import read_metadata

    with RetryingFileSystem(endpoint=constants.ENDPOINT).open(url, "rb") as file:
        return read_metadata(file).num_rows
