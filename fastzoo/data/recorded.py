"""Held-out dialogues as a record names them: those that an SAE's own figures were measured on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fastzoo.config.recipe import EMBEDDED_DATA, DataSection, EvaluationSection
from fastzoo.config.run_recipe import remembered_path
from fastzoo.core.errors import DataError, InputError
from fastzoo.core.paths import path_of
from fastzoo.core.text import one_line
from fastzoo.core.values import text_at, value_at
from fastzoo.data.rows import Rows
from fastzoo.data.split import held_out_section, is_split_off, open_held_out


@dataclass(frozen=True)
class HeldOut:
    """Which dialogues are used, and in which order."""

    section: DataSection
    seed: int = 0
    rows: int | None = None
    """How many rows at the start were set aside; training used those after them. None: it used none."""
    sha256: str | None = None
    """What a file must hold; None: anything."""

    def dialogues(self) -> HeldOut:
        """Equal for the same dialogues: a file is what it holds, wherever it lies."""
        source = self.section.source if self.sha256 is None else ""
        return replace(self, section=self.section.model_copy(update={"source": source}), rows=None)

    def open(self) -> Rows:
        """Raises DataError: the file is not there, or not what it was; HubError."""
        source, wanted = self.section.source, self.sha256
        if wanted is None:
            return open_held_out(self.section, self.seed)
        recorded = f"its figures were measured on '{one_line(source, 200)}' (sha256 {wanted[:12]}...)"
        if source != EMBEDDED_DATA and not os.path.exists(path_of(source, "source")):
            raise DataError(f"{recorded}, which is not on this machine; give dialogues with --data")
        rows = open_held_out(self.section, self.seed)
        if rows.info.revision != wanted:
            now = f"which holds something else now (sha256 {str(rows.info.revision)[:12]}...)"
            raise DataError(f"{recorded}, {now}; give dialogues with --data")
        return rows


def recorded_held_out(
    record: Mapping[str, Any], run_folder: Path, max_tokens: int | None = None
) -> HeldOut | None:
    """What ``config.json`` says of the dialogues that were held out; None if it says nothing usable.

    A local file is looked for where the recipe in ``run_folder`` has it, else by its name. ``max_tokens``
    takes the place of the recorded one.
    """
    recipe, found = value_at(record, "recipe"), value_at(record, "evaluation_data")
    seed, kind, revision = value_at(recipe, "seed"), text_at(found, "kind"), text_at(found, "revision")
    try:
        data = DataSection.model_validate(value_at(recipe, "data"))
        evaluation = EvaluationSection(source=value_at(recipe, "evaluation", "source"))
    except ValidationError:  # of another version, or of somebody else
        return None
    if (
        kind not in ("embedded", "file", "hub", "built")
        or revision is None
        or not isinstance(seed, int)
        or seed < 0
    ):
        return None
    rows = None
    built = text_at(found, "data_set") is not None  # its splits are apart from what is trained on
    if is_split_off(data, evaluation) and value_at(recipe, "method") != "bt-p" and not built:
        rows = value_at(found, "rows")
        if not isinstance(rows, int) or rows < 1:
            return None
    # What makes no difference to the dialogues is as if it were not given.
    unused: dict[str, Any] = {"block_tokens": None, "shuffle_rows": 1}
    changed = unused | {"max_tokens": max_tokens or data.max_tokens}
    section = held_out_section(data, evaluation).model_copy(update=changed)
    if kind == "hub":  # the first rows, in the order of its files
        return HeldOut(section.model_copy(update={"revision": revision, "shuffle": False}), rows=rows)
    unused = {"revision": None, "subset": None, "split": "train"}  # of a Hub dataset
    if kind == "embedded":
        return HeldOut(section.model_copy(update={**unused, "shuffle": False}), sha256=revision)
    key = "data" if evaluation.source is None else "evaluation"
    path = remembered_path(run_folder, section.source, key, "source") or section.source
    section = section.model_copy(update={**unused, "source": str(path)})
    return HeldOut(section, seed if section.shuffle else 0, rows, revision)


def shared_held_out(found: Mapping[str, HeldOut | None]) -> HeldOut:
    """The dialogues that several SAEs, by name, have in common.

    Raises InputError: an SAE's record names none, or their records name different ones.
    """
    if unknown := [name for name, held_out in found.items() if held_out is None]:
        said = "its files do not say which dialogues its figures were measured on"
        raise InputError(f"{unknown[0]}: {said}; give dialogues with --data")
    known = [held_out for held_out in found.values() if held_out]
    if any(held_out.dialogues() != known[0].dialogues() for held_out in known):
        sources = one_line(", ".join(sorted({x.section.source.rpartition("/")[2] for x in known})))
        said = f"these SAEs' figures are of different dialogues ({sources}), or these were read in different ways"
        raise InputError(f"{said}; choose with --data")
    set_aside = [held_out.rows for held_out in known if held_out.rows is not None]
    here = next((held_out for held_out in known if os.path.exists(held_out.section.source)), known[0])
    return replace(here, rows=min(set_aside, default=None))
