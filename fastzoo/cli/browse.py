"""``fastzoo list`` and ``fastzoo info``."""

from __future__ import annotations

import shutil
import sys
from fnmatch import fnmatchcase
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
    print_json,
    which,
)
from fastzoo.core.errors import HubError, InputError
from fastzoo.core.text import one_line

if TYPE_CHECKING:
    from fastzoo.hub.registry import Registry
from typing import TYPE_CHECKING

from fastzoo.cli.app import print_hints
from fastzoo.core.files import read_json
from fastzoo.core.values import number_at, text_at, value_at
from fastzoo.saes.names import parse_name


def list_saes(
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN",
            help="Wildcards, as in 'qwen2.5-*-jumprelu'.",
            autocompletion=complete_names,
        ),
    ] = "*",
    model: Annotated[Several, which("model", "Of this language model (or its Hub id).")] = None,
    layer: Annotated[Several, which("layer", "Of this layer.")] = None,
    architecture: Annotated[Several, which("architecture", "Of this kind.")] = None,
    method: Annotated[Several, which("method", "Trained by fast, bt-f or bt-p.")] = None,
    expansion: Annotated[Several, which("expansion", "Of this width, as 8 or 8x.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="By any key of --json.", autocompletion=complete_columns
        ),
    ] = None,
    descending: Annotated[bool, typer.Option("--descending", help="Largest first.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Only those on this machine.")] = False,
    published: Annotated[bool, typer.Option("--published", help="Only published ones.")] = False,
    folder: Annotated[Path, typer.Option(help="Where to look for local SAEs.")] = Path("runs"),
    namespace: Namespace = None,
    refresh: Refresh = False,
    as_json: Json = False,
) -> None:
    """SAEs on this machine, published ones, and the paper's grid.

    With our figures (of the folder on this machine, else the published ones) and the paper's.
    """
    from fastzoo.cli.listing import column_key, list_rows, nothing_found, pick, sort_rows, table

    if sort is not None:
        sort = column_key(sort)
    elif descending:
        raise InputError("--descending goes with --sort COLUMN")
    registry, hints = _registry(namespace, refresh)
    known = list_rows(registry, folder)
    choices = {
        "model": model,
        "layer": layer,
        "architecture": architecture,
        "method": method,
        "expansion": expansion,
    }
    rows = pick(known, {key: values for key, values in choices.items() if values})
    if local:
        rows = [row for row in rows if row["path"]]
    if published:
        rows = [row for row in rows if row["repo"]]
    rows = [row for row in rows if fnmatchcase(str(row["name"]).lower(), pattern.lower())]
    if sort is not None:
        rows = sort_rows(rows, sort, descending=descending)
    if as_json:
        print_json(rows)
    elif not rows:
        hints.append(nothing_found(pattern, known))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        lines, left_out = table(rows, width, sort)
        print("\n".join(lines))
        if left_out:
            hints.append(f"no space for: {', '.join(left_out)}; --json has everything")
        hints.append("'paper:' is what arXiv 2506.07691 reports; all other figures are ours")
    print_hints(hints)


