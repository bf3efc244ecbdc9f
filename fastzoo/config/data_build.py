"""What ``fastzoo data build`` makes, as one strict YAML file: sources, deduplication, splits."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from fastzoo.config.reading import make_section, override, read_mapping
from fastzoo.config.recipe import Section
from fastzoo.core.errors import InputError
from fastzoo.core.files import resource
from fastzoo.core.paths import path_of
from fastzoo.core.strict_yaml import dump_yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
"""What the Hub takes as a repository's name."""

HELD_OUT = ("reconstruction", "interpretability", "steering", "steering_trial")
"""Held-out splits: to measure reconstruction on, to read what latents mean, to find latents to steer with, to try them on."""


class SourceSection(Section):
    """Where rows come from, and what of them is used."""

    source: str = Field(min_length=1)
    """``embedded``, a file, a pattern such as ``chats/*.jsonl.gz``, or a Hub dataset id."""
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    adapter: str | None = None
    """Which columns hold what (``data/adapters.py``); null: by the dataset's id, else by the row's shape."""
    column: str | None = None
    """Where the turns, or the text, are; null: as the adapter has it."""
    row_id: str | None = None
    """A column that names the row; null: as the adapter has it, else its place in its file."""
    language: str | None = None
    """A column that says the language; null: as the adapter has it, else not known."""
    licence: str | None = None
    where: dict[str, Any] = Field({})
    """By column, the value or the values that a row must have, such as ``{toxic: false}``; other rows are left out."""


class DeduplicationSection(Section):
    """Algorithm 1 of the paper: a sample that shares an n-gram with one kept before it is dropped."""

    n: int = Field(20, ge=1, le=1000)
    unit: Literal["words", "characters"] = "words"
    bits: Literal[64, 128] = 64
    """Of an n-gram's hash: fewer take half the memory, and can drop a sample by chance (the manifest says how likely)."""
    short: Literal["keep", "unique"] = "keep"
    """Samples of fewer than n words: kept as in the paper, or exact copies of them are dropped, too."""


class SplitsSection(Section):
    """How many dialogues are held out, the paper's numbers; of small data at most a tenth in all."""

    reconstruction: int = Field(5_000, ge=0)
    interpretability: int = Field(10_000, ge=0)
    steering: int = Field(1_000, ge=0)
    steering_trial: int = Field(10, ge=0)
    apart: int | None = Field(20, ge=1, le=1000)
    """Training rows that share an n-gram of so many words with a held-out one are left out; null: only identical ones."""


class DataBuild(Section):
    """One data set to build."""

    name: str
    kind: Literal["dialogues", "text"] = "dialogues"
    """text: plain text for bt-p, in the column ``text``."""
    sources: list[SourceSection] = Field(min_length=1)
    deduplication: DeduplicationSection | None = DeduplicationSection()
    splits: SplitsSection | None = SplitsSection()
    seed: int = Field(42, ge=0, lt=2**63)
    shuffle: bool = True
    """Training rows in an order by the seed; false: as the sources have them."""
    shard_rows: int = Field(50_000, ge=1)
    """About how many rows a file of the result has."""
    folder: str | None = None
    """Default: ``data/<name>``."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many rows of each source."""
    sample: int | None = Field(None, ge=1)
    """So many usable rows of each source, drawn by the seed."""

    @field_validator("name")
    @classmethod
    def _hub_name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("a name holds letters, digits, '-', '_', '.', and no more than 96 of them")
        return value

    @property
    def output(self) -> Path:
        return path_of(self.folder or f"data/{self.name}", "folder")

    def to_yaml(self) -> str:
        return dump_yaml(self.model_dump())


def load_build(path: Path, overrides: Sequence[str] = ()) -> DataBuild:
    """Read such a file, or one that comes with fastzoo by its name, apply ``key=value`` overrides, and check it.

    Raises InputError.
    """
    own = resource("recipes") / "data" / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent == Path() and not os.path.exists(path) and os.path.isfile(own):
        path = own
    raw, where = read_mapping(path, "data")
    for text in overrides:
        override(raw, text)
    raw.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "data")
    build = make_section(DataBuild, where, **raw)
    if build.limit and build.sample:
        raise InputError(f"{where}: limit and sample exclude each other; give one of them")
    if build.kind == "text" and build.splits and build.model_fields_set >= {"splits"}:
        raise InputError(f"{where}: held-out splits are of dialogues; leave splits out for kind: text")
    return build
