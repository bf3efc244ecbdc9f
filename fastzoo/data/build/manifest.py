"""What a data set of ours says of itself, and whether its files are what it says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastzoo.core.errors import DataError
from fastzoo.core.files import MAX_JSON_BYTES, sha256_of
from fastzoo.core.text import one_line
from fastzoo.core.values import text_at, value_at

MANIFEST = "manifest.json"
FORMAT = 1


def total_hash(splits: dict[str, dict[str, Any]]) -> str:
    """The SHA-256 that stands for all rows of all splits, in order: the same for the same data however it was built."""
    lines = "".join(f"{name} {split['rows']} {split['hash']}\n" for name, split in sorted(splits.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


@dataclass(frozen=True)
class BuiltSet:
    """A folder that ``fastzoo data build`` wrote."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def hash(self) -> str:
        return str(self.manifest["hash"])

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    def splits(self) -> list[str]:
        return list(self.manifest["splits"])

    def files(self, split: str) -> list[Path]:
        """Raises DataError: there is no such split."""
        if split not in self.manifest["splits"]:
            known = ", ".join(self.manifest["splits"])
            raise DataError(f"'{self.folder}' has no split '{one_line(split, 80)}'; it has {known}")
        return [self.folder / file["path"] for file in self.manifest["splits"][split]["files"]]

    def check(self, split: str) -> None:
        """Raises DataError: a file is missing, or not what the manifest says."""
        for path, file in zip(self.files(split), self.manifest["splits"][split]["files"], strict=True):
            again = "build or download the data again"
            if not path.is_file():
                raise DataError(f"{path}: is missing, which {MANIFEST} names; {again}")
            if path.stat().st_size != file["bytes"] or sha256_of(path) != file["sha256"]:
                raise DataError(
                    f"{path}: is not what {MANIFEST} says (sha256 {file['sha256'][:12]}...); {again}"
                )


def is_built(folder: Path) -> bool:
    """Whether a path is a folder that a build wrote."""
    return os.path.isfile(folder / MANIFEST)  # which bears names that are too long


def open_built(folder: Path) -> BuiltSet:
    """Raises DataError: the manifest is broken, of another format, or names files elsewhere."""
    where = folder / MANIFEST
    if not is_built(folder):
        raise DataError(
            f"'{folder}' is no folder of a data set that 'fastzoo data build' wrote: it has no {MANIFEST}"
        )
    try:
        text = where.read_bytes()
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({one_line(error.strerror)})") from None
    manifest = checked_manifest(text, str(where))
    if manifest is None:
        raise DataError(f"{where}: is not the manifest of a data set that fastzoo built")
    return BuiltSet(folder, manifest)


def checked_manifest(text: bytes, where: str) -> dict[str, Any] | None:
    """What a manifest says; None if it is something else's. Raises DataError: it is broken, or of another format."""
    try:
        manifest: Any = json.loads(text.decode("utf-8")) if len(text) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        return None
    splits = value_at(manifest, "splits")
    if not isinstance(splits, dict) or not all(text_at(manifest, key) for key in ("hash", "name", "fastzoo")):
        return None
    assert isinstance(manifest, dict)
    if manifest.get("format") != FORMAT:
        raise DataError(f"{where}: format {one_line(manifest.get('format'), 20)} is not read; {FORMAT} is")
    for name, path in _paths(splits):
        if not path or not path.startswith("data/") or ".." in path.split("/"):
            raise DataError(f"{where}: split {one_line(name, 40)} has a broken entry for a file")
    if not isinstance(manifest.get("deduplication"), dict | None) or total_hash(splits) != manifest["hash"]:
        raise DataError(f"{where}: its hash is not that of its splits; the file was changed")
    return manifest


def _paths(splits: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The path of each file, None where an entry is not what it should be."""
    for name, split in splits.items():
        files = value_at(split, "files")
        sound = isinstance(files, list) and files and all(_is_file(file) for file in files)
        if not sound or not isinstance(value_at(split, "rows"), int) or text_at(split, "hash") is None:
            yield name, None
            continue
        for file in files:
            yield name, file["path"]


def _is_file(value: Any) -> bool:
    kinds = {"path": str, "rows": int, "bytes": int, "sha256": str}
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in kinds.items())