def info(
    source: Source,
    namespace: Namespace = None,
    refresh: Refresh = False,
    as_json: Json = False,
) -> None:
    """What is known about one SAE.

    Its record and figures, what is published of it, and what the paper reports.
    """
    from fastzoo.cli.browse import describe
    from fastzoo.cli.listing import published_facts, unknown
    from fastzoo.hub.find import find_local
    from fastzoo.results.table import paper_cells
    from fastzoo.saes.names import grid_row
    from fastzoo.saes.paper import paper_figures

    path = find_local(source)
    facts: dict[str, Any]
    hints: list[str] = []
    if path is not None:
        facts = describe(path)
        try:
            name = parse_name(str(facts["name"]))
        except InputError:  # a folder of any other name
            name = None
        if name and not source.startswith("hf:"):
            registry, hints = _registry(namespace, refresh)
            facts |= published_facts(name, registry, Path(facts["path"]))
            facts["status"] = "both" if name in registry.saes else "local"
    else:
        name = parse_name(source)
        registry, hints = _registry(namespace, refresh)
        row, found = grid_row(name), published_facts(name, registry, None)
        if not found and name not in paper_figures():
            raise unknown(name, registry)
        facts = {
            "name": str(name),
            "status": "published" if found else "paper",
            "architecture": name.architecture,
            "method": name.method,
            "layer": name.layer,
        }
        if row is not None:
            facts |= {"base_model": row.base_model, "d_in": row.d_model}
            facts["d_sae"] = row.d_model * name.expansion
        facts |= found
    if name in paper_figures():
        facts |= paper_cells(name)
    if as_json:
        print_json(facts)
    else:
        width = max(map(len, facts))
        for key, value in facts.items():
            print(f"{key:<{width}}  {'—' if value is None else one_line(value, 4096)}")
    print_hints(hints)


def _registry(namespace: str | None, refresh: bool) -> tuple[Registry, list[str]]:
    """The registry, and what to say about it; an empty one where there is none to be had.

    Raises:
        NotFoundError, AccessError, IntegrityError: there is none of the namespace that was asked for.
    """
    from fastzoo.hub.registry import Registry, default_namespace, read_registry

    hints: list[str] = []
    try:
        return read_registry(namespace, newest=refresh, say=hints.append), hints
    except HubError as error:
        if namespace and type(error) is not HubError:
            raise
        hints.append(f"{error}; what is published is not shown")
        return Registry(namespace or default_namespace()), hints


def _special_tokens(record: dict[str, Any]) -> str:
    """Those of the dialogues that an SAE was measured on."""
    tokens = value_at(record, "special_tokens")
    found = tokens.values() if isinstance(tokens, dict) else ()
    return " ".join(one_line(token) for token in found) or "none"


def _metrics(folder: Path) -> dict[str, Any]:
    """A folder's ``metrics.json``; {} where there is none that can be read."""
    try:
        return read_json(folder / "metrics.json")
    except InputError:
        return {}


def describe(folder: Path) -> dict[str, Any]:
    """Facts of a local SAE, flat and in reading order; the weights are opened and checked."""
    from fastzoo.loading import name_of, open_sae
    from fastzoo.results.figures import DEFINITIONS, SUBSETS

    loaded = open_sae(folder)
    facts: dict[str, Any] = {
        "name": name_of(loaded),
        "path": str(loaded.folder),
        "layout": loaded.layout,
        "architecture": loaded.sae.architecture,
        "layer": loaded.layer,
        "d_in": loaded.sae.d_in,
        "d_sae": loaded.sae.d_sae,
    }
    record = loaded.record
    if not record:
        return facts | {"base_model": loaded.model_name}
    training = value_at(record, "recipe", "training")
    facts |= {
        "method": text_at(record, "sae", "method"),
        "base_model": text_at(record, "base_model", "name"),
        "base_model_sha": text_at(record, "base_model", "sha"),
        "training_data": text_at(record, "training_data", "name"),
        "preset": text_at(record, "recipe", "preset"),
        "training_tokens": number_at(training, "tokens"),
        "special_tokens": _special_tokens(record),
        "sparsity_coefficient": number_at(
            training, "sparsity_coefficient", loaded.sae.architecture
        ),
    }
    figures = _metrics(loaded.folder.parent)
    for metric in DEFINITIONS:
        for subset in SUBSETS:
            if value_at(figures, "metrics", metric, subset):
                suffix = "" if subset == "all" else f"_{subset}"
                facts[f"{metric}{suffix}"] = number_at(figures, "metrics", metric, subset, "value")
    for key in ("log2_mse", "log2_mse_special"):
        if value_at(figures, "paper", key) is not None:
            facts[f"paper_{key}"] = number_at(figures, "paper", key)
    return facts
