"""The commands ``fastzoo list`` and ``fastzoo info``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastzoo.cli.app import (
    Json,
    Namespace,
    Refresh,
    Several,
    Source,
    complete_columns,
    complete_names,
    path_option,
    print_hints,
    print_json,
    which,
)
from fastzoo.core.errors import HubError, InputError
from fastzoo.core.tables import print_table
from fastzoo.core.text import one_line

if TYPE_CHECKING:
    from fastzoo.hub.registry import Registry


def list_saes(
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN", help="Wildcards, as in 'qwen2.5-*-jumprelu'.", autocompletion=complete_names
        ),
    ] = "*",
    model: Annotated[Several, which("model", "Only this language model (or its Hub id).")] = None,
    layer: Annotated[Several, which("layer", "Only this layer.")] = None,
    architecture: Annotated[Several, which("architecture", "Only this architecture.")] = None,
    method: Annotated[Several, which("method", "Only this method: fast, bt-f or bt-p.")] = None,
    expansion: Annotated[Several, which("expansion", "Only this expansion, as 8 or 8x.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Sort by this column: any key of --json.", autocompletion=complete_columns
        ),
    ] = None,
    descending: Annotated[bool, typer.Option("--descending", help="Largest first.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Only those on this machine.")] = False,
    published: Annotated[bool, typer.Option("--published", help="Only published ones.")] = False,
    folder: Annotated[Path, path_option("--folder", "Where to look for local SAEs.", "PATH")] = Path("runs"),
    namespace: Namespace = None,
    refresh: Refresh = False,
    as_json: Json = False,
) -> None:
    """SAEs on this machine, published ones, and the paper's grid.

    Shows our figures (from the local folder if there is one, else the published ones) and the paper's.
    """
    from fastzoo.cli.listing import column_key, list_rows, matches, nothing_found, pick, sort_rows

    if sort is not None:
        sort = column_key(sort)
    elif descending:
        raise InputError("--descending goes with --sort COLUMN")
    hints: list[str] = []
    known = list_rows(_registry(namespace, refresh, hints), folder)
    given = {
        "model": model,
        "layer": layer,
        "architecture": architecture,
        "method": method,
        "expansion": expansion,
    }
    rows = [
        row
        for row in pick(known, {key: values for key, values in given.items() if values})
        if (row["path"] or not local) and (row["repo"] or not published) and matches(row["name"], pattern)
    ]
    if sort is not None:
        rows = sort_rows(rows, sort, descending=descending)
    if as_json:
        print_json(rows)
    elif not rows:
        hints.append(nothing_found(pattern, known))
    else:
        hints += _print_rows(rows, sort)
    print_hints(hints)


def _print_rows(rows: list[dict[str, Any]], sort: str | None) -> Iterator[str]:
    """A table; yields what is to be said of it."""
    from fastzoo.cli.listing import table
    from fastzoo.results.figures import MARKED, is_older

    headings, lines, left, left_out = table(rows, sort)
    print_table(headings, lines, left)
    if left_out:
        yield f"no space for: {', '.join(left_out)}; --json has everything"
    if any(map(is_older, rows)):
        yield MARKED
    yield "'paper:' is what arXiv 2506.07691 reports; all other figures are ours"


def info(
    source: Source, namespace: Namespace = None, refresh: Refresh = False, as_json: Json = False
) -> None:
    """What is known about one SAE.

    Its record and figures, what is published, and what the paper reports.
    """
    from fastzoo.cli.facts import facts_of

    hints: list[str] = []
    facts = facts_of(source, lambda: _registry(namespace, refresh, hints))
    if as_json:
        print_json(facts)
    else:
        width = max(map(len, facts))
        for key, value in facts.items():
            print(f"{key:<{width}}  {'—' if value is None else one_line(value, 4096)}")
    print_hints(hints)


def _registry(namespace: str | None, refresh: bool, hints: list[str]) -> Registry:
    """The registry; an empty one if none can be had, and ``hints`` is told why.

    Raises NotFoundError, AccessError, IntegrityError: the namespace that was asked for has none.
    """
    from fastzoo.hub.registry import Registry, default_namespace, read_registry

    try:
        return read_registry(namespace, newest=refresh, say=hints.append)
    except HubError as error:
        if namespace and type(error) is not HubError:
            raise
        hints.append(f"{error}; what is published is not shown")
        return Registry(namespace or default_namespace())
