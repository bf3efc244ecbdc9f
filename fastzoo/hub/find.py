"""The folder of an SAE: on this machine, among what was pulled, or fetched from the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from fastzoo.core.errors import InputError, NotFoundError
from fastzoo.core.paths import path_of
from fastzoo.core.text import one_line
from fastzoo.saes.layouts import refuse_pickle
from fastzoo.saes.names import SAEName, parse_name

RUNS = Path("runs")


def local_results(folder: Path) -> list[tuple[SAEName, Path]]:
    """Complete SAE folders at, in, or one level below ``folder``, by name."""
    found: dict[Path, SAEName] = {}
    if not os.path.isdir(folder):  # unlike glob, false for a name that is too long
        return []
    for pattern in ("metrics.json", "*/metrics.json", "*/*/metrics.json"):
        for path in folder.glob(pattern):
            try:
                found[path.parent] = parse_name(path.parent.resolve().name)
            except (InputError, OSError, RuntimeError):
                continue  # a folder of something else, or a link to itself
    return sorted((name, path) for path, name in found.items())


def find_local(source: str) -> Path | None:
    """The folder of an SAE given by folder, ``hf:`` reference or name; None for a name not here.

    A name is looked for in the current folder and in ``runs/``, then among what was pulled, without
    any request. An ``hf:`` reference is fetched.

    Raises InputError, HubError: the folder or reference does not exist, or its files are damaged.
    """
    from fastzoo.hub.pull import fetch_to_load, find_pulled

    if source.startswith("hf:"):
        return fetch_to_load(source)
    return on_disk(source) or find_pulled(parse_name(source))


def locate(source: str) -> Path:
    """As ``find_local``, but a name without a local folder is fetched as it is published now."""
    from fastzoo.hub.pull import fetch_to_load

    if source.startswith("hf:"):
        return fetch_to_load(source)
    try:
        return on_disk(source) or fetch_to_load(source)
    except NotFoundError as error:
        raise NotFoundError(f"not on this machine (looked in . and runs/*/), and {error}") from None


def on_disk(source: str) -> Path | None:
    """The local folder that a path or name means; None for a name without one. Raises InputError."""
    if not source:
        return None
    path = path_of(source, "the SAE")
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        refuse_pickle(path)
        raise InputError(f"'{path}' is a file; give the folder that holds it")
    if "/" in source or "\\" in source:
        raise InputError(f"no folder '{one_line(path)}'; for a Hub repository write hf:org/repo")
    name = str(parse_name(source))
    candidates = (Path(name), *sorted(RUNS.glob(f"*/{name}")))
    return next((folder for folder in candidates if os.path.isdir(folder)), None)
