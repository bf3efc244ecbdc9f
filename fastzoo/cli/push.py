"""``fastzoo push``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fastzoo.cli.app import Json, print_json


def push_saes(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Folders of SAEs or of runs, or names of local SAEs."),
    ],
    namespace: Annotated[
        str, typer.Option(metavar="NAME", help="Hub user or organisation to publish under.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make private repositories.")] = False,
    public_at_end: Annotated[
        bool, typer.Option("--public-at-end", help="Private, then public once everything is there.")
    ] = False,
    collection: Annotated[
        bool, typer.Option(help="Also bring the collection and the results dataset up to date.")
    ] = True,
    space: Annotated[
        str | None, typer.Option(help="Publish a Gradio Space with them: 'steering', or a folder.")
    ] = None,
    overwrite_cards: Annotated[
        bool, typer.Option("--overwrite-cards", help="Drop what was written into cards on the Hub.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent.")] = False,
    as_json: Json = False,
) -> None:
    """Publish SAEs with cards and figures.

    The same command goes on where one was interrupted.
    """
    from fastzoo.core.signals import obeying_signals
    from fastzoo.publish.candidates import candidates
    from fastzoo.publish.push import push
    from fastzoo.publish.report import PushOptions, say
    from fastzoo.publish.space import find_space

    options = PushOptions(
        namespace=namespace,
        private=private,
        public_at_end=public_at_end,
        collection=collection,
        space=None if space is None else find_space(space),
        overwrite_cards=overwrite_cards,
    )
    saes = candidates(sources)
    if dry_run:
        _print_plan([{**sae.facts(), "repo_id": f"{namespace}/{sae.name}"} for sae in saes], as_json)
        return
    with obeying_signals():
        report = push(saes, options)
    if as_json:
        print_json(report.to_value())
    else:
        for entry in report.saes.values():
            if "repo_id" in entry:
                print(entry["repo_id"])
        say(report.summary())
    if report.first_error is not None:
        raise report.first_error


def _print_plan(plan: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    for row in plan:
        size = f"{len(row['files'])} files, {row['bytes'] / 1e6:.1f} MB"
        print(f"{row['folder']} -> {row['repo_id']}  ({size})")
