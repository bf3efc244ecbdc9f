"""What all commands share: the application, its global options, and options that several take."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fastzoo.core.errors import EXIT_CODES
from fastzoo.core.exit import DEBUG
from fastzoo.core.paths import path_of
from fastzoo.core.version import __version__

SOURCE_HELP = "A zoo name, a local folder, or hf:org/repo[/folder][@revision]."

app = typer.Typer(
    name="fastzoo",
    epilog="\b\nExit codes:\n" + "\n".join(f"  {n:>3}  {what}" for n, what in EXIT_CODES.items()),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    # File names need not be valid text, and not every terminal has UTF-8: the rest is escaped.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def complete_names(incomplete: str) -> list[str]:
    """SAE names that begin with ``incomplete``, for shell completion."""
    from fastzoo.cli.listing import known_names

    return [name for name in known_names() if name.lower().startswith(incomplete.lower())]


def _complete_values(key: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        from fastzoo.saes.names import parse_name

        values = (str(getattr(parse_name(name), key)) for name in complete_names(""))
        return [value for value in dict.fromkeys(values) if value.startswith(incomplete)]

    return complete


def complete_columns(incomplete: str) -> list[str]:
    from fastzoo.cli.listing import KEYS

    return [key for key in KEYS if key.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Source = Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP, autocompletion=complete_names)]
Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCE", help=SOURCE_HELP, autocompletion=complete_names)
]
ModelName = Annotated[
    str | None, typer.Option(metavar="MODEL", help="The language model, where the SAE does not say.")
]
Revision = Annotated[str | None, typer.Option(metavar="REVISION", help="Revision of the model.")]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Dialogues: a file, a Hub dataset id, or 'embedded' (default: those held out from the training).",
    ),
]
MaxTokens = Annotated[
    int | None, typer.Option(min=2, help="Truncate dialogues (default: as in training, or the context).")
]
Namespace = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Whose published SAEs (default: FASTZOO_NAMESPACE, else fastzoo)."),
]
Refresh = Annotated[bool, typer.Option("--refresh", help="Ask the Hub even if it was asked within the hour.")]
Several = list[str] | None


def which(key: str, help: str) -> Any:
    return typer.Option(
        help=help, metavar=key.upper(), autocompletion=_complete_values(key), show_default=False
    )


def path_option(name: str, help: str, metavar: str = "FILE") -> Any:
    """An option whose text becomes a path."""
    return typer.Option(name, parser=lambda text: path_of(text, name), help=help, metavar=metavar)


def print_json(value: Any) -> None:
    # In other encodings Python would write backslash escapes, which are not valid JSON.
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, indent=2, ensure_ascii=ascii_only, allow_nan=False))


def print_hints(hints: list[str]) -> None:
    """Print to stderr after the data, or not at all if nobody reads the data (`fastzoo list | head`)."""
    sys.stdout.flush()
    for line in hints:
        print(line, file=sys.stderr)
