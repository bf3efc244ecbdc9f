"""``fastzoo push``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fastzoo.cli.app import (
    Json,
    print_json,
)


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
    from fastzoo.core.processes import obeying_signals
    from fastzoo.publish.candidates import candidates
    from fastzoo.publish.namespace import find_space
    from fastzoo.publish.push import push
    from fastzoo.publish.report import Options

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
