"""The command line: ``fastzoo list | info | pull | eval | features | steer | push | train``.

Data goes to stdout, everything else to stderr. An expected failure is one line and an exit code
(see ``fastzoo.errors``). torch is loaded only by the commands that compute.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastzoo import __version__
from fastzoo.errors import (
    DEBUG,
    EXIT_CODES,
    HubError,
    InputError,
    OutputError,
    one_line,
    report_failures,
)

if TYPE_CHECKING:
    from fastzoo.registry import Registry

SOURCE_HELP = "A zoo name, a local folder, or hf:org/repo[/folder][@revision]."

app = typer.Typer(
    name="fastzoo",
    help="Sparse autoencoders of instruct language models.",
    epilog="\b\nExit codes:\n" + "\n".join(f"  {n:>3}  {what}" for n, what in EXIT_CODES.items()),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point: runs a command and turns expected failures into one line."""
    report_failures(_run)


def _run() -> None:
    try:
        app(_spread(_debug_first(sys.argv[1:])), prog_name="fastzoo")
    except SystemExit as end:
        # Typer ends without a word what report_failures has one for.
        for ended in (end.__context__, getattr(end.__context__, "__cause__", None)):
            if isinstance(ended, KeyboardInterrupt | BrokenPipeError):
                raise ended from None
        raise


def _debug_first(arguments: list[str]) -> list[str]:
    """The arguments with a ``--debug`` from anywhere on the line at its start."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = [word for word in arguments[:end] if word != "--debug"] + arguments[end:]
    return ["--debug", *rest] if len(rest) < len(arguments) else rest


def _spread(arguments: list[str]) -> list[str]:
    """``--alpha 0 15 25`` as click wants it: the option before each of its numbers."""
    found: list[str] = []
    option = ""
    for i, word in enumerate(arguments):
        if option and _is_number(word):
            # With '=', since a number below zero begins like an option.
            found.append(f"{option}={word}")
            continue
        option = word if word in ("--alpha", "--latent") else ""
        if not option or not any(map(_is_number, arguments[i + 1 : i + 2])):
            found.append(word)
    return found


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fastzoo {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Print the traceback of any failure ({DEBUG}=1).")
    ] = False,
) -> None:
    """Sparse autoencoders of instruct language models."""
    if debug:
        os.environ[DEBUG] = "1"
    # A file's name need not be text, and not every terminal has UTF-8: the rest is escaped.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def complete_names(incomplete: str) -> list[str]:
    """SAE names that begin so, as shells ask for them."""
    from fastzoo.listing import known_names

    return [name for name in known_names() if name.lower().startswith(incomplete.lower())]


def _complete_values(key: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        from fastzoo.names import parse_name

        values = (str(getattr(parse_name(name), key)) for name in complete_names(""))
        return [value for value in dict.fromkeys(values) if value.startswith(incomplete)]

    return complete


def _complete_columns(incomplete: str) -> list[str]:
    from fastzoo.listing import KEYS

    return [key for key in KEYS if key.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP, autocompletion=complete_names)
]
Namespace = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Whose published SAEs (default: FASTZOO_NAMESPACE, else fastzoo)."
    ),
]
Refresh = Annotated[
    bool, typer.Option("--refresh", help="Ask the Hub even if it was asked within the hour.")
]


def _which(key: str, help: str) -> Any:
    return typer.Option(
        help=help, metavar=key.upper(), autocompletion=_complete_values(key), show_default=False
    )


Several = list[str] | None


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
    model: Annotated[Several, _which("model", "Of this language model (or its Hub id).")] = None,
    layer: Annotated[Several, _which("layer", "Of this layer.")] = None,
    architecture: Annotated[Several, _which("architecture", "Of this kind.")] = None,
    method: Annotated[Several, _which("method", "Trained by fast, bt-f or bt-p.")] = None,
    expansion: Annotated[Several, _which("expansion", "Of this width, as 8 or 8x.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="By any key of --json.", autocompletion=_complete_columns
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
        _print_json(rows)
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
        _print_json(facts)
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
        _print_json(rows)
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


@app.command("eval")
def evaluate_saes(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help=SOURCE_HELP, autocompletion=complete_names),
    ],
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
    """Measure SAEs of one language model, all in one pass."""
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


@app.command("features")
def find_features(
    sources: Annotated[list[str], typer.Argument(help=SOURCE_HELP, autocompletion=complete_names)],
    text: Annotated[
        str | None, typer.Option(help="What fires on each token of this user message.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="--text as it is, without the chat template.")
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(help="What fires most on this token: its text, or its id (any number)."),
    ] = None,
    latent: Annotated[
        list[int] | None,
        typer.Option(
            min=0, help="Where this latent fires, and what it writes; more than once: each."
        ),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="activation|output",
            help="The latents that fire most strongly, or that steering brings out most.",
        ),
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=1, help="For --rank output: how many, by activation, are tried.")
    ] = 256,
    alpha: Annotated[
        float, typer.Option(help="For --rank output: steering strength, in mean residual norms.")
    ] = 1.0,
    top: Annotated[int, typer.Option(min=1, help="How many are shown.")] = 5,
    data: Annotated[
        str, typer.Option(help="Dialogues: 'embedded', a file, or a Hub dataset id.")
    ] = "embedded",
    dialogues: Annotated[int, typer.Option(min=1, help="How many dialogues, at most.")] = 1000,
    model: Annotated[
        str | None, typer.Option(help="The language model, where the SAE does not say.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the model.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Truncate dialogues (default: 8192 or the context).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Latents of SAEs of one language model: of special tokens (by default), or what is asked.

    For each special token the latents with the highest per-sample maximum, averaged over dialogues,
    as in arXiv 2506.07691, Appendix F.3.
    """
    asked = {"--text": text is not None, "--token": token is not None, "--rank": rank is not None}
    asked["--latent"] = bool(latent) and rank is None
    if sum(asked.values()) > 1:
        raise InputError(f"{' and '.join(k for k, v in asked.items() if v)} do not go together")
    if raw and text is None:
        raise InputError("--raw goes with --text")
    from fastzoo import feature_tables as tables
    from fastzoo import features, latent_reports
    from fastzoo.assembly import assemble

    saes = assemble(sources, model_name=model, revision=revision, data=data, max_tokens=max_tokens)
    if text is not None:
        report = features.of_text(saes, text, raw=raw, top=top)
        show = tables.print_text
    elif token is not None:
        report = features.of_token(saes, token, dialogues=dialogues, top=top)
        show = tables.print_tokens
    elif rank is not None:
        report = latent_reports.ranking(
            saes,
            rank,
            latents=latent or [],
            candidates=candidates,
            alpha=alpha,
            dialogues=dialogues,
            top=top,
        )
        show = tables.print_ranking
    elif latent:
        report = latent_reports.of_latents(saes, latent, dialogues=dialogues, top=top)
        show = tables.print_latents
    else:
        report = features.of_special_tokens(saes, dialogues=dialogues, top=top)
        show = tables.print_tokens
    if as_json:
        _print_json(report)
    else:
        show(report)


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
            _print_json(rows)
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
        _print_json(report.to_value())
    else:
        for entry in report.saes.values():
            if "repo_id" in entry:
                print(entry["repo_id"])
        print(report.summary(), file=sys.stderr)
    if report.first_error is not None:
        raise report.first_error


