"""What a run's own recipe, beside its SAEs' folders, remembers: where its model and data lie on this machine.

It is never published. Records and cards, which are, have the last parts of such paths only (``public_name``).
"""

from __future__ import annotations

import os
from pathlib import Path

from fastzoo.config.recipe import EMBEDDED_DATA, EMBEDDED_MODEL
from fastzoo.core.errors import InputError
from fastzoo.core.paths import path_of
from fastzoo.core.strict_yaml import read_yaml
from fastzoo.core.values import value_at

RUN_RECIPE = "recipe.yaml"


def public_name(source: str) -> str:
    """A model or data source as others may see it: a local path shows its last part only."""
    if source in (EMBEDDED_MODEL, EMBEDDED_DATA):
        return source
    return Path(source).name if os.path.exists(path_of(source, "source")) else source


def remembered_path(run_folder: Path, public: str, section: str, key: str) -> Path | None:
    """The path, there or gone, of what the records of a run call ``public``, by ``section.key`` of its recipe.

    None: there is no such recipe, or it names something else, or no path.
    """
    try:
        recipe = read_yaml((run_folder / RUN_RECIPE).read_text(encoding="utf-8"), RUN_RECIPE)
    except (OSError, ValueError, InputError):
        return None
    written = value_at(recipe, section, key)
    if not isinstance(written, str) or written in (EMBEDDED_MODEL, EMBEDDED_DATA):
        return None
    output = value_at(recipe, "output", "folder")
    try:
        path = path_of(written, key)
        below = path_of(output, "folder") if isinstance(output, str) else Path("runs", run_folder.name)
    except InputError:
        return None
    if path.name != public:
        return None
    # A relative path began where the run was started, which the place of its folder tells.
    above = run_folder.resolve().parents
    if below.is_absolute() or ".." in below.parts or len(below.parts) > len(above):
        return path
    from_start = above[len(below.parts) - 1] / path
    return from_start if os.path.exists(from_start) or not os.path.exists(path) else path
