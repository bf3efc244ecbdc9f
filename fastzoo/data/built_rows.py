"""Rows of a data set that ``fastzoo data build`` made, from its folder or from the Hub, with its own held-out splits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastzoo.config.recipe import DataSection, TextSection
from fastzoo.core.errors import DataError
from fastzoo.data.build.manifest import BuiltSet
from fastzoo.data.build.normalise import digest
from fastzoo.data.files import FilesTable
from fastzoo.data.hub_rows import HubRows
from fastzoo.data.row import Row, Rows, SourceInfo
from fastzoo.data.rows import TableRows

RECONSTRUCTION = "reconstruction"


class BuiltRows:
    """Training rows are the split ``train``; held-out dialogues come from the others.

    While training rows are read, each is compared with all held-out dialogues: the split was made once and files can be
    changed. Raises DataError: one of them is a held-out dialogue.
    """

    def __init__(self, rows: dict[str, Rows], info: SourceInfo) -> None:
        self.info = info
        self._rows = rows
        self._held: frozenset[bytes] | None = None

    def held_out(self, purpose: str = RECONSTRUCTION) -> Iterator[Row]:
        """The rows of the split for a purpose; where there is none, of that for reconstruction, else of any."""
        others = [name for name in self._rows if name != "train"]
        wanted = next((name for name in (purpose, RECONSTRUCTION, *others) if name in others), None)
        if wanted is None:
            raise DataError(
                f"{self.info.name}: has no held-out split; give other dialogues as evaluation.source, or build it with splits"
            )
        return self._rows[wanted].held_out()

    def training(self, epoch: int, held_out: int, start: int = 0) -> Iterator[Row]:
        """All rows for training; ``held_out`` are none of them."""
        if self._held is None:
            others = [rows for name, rows in self._rows.items() if name != "train"]
            self._held = frozenset(digest(row) for rows in others for _, row in rows.held_out())
        for number, row in self._rows["train"].training(epoch, 0, start):
            if digest(row) in self._held:
                raise DataError(
                    f"{self.info.name}: row {number} of its training split is a held-out dialogue; the data set was changed "
                    "after it was built: build it again"
                )
            yield number, row


def open_built_rows(built: BuiltSet, section: DataSection | TextSection, seed: int) -> Rows:
    """The rows of a folder; of one split alone if another than ``train`` is wanted.

    Raises DataError: a file is not what the manifest says; there is no such split, or none for training.
    """
    wanted = built.splits() if section.split == "train" else [section.split]
    rows: dict[str, Rows] = {}
    for split in wanted:
        built.check(split)
        table = FilesTable(built.files(split))
        about = SourceInfo(f"{built.name}, {split}", "built", built.hash, len(table))
        rows[split] = TableRows(table, about, seed, section.shuffle and split == "train")
    if section.split != "train":
        return rows[section.split]
    return BuiltRows(rows, _info(built.manifest, built.name, "built", built.hash))


def open_built_on_hub(
    manifest: dict[str, Any], revision: str, section: DataSection | TextSection, seed: int
) -> BuiltRows:
    """The rows of a dataset repository with such a manifest, streamed. Raises DataError, HubError."""
    pinned = section.model_copy(update={"revision": revision})
    sections = {
        name: pinned.model_copy(update={"split": name, "shuffle": section.shuffle and name == "train"})
        for name in manifest["splits"]
    }
    rows: dict[str, Rows] = {name: HubRows(each, seed) for name, each in sections.items()}
    return BuiltRows(rows, _info(manifest, section.source, "hub", revision))


def _info(manifest: dict[str, Any], name: str, kind: str, revision: str) -> SourceInfo:
    if "train" not in manifest["splits"]:
        raise DataError(f"{name}: has no rows for training, all were held out or dropped")
    rows = manifest["splits"]["train"]["rows"]
    return SourceInfo(name, kind, revision, rows, manifest["hash"], manifest["deduplication"])
