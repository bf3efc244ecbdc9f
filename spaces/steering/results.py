"""The rows of ``<namespace>/fastzoo-results`` and what the page says of them. Loads neither gradio nor torch."""

from __future__ import annotations

import csv
import html
import io
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fastzoo.cli.listing import list_rows, sort_rows
from fastzoo.core.errors import FastzooError, InputError
from fastzoo.hub.find import RUNS
from fastzoo.hub.registry import DATASET, Registry, default_namespace, last_seen
from fastzoo.results import table
from fastzoo.results.figures import MARKED, SHOWN, SUBSETS, cell_shown, column_shown, is_older, shown
from fastzoo.results.table import ResultRow
from fastzoo.saes.names import METHODS, parse_name
from fastzoo.saes.references import REPO

Cell = str | float | None
Row = dict[str, Cell]

FILE = "results.csv"

COLUMNS = {column.name: column.kind for column in table.COLUMNS}

OURS = {
    figure.column(subset): f"{figure.label} {SUBSETS[subset].short}".strip()
    for figure, subset in shown("page")
}
PAPER = {"paper_log2_mse": "paper: log2 MSE", "paper_log2_mse_special": "paper: log2 MSE special"}
HEADINGS = {"name": "SAE", **OURS, **PAPER}
"""Columns of the table; what does not say "paper" was measured by fastzoo."""

FILTERS = ("model", "architecture", "method", "expansion")


# --- reading -----------------------------------------------------------------------------------


def namespace() -> str:
    """The owner of the Space; elsewhere ``FASTZOO_NAMESPACE``, else fastzoo."""
    return os.environ.get("SPACE_AUTHOR_NAME") or default_namespace()


def read_rows(text: str) -> list[Row]:
    """The rows of a results.csv, the published ones first; a cell that cannot be read is None.

    Raises:
        ValueError: it has no column ``name``, or is not CSV.
    """
    reader = csv.DictReader(io.StringIO(text))
    try:
        if "name" not in (reader.fieldnames or ()):
            raise ValueError(f"{FILE} has no column 'name'")
        rows = [
            {column: _cell(column, line.get(column)) for column in COLUMNS} for line in reader if line["name"]
        ]
    except csv.Error as error:
        raise ValueError(f"{FILE} is not CSV: {error}") from error
    return sorted(rows, key=lambda row: not published(row))


def _cell(column: str, text: str | None) -> Cell:
    if not text or COLUMNS[column] is str:
        return text or None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass
