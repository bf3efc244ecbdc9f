"""What is typed on the command line, put as typer wants it."""

from __future__ import annotations


def debug_first(arguments: list[str]) -> list[str]:
    """The arguments with a ``--debug`` from anywhere on the line at its start."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = [word for word in arguments[:end] if word != "--debug"] + arguments[end:]
    return ["--debug", *rest] if len(rest) < len(arguments) else rest


def spread(arguments: list[str]) -> list[str]:
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