@app.command("steer")
def steer_sae(
    source: Source,
    questions: Annotated[
        list[str] | None, typer.Argument(help="Questions; by default ten of fastzoo's own.")
    ] = None,
    latent: Annotated[
        list[int] | None, typer.Option(help="Latents to steer with, all at once.")
    ] = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(help="Strengths, several after one --alpha. By default those of the paper."),
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Find the latent (of those given, or of all) and window.")
    ] = False,
    units: Annotated[
        str | None,
        typer.Option(
            help="Of alpha: raw; max (the latent's mean maximum); norm (the residual stream's)."
        ),
    ] = None,
    mode: Annotated[str, typer.Option(help="add, clamp, scale or ablate.")] = "add",
    positions: Annotated[str, typer.Option(help="all, prompt or generated.")] = "all",
    file: Annotated[
        Path | None, typer.Option("--questions", help="Questions from .txt, .jsonl or .yaml.")
    ] = None,
    concept: Annotated[
        str | None, typer.Option(help="Words that the answer should turn to, by commas.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="A language that it should turn to, as in 'fr'.")
    ] = None,
    wish: Annotated[
        str | None, typer.Option(help="The same, said in the baseline's system prompt.")
    ] = None,
    control: Annotated[bool, typer.Option(help="Sweep a random direction beside it.")] = True,
    model: Annotated[
        str | None, typer.Option(help="The language model, where the SAE does not say.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the model.")] = None,
    data: Annotated[str, typer.Option(help="Dialogues that latents are measured on.")] = "embedded",
    dialogues: Annotated[int, typer.Option(min=1, help="How many of them.")] = 200,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling and the random direction.")] = 0,
    judge: Annotated[str | None, typer.Option(help="A chat model on the Hub that rates.")] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="Or a server, as http://127.0.0.1:8000/v1.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report as one HTML file.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write all answers and scores as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Steer the SAE's language model with latents, and find the alphas that change answers without degrading them."""
    from fastzoo.files import write_text
    from fastzoo.steer_report import write_report
    from fastzoo.steer_run import Ask
    from fastzoo.steer_run import steer_sae as run
    from fastzoo.steer_terminal import LiveAnswers, print_outcome
    from fastzoo.sweep import Settings

    outputs = [path for path in (html, save) if path is not None]
    for path in outputs:
        if path.is_dir() or not path.parent.is_dir():
            raise OutputError(f"'{path}' cannot be written: give a file in a folder that is there")
    ask = Ask(
        source,
        questions=questions or (),
        file=file,
        latents=latent or (),
        auto=auto,
        alphas=alpha or (),
        units=units,
        mode=mode,
        positions=positions,
        concept=[word.strip() for word in (concept or "").split(",") if word.strip()],
        language=language,
        wish=wish,
        control=control,
        model=model,
        revision=revision,
        data=data,
        dialogues=dialogues,
        judge=judge,
        judge_url=judge_url,
        settings=Settings(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed),
    )
    with LiveAnswers() as live:
        outcome = run(ask, live.watch)
    if save is not None:
        write_text(save, json.dumps(outcome.to_value(), ensure_ascii=False, allow_nan=False))
    if html is not None:
        write_report(outcome, html)
    for path in outputs:
        print(f"wrote {path}", file=sys.stderr)
    if as_json:
        _print_json(outcome.to_value())
    else:
        print_outcome(outcome)


@app.command(context_settings={"ignore_unknown_options": True})
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="[RECIPE.yaml] [key=value ...] [--fresh]", show_default=False),
    ] = None,
) -> None:
    """Run a recipe in this process, or go on with it.

    For several processes: accelerate launch recipes/train.py.
    """
    import runpy

    from fastzoo.config import recipes_folder

    script = runpy.run_path(str(recipes_folder() / "train.py"), run_name="fastzoo_recipe")
    script["main"](arguments or [])


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


def _print_json(value: Any) -> None:
    # Python's escapes of what an encoding has not are none of JSON's.
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, indent=2, ensure_ascii=ascii_only, allow_nan=False))


if __name__ == "__main__":
    main()