class Results:
    """The table, read from the Hub again when it is older than ``max_age`` seconds."""

    repo_id: str = field(default_factory=lambda: f"{namespace()}/{DATASET}")
    max_age: float = 600
    retry: float = 60
    """Seconds after which the Hub is asked again where it could not be read."""
    rows: list[Row] = field(default_factory=list)
    problem: str = ""
    _due: float = field(default=-math.inf, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def get(self) -> tuple[list[Row], str]:
        """The rows, and one line on why they are not the newest; never raises. What this machine has comes first; the
        paper's grid is there even if the Hub never answered."""
        with self._lock:
            if time.monotonic() >= self._due:
                self.rows = self.rows or here(self.repo_id.partition("/")[0])
                try:
                    self.rows, self.problem = with_local(self._read()), ""
                except Exception as error:  # whatever the Hub sends must not take the page down
                    self.problem = f"{self.repo_id} cannot be read from the Hub: {_why(error)}"
                self._due = time.monotonic() + (self.retry if self.problem else self.max_age)
            return self.rows, self.problem

    def _read(self) -> list[Row]:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(self.repo_id, FILE, repo_type="dataset", token=False)
        return read_rows(Path(path).read_text(encoding="utf-8"))


def here(owner: str) -> list[Row]:
    """What can be known without asking: this machine's SAEs, what was last seen of the namespace, the paper's grid."""
    registry = None
    with suppress(FastzooError):
        registry = last_seen(owner)
    rows = list_rows(registry or Registry(owner), RUNS)
    return [{column: _known(row, column) for column in COLUMNS} for row in rows]


def _known(row: ResultRow, column: str) -> Cell:
    """A cell of ``fastzoo list`` as the dataset has it."""
    value = row.get("repo" if column == "repo_id" else column)
    if column == "status" and value == "both":
        return "published"
    return float(value) if isinstance(value, int) else value


def with_local(rows: list[Row]) -> list[Row]:
    """Rows of the Hub, after those of this machine's own SAEs that are not published."""
    published_names = {row["name"] for row in rows if published(row)}
    local = [row for row in here("") if row["status"] == "local" and row["name"] not in published_names]
    names = {row["name"] for row in local}
    return [*local, *(row for row in rows if row["name"] not in names)]


def _why(error: Exception) -> str:
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return "there is no such public dataset."
    if isinstance(error, EntryNotFoundError) and not isinstance(error, FileNotFoundError):
        return f"it has no {FILE}."
    if isinstance(error, ValueError):
        return f"{error}."
    return "the Hub does not answer."


# --- choosing ----------------------------------------------------------------------------------


def published(row: Row) -> bool:
    return row["status"] == "published"


def value_of(row: Row, key: str) -> str:
    """A row's value of one of ``FILTERS``, as the filter and the address have it."""
    value = row[key]
    return f"{value:g}" if isinstance(value, float) else value or ""


def choices(rows: Iterable[Row], key: str) -> list[str]:
    """The values of a filter: methods in the paper's order, numbers by size, others by letter."""
    found = {value_of(row, key) for row in rows} - {""}

    def order(value: str) -> tuple[float, str]:
        if key == "method" and value in METHODS:
            return METHODS.index(value), ""
        return (float(value), "") if key == "expansion" else (math.inf, value)

    return sorted(found, key=order)


def select(rows: Iterable[Row], wanted: Mapping[str, str], only_published: bool) -> list[Row]:
    """The rows that fit; an empty value of a filter means any."""
    active = [(key, wanted[key]) for key in FILTERS if wanted.get(key)]
    return [
        row
        for row in rows
        if (published(row) or not only_published)
        and all(value_of(row, key) == value for key, value in active)
    ]


def ordered(rows: Iterable[Row], column: str, descending: bool) -> list[Row]:
    """The rows by a column of ``HEADINGS``, those without a value last; as they are for another."""
    rows = list(rows)
    return sort_rows(rows, column, descending=descending) if column in HEADINGS else rows


# --- showing -----------------------------------------------------------------------------------


def show(value: Cell) -> str:
    """A figure with four significant digits; nothing for None."""
    if value is None or isinstance(value, str):
        return value or ""
    if (value == int(value) and abs(value) < 1e9) or abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3e}"
    return f"{value:.4g}"


def figure_of(row: Row, column: str) -> Cell:
    """What the table and the plot show of a row in a column."""
    return row[column_shown(row, column)]


def text_of(row: Row, column: str) -> str:
    """That as text, marked where it stands in for a figure without attention sinks."""
    return cell_shown(row, column, show)


def legend(rows: Iterable[Row]) -> str:
    """What marks in the table mean; empty for a table without marks."""
    return MARKED if any(map(is_older, rows)) else ""


def shown_columns(rows: Sequence[Row]) -> list[str]:
    """Columns of the table without those in which no row has a figure."""
    return [c for c in HEADINGS if c == "name" or any(figure_of(row, c) is not None for row in rows)]


L0 = "l0_without_sinks"
PLOTS = {key: HEADINGS[f"{key}_without_sinks"] for key in ("fvu", "log2_mse")}
"""Figures without attention sinks; a row of an older version has only those with them."""


@dataclass(frozen=True)
class Plot:
    """Points of a scatter plot: (name, method, x, y), and what the axes are."""

    points: list[tuple[str, str, float, float]]
    x: str
    y: str
    measured: bool


def plot(rows: Iterable[Row], figure: str) -> Plot:
    """L0 against ``figure`` of what is published; where nothing is, the paper's two figures."""
    rows = list(rows)
    measured = _points(rows, L0, f"{figure}_without_sinks")
    if measured:
        return Plot(measured, HEADINGS[L0], PLOTS[figure], True)
    x, y = PAPER
    return Plot(_points(rows, x, y), HEADINGS[x], HEADINGS[y], False)


