"""The rows of ``fastzoo list``: this machine's SAEs, a namespace's published ones, and the paper's grid.

Our figures and the paper's never share a key. Loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from fastzoo.core.errors import HubError, InputError
from fastzoo.core.tables import fits
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.hub.find import RUNS, local_results
from fastzoo.hub.registry import Registry, last_seen
from fastzoo.results.figures import cell_shown, column_shown
from fastzoo.results.table import (
    COLUMNS,
    LISTED,
    MEASURED,
    PAPER,
    Cell,
    Column,
    ResultRow,
    local_row,
    measured,
    paper_cells,
    with_grid,
)
from fastzoo.saes.names import SAEName, model_part

KEYS = (
    *("name", "status", "repo", "revision", "path"),
    *("model", "layer", "expansion", "architecture", "method"),
    *(column.name for column in (*MEASURED, *PAPER)),
)
"""Keys of a row, in order."""

SHOWN = (*LISTED, Column("path", str, "folder on this machine", rank=9))
"""Columns of the table on the terminal."""


def list_rows(registry: Registry, folder: Path) -> list[ResultRow]:
    """One row per name, or per folder where several hold SAEs of one name.

    Figures are those of the folder where there is one, else the published ones. What is on this
    machine comes first, then what is published, then the rest of the paper's grid.
    """
    local: dict[SAEName, list[Path]] = {}
    for name, path in local_results(folder):
        local.setdefault(name, []).append(path)
    rows = [
        _row(name, registry, path)
        for name in with_grid({*registry.saes, *local})
        for path in local.get(name, [None])
    ]
    order = {"both": 0, "local": 0, "published": 1, "paper": 2}
    return sorted(rows, key=lambda row: order[str(row["status"])])


def _row(name: SAEName, registry: Registry, path: Path | None) -> ResultRow:
    published = registry.saes.get(name)
    if path is not None:
        status = "both" if published else "local"
        figures = local_row(path)
    else:
        status = "published" if published else "paper"
        figures = measured(published.figures if published else {})
    return {
        "name": str(name),
        "status": status,
        "repo": published.repo_id if published else None,
        "revision": published.sha if published else None,
        "path": None if path is None else str(path),
        **vars(name),
        **figures,
        **paper_cells(name),
    }


def pick(rows: Sequence[ResultRow], wanted: Mapping[str, Sequence[str]]) -> list[ResultRow]:
    """The rows that match, for each key of ``wanted``, one of its values (wildcards allowed).

    Raises InputError: no row at all has such a value.
    """
    picked = list(rows)
    for key, values in wanted.items():
        present = list(dict.fromkeys(str(row[key]) for row in rows))
        matching: set[str] = set()
        for value in values:
            text = value.lower()
            if key == "model" and "*" not in value:
                text = model_part(value)
            elif key == "expansion":
                text = text.removesuffix("x")
            found = {x for x in present if fnmatchcase(x, text)}
            if not found:
                numbers = key in ("layer", "expansion")
                near = "" if numbers else did_you_mean(text, present)
                some = ", ".join(sorted(present, key=int) if numbers else present[:12])
                raise InputError(
                    f"--{key}: no SAE has '{one_line(value, 100)}'.{near or f' There are {some}.'}"
                )
            matching |= found
        picked = [row for row in picked if str(row[key]) in matching]
    return picked


def column_key(column: str) -> str:
    """The key of a column that a user named. Raises InputError: there is no such column."""
    key = column.lower().replace("-", "_").replace(" ", "_")
    if key not in KEYS:
        hint = did_you_mean(key, KEYS) or " Columns are the keys that --json prints."
        raise InputError(f"--sort: there is no column '{one_line(column, 100)}'.{hint}")
    return key


def sort_rows(rows: Sequence[ResultRow], key: str, *, descending: bool) -> list[ResultRow]:
    """Rows sorted by what tables show of a column; those without a value are last in either direction."""

    def value(row: ResultRow) -> Any:  # all values of a column have one type
        return row[column_shown(row, key)]

    have = [row for row in rows if value(row) is not None]
    return sorted(have, key=value, reverse=descending) + [r for r in rows if value(r) is None]


def known_names() -> list[str]:
    """Every name that is known without asking the Hub, for completion."""
    seen = None
    with suppress(HubError, InputError):
        seen = last_seen()
    local = dict(local_results(RUNS))
    return list(
        map(str, [*local, *(name for name in with_grid(seen.saes if seen else ()) if name not in local)])
    )


def matches(name: object, pattern: str) -> bool:
    """Whether a name matches wildcards, in upper or lower case."""
    return fnmatchcase(str(name).lower(), pattern.lower())


def nothing_found(pattern: str, rows: Sequence[ResultRow]) -> str:
    """Why no row is left, and what the pattern may have meant."""
    names = [str(row["name"]) for row in rows]
    part = f"*{pattern.strip('*')}*".lower()
    hint = ""
    if pattern != "*" and not any(matches(name, pattern) for name in names):
        partly = any(matches(name, part) for name in names)
        hint = f" Did you mean '{part}'?" if partly else did_you_mean(pattern, names)
    return one_line(f"no SAE matches '{one_line(pattern, 100)}' and these options.{hint}")


def table(
    rows: Sequence[ResultRow], sort: str | None
) -> tuple[list[str], list[list[str]], list[int], list[str]]:
    """Headings, lines, the columns that hold text, and the headings that the terminal has no room for.

    Columns without any value are neither shown nor reported; the sorted one is always shown.
    """
    columns = [
        c for c in SHOWN if c.rank == 0 or any(row[column_shown(row, c.name)] is not None for row in rows)
    ]
    if sort is not None and sort not in {c.name for c in columns}:
        known = next((c for c in COLUMNS if c.name == sort), Column(sort, str, ""))
        columns.insert(2, replace(known, rank=0, digits=known.digits or "g"))
    left_out: list[str] = []
    while True:
        headings = [column.heading or column.name for column in columns]
        lines = [[cell_shown(row, c.name, partial(_show, digits=c.digits)) for c in columns] for row in rows]
        last = max((c for c in reversed(columns) if c.name != sort), key=lambda c: c.rank or 0)
        if fits(headings, lines) or last.rank == 0:  # names are not cut
            left = [i for i, column in enumerate(columns) if not column.digits]
            return headings, lines, left, left_out
        left_out.append(last.heading or last.name)
        columns.remove(last)


def _show(value: Cell, digits: str) -> str:
    if value is None:
        return "—" if digits else ""
    if isinstance(value, str):
        return one_line(value, 4096)
    return format(value, digits if isinstance(value, float) and digits != "d" else "d")
