"""Which SAEs the page offers: those it is told, else what is on this machine, else what can be had."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from results import namespace

from fastzoo.config.recipe import EMBEDDED_MODEL
from fastzoo.core.errors import FastzooError, InputError
from fastzoo.core.files import read_json, resource
from fastzoo.core.paths import path_of
from fastzoo.core.values import text_at
from fastzoo.hub.find import RUNS, local_results, locate
from fastzoo.hub.registry import read_registry
from fastzoo.publish.space import SAES
from fastzoo.steering.measured import FILE, keep_latent, open_to_keep
from fastzoo.steering.run import run_steer
from fastzoo.steering.settings import SteerSettings

REAL = "smollm2-135m"
"""The model that a CPU has answers of in seconds: its SAEs are offered where they are published."""

TRAINED = ["layers=[2]", "architectures=[jumprelu]"]
"""Of the toy's recipe, where there is nothing else."""

TITLE = "French"
MEASURED: dict[str, Any] = {"auto": True, "language": "fr", "max_new_tokens": 40}
"""What the toy's latent is to do."""


def find_saes(wanted: Sequence[str]) -> dict[str, str]:
    """SAEs by name, in the order in which they are offered, and where each is. Raises FastzooError: one is not there,
    or two have one name."""
    pushed = Path(__file__).with_name(SAES)
    if not wanted and pushed.is_file():
        wanted = pushed.read_text(encoding="utf-8").splitlines()
    return _given(wanted) if wanted else _on_this_machine() or _published() or _toy()


def _given(wanted: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in wanted:
        inside = [] if source.startswith("hf:") else local_results(path_of(source, "the SAE"))
        for name, path in [(str(n), str(p)) for n, p in inside] or [(_name(source), source)]:
            if found.setdefault(name, path) != path:
                raise InputError(f"{name} is given twice: '{found[name]}' and '{path}'")
    return found


def _name(source: str) -> str:
    folder = locate(source)
    for record in (folder / "config.json", folder.parent / "config.json"):
        if record.is_file() and (name := text_at(read_json(record), "name")):
            return name
    return folder.name


def _on_this_machine() -> dict[str, str]:
    """The SAEs of runs here: real models before the toy, and with measured latents before others."""
    found = [(str(name), path) for folder in (Path("."), RUNS) for name, path in local_results(folder)]
    order = {
        (_is_toy(path), not (path / FILE).is_file(), "jumprelu" not in name, name): (name, str(path))
        for name, path in found
    }
    return dict(order[key] for key in sorted(order))


def _is_toy(path: Path) -> bool:
    try:
        return text_at(read_json(path / "config.json"), "base_model", "name") == EMBEDDED_MODEL
    except InputError:
        return False


def _published() -> dict[str, str]:
    """SAEs of a small real model in the zoo's namespace; nothing where the Hub does not answer."""
    try:
        saes = read_registry(namespace()).saes
    except FastzooError as error:
        print(f"the Hub is left out: {error}", file=sys.stderr)
        return {}
    return {str(name): f"hf:{sae.repo_id}" for name, sae in saes.items() if name.model == REAL}


def _toy() -> dict[str, str]:
    """An SAE of the embedded model, trained now, with a latent that is found and measured: about two minutes."""
    print("no SAE here: one of the embedded toy model is trained, which takes two minutes", file=sys.stderr)
    script = runpy.run_path(str(resource("recipes") / "train.py"), run_name="fastzoo_recipe")
    with redirect_stdout(sys.stderr):
        script["main"](TRAINED)
    for source in _on_this_machine().values():
        outcome = run_steer(SteerSettings(source=source, **MEASURED))
        keep_latent(open_to_keep(source, TITLE), TITLE, outcome)
    return _on_this_machine()
