"""The command line: ``fastzoo list | info | pull | push | eval | features | steer | train``.

Data goes to stdout, everything else to stderr. An expected failure is one line and an exit code
(see ``fastzoo.errors``). torch is loaded only by the commands that compute.
"""

from __future__ import annotations

import sys

from fastzoo import (
    cli_hub,
    cli_models,
)
from fastzoo.cli_app import app, complete_names
from fastzoo.errors import report_failures

__all__ = ["app", "cli_hub", "cli_models", "complete_names", "main"]


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


if __name__ == "__main__":
    main()
