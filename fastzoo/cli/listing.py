"""What ``fastzoo list`` and ``fastzoo info`` know without loading weights: this machine's SAEs, a
namespace's published ones, and the paper's grid, as flat rows with the same keys.

Our figures and the paper's never share a key. Loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fastzoo.core.errors import HubError, InputError
from fastzoo.core.files import read_json, sha256_of
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.hub.find import RUNS, local_results
from fastzoo.hub.registry import Registry, default_namespace, last_seen
from fastzoo.results.table import MEASURED, PAPER, Row, measured, paper_cells, result_row, with_grid
from fastzoo.saes.names import SAEName, model_part, zoo_names

KEYS = (
    *("name", "status", "repo", "revision", "path"),
    *("model", "layer", "expansion", "architecture", "method"),
    *(column.name for column in (*MEASURED, *PAPER)),
)
"""Keys of a row, in order."""


@dataclass(frozen=True)
class Heading:
    """A column of the table on the terminal. ``rank``: the highest goes first where space lacks."""

    key: str
    text: str
    digits: str
    rank: int


TABLE = (
    Heading("name", "name", "", 0),
    Heading("status", "status", "", 0),
    Heading("l0", "L0", ".1f", 2),
    Heading("log2_mse", "log2 MSE", ".3f", 1),
    Heading("log2_mse_special", "log2 MSE special", ".3f", 5),
    Heading("fvu", "FVU", ".4f", 6),
    Heading("ce_recovered", "CE recovered", ".4f", 7),
    Heading("dead_latents", "dead", "d", 8),
    Heading("paper_log2_mse", "paper: log2 MSE", ".3f", 3),
    Heading("paper_log2_mse_special", "paper: special", ".3f", 4),
    Heading("path", "path", "", 9),
)


# --- rows --------------------------------------------------------------------------------------


def list_rows(registry: Registry, folder: Path) -> list[Row]:
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


def _row(name: SAEName, registry: Registry, path: Path | None) -> Row:
    published = registry.saes.get(name)
    if path is not None:
        status = "both" if published else "local"
        figures = result_row(_read(path / "config.json"), _read(path / "metrics.json"))
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


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none that can be read."""
    try:
        return read_json(path)
    except InputError:
        return {}


def pick(rows: Sequence[Row], wanted: Mapping[str, Sequence[str]]) -> list[Row]:
    """The rows that have, for each key of ``wanted``, one of its values (wildcards allowed).

    Raises:
        InputError: no row at all has such a value.
    """
    picked = list(rows)
    for key, values in wanted.items():
        present = list(dict.fromkeys(str(row[key]) for row in rows))
        keep: set[str] = set()
        for value in values:
            text = value.lower()
            if key == "model":
                text = value.lower() if "*" in value else model_part(value)
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
            keep |= found
        picked = [row for row in picked if str(row[key]) in keep]
    return picked


def column_key(column: str) -> str:
    """The key of a column that a user named.

    Raises:
        InputError: there is no such column.
    """
    key = column.lower().replace("-", "_").replace(" ", "_")
    if key not in KEYS:
        hint = did_you_mean(key, KEYS) or " Columns are the keys that --json prints."
        raise InputError(f"--sort: there is no column '{one_line(column, 100)}'.{hint}")
    return key


def sort_rows(rows: Sequence[Row], key: str, *, descending: bool) -> list[Row]:
    """Rows by a column, those without a value last in either direction."""

    def value(row: Row) -> Any:  # those of a column are of one type
        return row[key]

    have = [row for row in rows if row[key] is not None]
    return sorted(have, key=value, reverse=descending) + [r for r in rows if r[key] is None]


def known_names() -> list[str]:
    """Every name that is known without asking anybody, for completion."""
    try:
        seen = last_seen(default_namespace())
    except (HubError, InputError):
        seen = None
    published = set(seen.saes) if seen else set()
    local = {name for name, _ in local_results(RUNS)}
    return [*map(str, sorted(local)), *(str(n) for n in with_grid(published) if n not in local)]


def nothing_found(pattern: str, rows: Sequence[Row]) -> str:
    """Why no row is left, and what the pattern may have meant."""
    names = [str(row["name"]) for row in rows]
    part = f"*{pattern.strip('*')}*".lower()
    hint = ""
    if pattern != "*" and not any(fnmatchcase(name.lower(), pattern.lower()) for name in names):
        partly = any(fnmatchcase(name.lower(), part) for name in names)
        hint = f" Did you mean '{part}'?" if partly else did_you_mean(pattern, names)
    return one_line(f"no SAE matches '{one_line(pattern, 100)}' and these options.{hint}")


# --- the table ---------------------------------------------------------------------------------


def table(rows: Sequence[Row], width: int | None, sort: str | None) -> tuple[list[str], list[str]]:
    """Lines of the table, and the headings of columns that found no place in ``width`` characters.

    Columns without any value are not shown, nor counted; the sorted one always is shown.
    """
    headings = [h for h in TABLE if h.rank == 0 or any(row[h.key] is not None for row in rows)]
    if sort is not None and sort not in {h.key for h in headings}:
        headings.insert(2, Heading(sort, sort, "g", 0))
    columns = {h: [h.text, *(_show(row[h.key], h.digits) for row in rows)] for h in headings}
    left_out = []
    while width is not None and _width(columns) > width:
        last = max((h for h in columns if h.key != sort), key=lambda h: h.rank)
        if last.rank == 0:
            break  # names are not cut
        left_out.append(last.text)
        del columns[last]
    lines = []
    sizes = {h: max(map(len, cells)) for h, cells in columns.items()}
    for i in range(len(rows) + 1):
        cells = (
            f"{column[i]:{'>' if h.digits else '<'}{sizes[h]}}" for h, column in columns.items()
        )
        lines.append("  ".join(cells).rstrip())
    return lines, left_out


def _width(columns: Mapping[Heading, Sequence[str]]) -> int:
    return sum(2 + max(map(len, cells)) for cells in columns.values()) - 2


def _show(value: str | int | float | None, digits: str) -> str:
    if value is None:
        return "—" if digits else ""
    if isinstance(value, str):
        return one_line(value, 4096)
    return format(value, digits if isinstance(value, float) and digits != "d" else "d")


# --- one SAE -----------------------------------------------------------------------------------


def published_facts(name: SAEName, registry: Registry, folder: Path | None) -> dict[str, Any]:
    """What is published of one SAE; {} if nothing is.

    Args:
        folder: where the weights of that name on this machine are, if they are: they are compared,
            and the published figures get keys of their own.
    """
    sae = registry.saes.get(name)
    if sae is None:
        return {}
    facts: dict[str, Any] = {
        "repo": sae.repo_id,
        "revision": sae.sha,
        "weights_sha256": sae.weights_sha256,
        "bytes": sum(facts.size for facts in sae.files.values()),
    }
    if folder is not None:
        weights = folder / "sae_weights.safetensors"
        facts["same_weights_here"] = weights.is_file() and sha256_of(weights) == sae.weights_sha256
    prefix = "" if folder is None else "published_"
    cells = {key: value for key, value in measured(sae.figures).items() if value is not None}
    return facts | {prefix + key: value for key, value in cells.items()}


def unknown(name: SAEName, registry: Registry) -> InputError:
    """The error for a name that nothing is known of."""
    hint = did_you_mean(str(name), map(str, {*zoo_names(), *registry.saes}), 1)
    return InputError(
        f"{name} is neither on this machine (looked in . and runs/*/), nor published by "
        f"{registry.namespace}, nor in the paper's grid; 'fastzoo list' shows what is.{hint}"
    )