def _points(rows: Iterable[Row], x: str, y: str) -> list[tuple[str, str, float, float]]:
    points = []
    for row in rows:
        at, up = figure_of(row, x), figure_of(row, y)
        if isinstance(at, float) and isinstance(up, float):
            method = row["method"] if row["method"] in METHODS else "other"
            points.append((str(row["name"]), str(method), at, up))
    order = [*METHODS, "other"]
    return sorted(points, key=lambda point: order.index(point[1]))  # the legend's order too


def limits(values: Sequence[float]) -> list[float]:
    """Ends of an axis that leave room around the values."""
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1
    return [low - room, high + room]


def escape(text: Cell) -> str:
    """Text for gr.HTML, whose templates also read ``${}``, ``{{}}`` and backticks."""
    return re.sub(r"[`${}\\]", lambda match: f"&#{ord(match[0])};", html.escape(str(text or "")))


def link(row: Row, endpoint: str) -> str:
    """Address of an SAE on the Hub; empty where it has no repository."""
    repo_id = str(row["repo_id"] or "")
    return f"{endpoint}/{repo_id}" if published(row) and REPO.fullmatch(repo_id) else ""


def snippets(row: Row) -> tuple[str, str]:
    """A shell command that pulls an SAE and Python that loads it; empty where nothing can be pulled."""
    try:
        name = parse_name(str(row["name"]))
    except InputError:
        return "", ""
    if not link(row, ""):
        return "", ""
    repo_id = str(row["repo_id"])
    owner, _, repo = repo_id.partition("/")
    pull, source = f"fastzoo pull {name} --namespace {owner}", f"hf:{repo_id}"
    if repo != str(name):
        pull = f"fastzoo pull {source}"
    elif owner == "fastzoo":
        pull, source = f"fastzoo pull {name}", str(name)
    python = (
        f'import fastzoo\n\nsae = fastzoo.load_sae("{source}")\n'
        "\n# or with SAELens\nfrom sae_lens import SAE\n\n"
        f'sae = SAE.from_pretrained("{repo_id}", "{name.hook_folder}")\n'
    )
    return pull, python


def details(row: Row, endpoint: str) -> str:
    """What is known of one SAE, as HTML."""
    facts = [
        ("base model", escape(row["base_model"] or row["model"])),
        ("layer", show(row["layer"])),
        ("architecture", escape(row["architecture"])),
        ("method", escape(row["method"])),
        ("latents", _latents(row)),
        ("held-out tokens", show(row["evaluation_tokens"])),
    ]
    address = link(row, endpoint)
    where = "Not published: a cell of the paper's grid."
    if row["status"] == "local":
        where = "On this machine, not published."
    if published(row):
        where = f"Published in a repository whose name is not valid: {escape(row['repo_id'])}"
    if address:
        where = f'<a href="{address}" target="_blank" rel="noopener">{escape(row["repo_id"])}</a>'
    parts = [
        f'<h3 class="mono">{escape(row["name"])}</h3><p>{where}</p>',
        "<dl>",
        *(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts if value),
        "</dl>",
        _figures(row),
        _paper(row),
    ]
    return "".join(parts)


def _latents(row: Row) -> str:
    width = f" ({show(row['expansion'])}x)" if row["expansion"] is not None else ""
    return (show(row["d_sae"]) + width).strip()


def _figures(row: Row) -> str:
    subsets = [s for s in SUBSETS if any(row.get(figure.column(s)) is not None for figure in SHOWN)]
    lines = []
    for figure in SHOWN:
        cells = [show(row.get(figure.column(subset))) for subset in subsets]
        if any(cells):
            lines.append(_line(figure.label, cells))
    return _table("measured", [SUBSETS[subset].title for subset in subsets], lines)


def _paper(row: Row) -> str:
    cells = [show(row[column]) for column in PAPER]
    lines = [_line("log2 MSE", cells)] if any(cells) else []
    return _table("reported by the paper", ["all tokens", "special tokens"], lines)


def _table(what: str, headings: Iterable[str], lines: Sequence[str]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in (what, *headings))
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>" if lines else ""


def _line(label: str, cells: Iterable[str]) -> str:
    return f"<tr><th>{label}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
