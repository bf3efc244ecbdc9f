"""``fastzoo data build`` and ``fastzoo data push``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fastzoo.cli.app import Json, print_json
from fastzoo.core.paths import path_of


def build(
    arguments: Annotated[
        list[str], typer.Argument(metavar="CONFIG.yaml [key=value ...]", help="What to build.")
    ],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first rows of each source, for a trial.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="So many rows of each source, drawn by the seed.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that read sources.")] = 1,
    memory: Annotated[
        float | None, typer.Option(min=0.001, help="GB that deduplication may take (default: what is free).")
    ] = None,
    skip_unavailable: Annotated[
        bool, typer.Option("--skip-unavailable", help="Go on without sources that cannot be had.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; an older result is moved aside.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read, normalise, deduplicate, split and write a data set.

    The same command goes on where one was interrupted. CONFIG.yaml is a file, or one that comes with fastzoo
    (recipes/data/).
    """
    from fastzoo.config.data_build import load_build
    from fastzoo.core.signals import obeying_signals
    from fastzoo.results.data_set import build_data

    overrides = [f"{key}={value}" for key, value in (("limit", limit), ("sample", sample)) if value]
    config = load_build(path_of(arguments[0], "CONFIG"), [*arguments[1:], *overrides])
    with obeying_signals():
        built = build_data(
            config,
            workers=workers,
            skip_unavailable=skip_unavailable,
            fresh=fresh,
            memory=None if memory is None else int(memory * 1e9),
            say=_say,
        )
    if as_json:
        print_json(built.manifest)
        return
    print_summary(built.manifest)
    print(built.folder)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def print_summary(manifest: dict[str, Any]) -> None:
    """What became of the rows, on stderr."""
    for source in manifest["sources"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in source["skipped"].items())
        mended = ", ".join(f"{n} {what}" for what, n in source["repaired"].items())
        line = f"{source['source']}: {source['rows']} rows, {source['usable']} usable, {source['kept']} kept"
        _say(line + (f"; not used: {reasons}" if reasons else "") + (f"; mended: {mended}" if mended else ""))
    if found := manifest["deduplication"]:
        by_chance = f"{found['expected_false_drops']:.2g} expected by chance"
        _say(f"deduplicated: {found['kept']} of {found['in']} kept, {found['dropped']} dropped ({by_chance})")
    if apart := manifest["kept_apart"]:
        _say(
            f"left out of training for the held-out sets: {apart['identical']} identical, {apart['sharing']} sharing"
        )
    splits = ", ".join(f"{name} {split['rows']}" for name, split in manifest["splits"].items())
    _say(f"splits: {splits}; hash {manifest['hash'][:16]}")


def push(
    folder: Annotated[Path, typer.Argument(help="Of a data set that was built.")],
    namespace: Annotated[
        str, typer.Option(metavar="NAME", help="Hub user or organisation to publish under.")
    ],
    private: Annotated[bool, typer.Option("--private", help="If it is made now, make it private.")] = False,
) -> None:
    """Publish a data set with its card and manifest.

    The same command goes on where one was interrupted; sources' licences hold for what is published.
    """
    from fastzoo.core.signals import obeying_signals
    from fastzoo.data.build.manifest import open_built
    from fastzoo.publish.data_set import push_data

    with obeying_signals():
        repo_id, remote, changed = push_data(
            open_built(path_of(folder, "FOLDER")), namespace, private=private
        )
    print(f"{repo_id}@{remote.sha}" if changed else f"{repo_id}@{remote.sha} (unchanged)")
