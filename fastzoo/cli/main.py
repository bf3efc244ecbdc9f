"""The command line: ``fastzoo list | info | pull | push | eval | features | steer | train``.

Data goes to stdout, everything else to stderr. An expected failure is one line and an exit code
(see ``fastzoo.core.errors``). torch is loaded only by the commands that compute.
"""

from __future__ import annotations

import sys

from fastzoo.cli.app import app
from fastzoo.cli.browse import info, list_saes
from fastzoo.cli.evaluate import evaluate_saes
from fastzoo.cli.features import find_features
from fastzoo.cli.pull import pull
from fastzoo.cli.push import push_saes
from fastzoo.cli.steer import steer_sae
from fastzoo.cli.train import train
from fastzoo.core.exit import report_failures

# in the order of the help
app.command("list")(list_saes)
app.command("info")(info)
app.command("pull")(pull)
app.command("push")(push_saes)
app.command("eval")(evaluate_saes)
app.command("features")(find_features)
app.command("steer")(steer_sae)
app.command("train", context_settings={"ignore_unknown_options": True})(train)


def main() -> None:
    """The command ``fastzoo``."""
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
