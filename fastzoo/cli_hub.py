"""Commands on what there is and what is published: ``fastzoo list | info | pull | push``."""

from __future__ import annotations

import shutil
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastzoo.cli_app import (
    Json,
    Namespace,
    Refresh,
    Several,
    Source,
    app,
    complete_columns,
    complete_names,
    print_json,
    which,
)
from fastzoo.errors import HubError, InputError, one_line

if TYPE_CHECKING:
    from fastzoo.registry import Registry


@app.command("list")
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
    from fastzoo.listing import column_key, list_rows, nothing_found, pick, sort_rows, table

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
    _print_hints(hints)


@app.command()
def info(
    source: Source,
    namespace: Namespace = None,
    refresh: Refresh = False,
    as_json: Json = False,
) -> None:
    """What is known about one SAE.

    Its record and figures, what is published of it, and what the paper reports.
    """
    from fastzoo.listing import published_facts, unknown
    from fastzoo.local import describe, find_local
    from fastzoo.names import parse_name
    from fastzoo.results_dataset import paper_cells
    from fastzoo.zoo import grid_row, paper_figures

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
    _print_hints(hints)


@app.command()
def pull(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="A zoo name, a wildcard over the published ones, hf:org/repo[/folder][@revision], or "
            "hf:collections/<namespace>/<slug>.",
            autocompletion=complete_names,
        ),
    ],
    local_dir: Annotated[
        Path | None, typer.Option(help="Where to put them, instead of in the Hub's cache.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit, instead of the published one.")
    ] = None,
    namespace: Namespace = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch SAEs from the Hub and verify every file.

    Prints the folder of each.
    """
    from fastzoo.pulling import dry_run as planned
    from fastzoo.pulling import pull_all
    from fastzoo.sae_files import in_words

    if dry_run:
        rows, failures = planned(
            sources, local_dir=local_dir, revision=revision, namespace=namespace
        )
    else:
        done, failures = pull_all(
            sources, local_dir=local_dir, revision=revision, namespace=namespace, shown=not quiet
        )
        rows = [fetched.report() for fetched in done]
    if as_json:
        print_json(rows)
    for row in [] if as_json else rows:
        if not dry_run:
            print(row["path"])
            continue
        print(f"{row['name']}  {row['repo']}@{row['revision'][:12]}  {in_words(row['bytes'])}")
        for file in row["files"]:
            state = "here" if file["here"] else "to fetch"
            print(f"  {file['path']}  {in_words(file['size'])}  {state}")
    if dry_run and not quiet:
        size, missing = (sum(row[key] for row in rows) for key in ("bytes", "download_bytes"))
        saes = f"{len(rows)} SAE{'s' if len(rows) != 1 else ''}"
        _print_hints([f"{saes}, {in_words(size)}, of which {in_words(missing)} are to be fetched"])
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        raise typer.Exit(failures[0].exit_code)


@app.command("push")
def push_saes(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE", help="Folders of SAEs or of runs, or names of local SAEs."
        ),
    ],
    namespace: Annotated[
        str, typer.Option(metavar="NAME", help="Hub user or organisation to publish under.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make private repositories.")] = False,
    public_at_end: Annotated[
        bool,
        typer.Option("--public-at-end", help="Private, then public once everything is there."),
    ] = False,
    collection: Annotated[
        bool, typer.Option(help="Bring collection and results dataset up to date, too.")
    ] = True,
    space: Annotated[
        str | None, typer.Option(help="Publish a Gradio Space with them: 'zoo', or a folder.")
    ] = None,
    overwrite_cards: Annotated[
        bool, typer.Option("--overwrite-cards", help="Drop what was written into cards on the Hub.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Publish SAEs with cards and figures.

    The same command goes on where one was interrupted.
    """
    from fastzoo.publishable import candidates
    from fastzoo.push_report import Options
    from fastzoo.pushing import push
    from fastzoo.ranks import obeying_signals
    from fastzoo.spaces import find_space

    folder = find_space(space) if space is not None else None
    saes = candidates(sources)
    if dry_run:
        rows = [{**sae.facts(), "repo_id": f"{namespace}/{sae.name}"} for sae in saes]
        if as_json:
            print_json(rows)
        for row in rows if not as_json else ():
            size = f"{len(row['files'])} files, {row['bytes'] / 1e6:.1f} MB"
            print(f"{row['folder']} -> {row['repo_id']}  ({size})")
        return
    options = Options(
        namespace, private, public_at_end, collection, folder, overwrite_cards=overwrite_cards
    )
    with obeying_signals():
        report = push(saes, options)
    if as_json:
        print_json(report.to_value())
    else:
        for entry in report.saes.values():
            if "repo_id" in entry:
                print(entry["repo_id"])
        print(report.summary(), file=sys.stderr)
    if report.first_error is not None:
        raise report.first_error


def _registry(namespace: str | None, refresh: bool) -> tuple[Registry, list[str]]:
    """The registry, and what to say about it; an empty one where there is none to be had.

    Raises:
        NotFoundError, AccessError, IntegrityError: there is none of the namespace that was asked for.
    """
    from fastzoo.registry import Registry, default_namespace, read_registry

    hints: list[str] = []
    try:
        return read_registry(namespace, newest=refresh, say=hints.append), hints
    except HubError as error:
        if namespace and type(error) is not HubError:
            raise
        hints.append(f"{error}; what is published is not shown")
        return Registry(namespace or default_namespace()), hints


def _print_hints(hints: list[str]) -> None:
    """After the data, and not at all if nobody reads that (`fastzoo list | head`)."""
    sys.stdout.flush()
    for line in hints:
        print(line, file=sys.stderr)
