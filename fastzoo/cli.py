"""The command line: ``fastzoo list | info | pull | eval | train``.

Data goes to stdout, everything else to stderr. An expected failure is one line and an exit code
(see ``fastzoo.errors``). torch is loaded only by the commands that compute.
"""

from __future__ import annotations

import io
import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from fastzoo import __version__
from fastzoo.errors import InputError, one_line, report_failures

app = typer.Typer(
    name="fastzoo",
    help="Sparse autoencoders of instruct language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SOURCE_HELP = "A zoo name, a local folder, or hf:org/repo[/folder][@revision]."


def main() -> None:
    """Entry point: runs a command and turns expected failures into one line."""
    report_failures(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fastzoo {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Sparse autoencoders of instruct language models."""
    # A file's name need not be text: what cannot be printed is escaped, as JSON has it.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@app.command("list")
def list_saes(
    pattern: Annotated[str, typer.Argument(help="Wildcards, as in 'qwen2.5-*-jumprelu'.")] = "*",
    folder: Annotated[Path, typer.Option(help="Where to look for local SAEs.")] = Path("runs"),
    local: Annotated[bool, typer.Option("--local", help="Only SAEs on this machine.")] = False,
    as_json: Json = False,
) -> None:
    """SAEs on this machine, and the 240 of the paper's grid with the figures it reports."""
    from fastzoo.local import local_results, read_figures
    from fastzoo.zoo import paper_figures, zoo_names

    rows: list[dict[str, Any]] = []
    for name, path in local_results(folder):
        rows.append({"name": str(name), "status": "local", "path": str(path), **read_figures(path)})
    if not local:
        for name in zoo_names():
            paper = paper_figures()[name]
            rows.append({"name": str(name), "status": "paper", **vars(paper)})
    rows = [row for row in rows if fnmatchcase(row["name"].lower(), pattern.lower())]
    if as_json:
        _print_json(rows)
        return
    if not rows:
        where = f"in {folder}/" if local else f"in {folder}/ or the paper's grid"
        print(one_line(f"nothing {where} matches '{pattern}'"), file=sys.stderr)
        return
    width = max(len(row["name"]) for row in rows)
    print(f"{'name':<{width}}  {'status':<6}  {'L0':>7}  {'log2 MSE':>8}  {'log2 MSE special':>16}")
    for row in rows:
        cells = [_cell(row.get("l0"), 7, 1), _cell(row["log2_mse"], 8, 3)]
        cells.append(_cell(row["log2_mse_special"], 16, 3))
        print(f"{row['name']:<{width}}  {row['status']:<6}  {'  '.join(cells)}")
    print(
        "status local: measured here; paper: reported by arXiv 2506.07691, without an L0",
        file=sys.stderr,
    )


@app.command()
def info(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    as_json: Json = False,
) -> None:
    """What is known about one SAE: its record and figures, or its cell of the paper's grid."""
    from fastzoo.local import describe, find_local
    from fastzoo.names import parse_name
    from fastzoo.zoo import grid_row, paper_figures

    path = find_local(source)
    if path is not None:
        facts = describe(path)
    else:
        name = parse_name(source)
        row, paper = grid_row(name), paper_figures().get(name)
        if row is None or paper is None:
            raise InputError(
                f"{name} is neither on this machine (looked in . and runs/*/) nor in the paper's "
                "grid; 'fastzoo list' shows what is"
            )
        facts = {
            "name": str(name),
            "status": "in the paper's grid, not on this machine",
            "base_model": row.base_model,
            "architecture": name.architecture,
            "method": name.method,
            "layer": name.layer,
            "d_in": row.d_model,
            "d_sae": row.d_model * name.expansion,
            "paper_log2_mse": paper.log2_mse,
            "paper_log2_mse_special": paper.log2_mse_special,
        }
    if as_json:
        _print_json(facts)
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:<{width}}  {'—' if value is None else one_line(value, 4096)}")


@app.command()
def pull(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="A zoo name, a wildcard over the published ones, hf:org/repo[/folder][@revision], or "
            "hf:collections/<namespace>/<slug>."
        ),
    ],
    local_dir: Annotated[
        Path | None, typer.Option(help="Where to put them, instead of in the Hub's cache.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit, instead of the published one.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="Whose SAEs names mean (default: fastzoo).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch SAEs from the Hub, verify every file, and print the folder of each."""
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
        _print_json(rows)
    for row in [] if as_json else rows:
        if not dry_run:
            print(row["path"])
            continue
        print(f"{row['name']}  {row['repo']}@{row['revision'][:12]}  {in_words(row['bytes'])}")
        for file in row["files"]:
            state = "here" if file["here"] else "to fetch"
            print(f"  {file['path']}  {in_words(file['size'])}  {state}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        raise typer.Exit(failures[0].exit_code)


@app.command("eval")
def evaluate_saes(
    sources: Annotated[list[str], typer.Argument(help=SOURCE_HELP)],
    data: Annotated[
        str, typer.Option(help="Dialogues: 'embedded', a file, or a Hub dataset id.")
    ] = "embedded",
    dialogues: Annotated[int, typer.Option(min=1, help="How many dialogues.")] = 200,
    model: Annotated[
        str | None, typer.Option(help="The language model, where the SAE does not say.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the model.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Truncate dialogues (default: 8192 or the context).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure SAEs of one language model on held-out dialogues, all in one pass."""
    from fastzoo.local import evaluate_sources
    from fastzoo.results import print_results

    rows, report = evaluate_sources(
        sources,
        model_name=model,
        revision=revision,
        data=data,
        dialogues=dialogues,
        max_tokens=max_tokens,
    )
    if as_json:
        _print_json(report)
    else:
        print_results(rows)


@app.command(context_settings={"ignore_unknown_options": True})
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="[RECIPE.yaml] [key=value ...] [--fresh]", show_default=False),
    ] = None,
) -> None:
    """Run a recipe in this process, or go on with it; for several: accelerate launch recipes/train.py."""
    import runpy

    from fastzoo.config import recipes_folder

    script = runpy.run_path(str(recipes_folder() / "train.py"), run_name="fastzoo_recipe")
    script["main"](arguments or [])


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'—' if value is None else format(value, f'.{digits}f'):>{width}}"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


if __name__ == "__main__":
    main()
