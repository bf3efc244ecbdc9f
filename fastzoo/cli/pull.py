"""``fastzoo pull``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastzoo.cli.app import Json, Namespace, complete_names, path_option, print_hints, print_json


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
        Path | None, path_option("--local-dir", "Where to put them, instead of in the Hub's cache.", "PATH")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit, instead of the published one.")
    ] = None,
    namespace: Namespace = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch SAEs from the Hub and verify every file.

    Prints the folder of each.
    """
    from fastzoo.hub.pull import dry_run as planned
    from fastzoo.hub.pull import pull_all
    from fastzoo.hub.verified_files import in_words

    if dry_run:
        rows, failures = planned(sources, local_dir=local_dir, revision=revision, namespace=namespace)
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
        print_hints([f"{saes}, {in_words(size)}, of which {in_words(missing)} are to be fetched"])
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        raise typer.Exit(failures[0].exit_code)
