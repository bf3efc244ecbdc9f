"""SAEs on this machine: find them, describe them, evaluate them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastzoo.errors import InputError, NotFoundError, one_line
from fastzoo.files import read_json
from fastzoo.hub import PICKLES
from fastzoo.names import SAEName, parse_name

if TYPE_CHECKING:
    from fastzoo.formats import LoadedSAE

RUNS = Path("runs")


def local_results(folder: Path) -> list[tuple[SAEName, Path]]:
    """Complete SAE folders at, in, or one level below ``folder``, by name."""
    found: dict[Path, SAEName] = {}
    for pattern in ("metrics.json", "*/metrics.json", "*/*/metrics.json"):
        for path in folder.glob(pattern):
            try:
                found[path.parent] = parse_name(path.parent.resolve().name)
            except (InputError, OSError, RuntimeError):
                continue  # a folder of something else, or a link to itself
    return sorted(((name, path) for path, name in found.items()), key=lambda x: (x[0], x[1]))


def find_local(source: str) -> Path | None:
    """The folder of an SAE given by folder, ``hf:`` reference or name; None for a name not here.

    A name is looked for in the current folder and in ``runs/``, then among what was pulled, without
    any request. What an ``hf:`` reference names is fetched.

    Raises:
        InputError, HubError: a folder or reference that is not there, or files that were damaged.
    """
    from fastzoo.pulling import fetch_to_load, find_pulled

    if source.startswith("hf:"):
        return fetch_to_load(source)
    return _on_disk(source) or find_pulled(parse_name(source))


def locate(source: str) -> Path:
    """As ``find_local``, but a name that is not in a local folder is fetched, as it is published now.

    Raises:
        InputError, HubError.
    """
    from fastzoo.pulling import fetch_to_load

    if source.startswith("hf:"):
        return fetch_to_load(source)
    if (folder := _on_disk(source)) is not None:
        return folder
    try:
        return fetch_to_load(source)
    except NotFoundError as error:
        raise NotFoundError(f"not on this machine (looked in . and runs/*/), and {error}") from None


def _on_disk(source: str) -> Path | None:
    """The local folder that a path or name means; None for a name without one."""
    # os.path, unlike Path, takes what can be no path (too long, ~nobody) for one that is not there.
    path = source if "\0" in source else os.path.expanduser(source)
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        refuse_pickle(Path(path))
        raise InputError(f"'{path}' is a file; give the folder that holds it")
    if "/" in source or "\\" in source:
        raise InputError(f"no folder '{one_line(path)}'; for a Hub repository write hf:org/repo")
    name = str(parse_name(source))
    candidates = (Path(name), *sorted(RUNS.glob(f"*/{name}")))
    return next((folder for folder in candidates if os.path.isdir(folder)), None)


def refuse_pickle(path: Path) -> None:
    """Raise InputError if ``path`` is named as a pickle."""
    if path.suffix in PICKLES:
        raise InputError(
            f"'{path}' is a pickle, which can run code when loaded, and is refused; convert it to "
            "safetensors where you trust it"
        )


def _at(value: Any, *keys: str) -> Any:
    """What a JSON value holds at ``keys``; None where that is nothing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def text_at(value: Any, *keys: str) -> str | None:
    """The text that a JSON value holds at ``keys``, in one line; None where there is none."""
    found = _at(value, *keys)
    return one_line(found) if isinstance(found, str) else None


def number_at(value: Any, *keys: str) -> float | None:
    """The finite number that a JSON value holds at ``keys``; None where there is none."""
    found = _at(value, *keys)
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    try:
        return found if math.isfinite(found) else None
    except OverflowError:  # an integer beyond every float
        return None


def _special_tokens(record: dict[str, Any]) -> str:
    """Those of the dialogues that an SAE was measured on."""
    tokens = _at(record, "special_tokens")
    found = tokens.values() if isinstance(tokens, dict) else ()
    return " ".join(one_line(token) for token in found) or "none"


def _metrics(folder: Path) -> dict[str, Any]:
    """A folder's ``metrics.json``; {} where there is none that can be read."""
    try:
        return read_json(folder / "metrics.json")
    except InputError:
        return {}


def describe(folder: Path) -> dict[str, Any]:
    """Facts of a local SAE, flat and in reading order; the weights are opened and checked."""
    from fastzoo.formats import open_sae
    from fastzoo.metrics import DEFINITIONS, SUBSETS

    loaded = open_sae(folder)
    facts: dict[str, Any] = {
        "name": name_of(loaded),
        "path": str(loaded.folder),
        "layout": loaded.layout,
        "architecture": loaded.sae.architecture,
        "layer": loaded.layer,
        "d_in": loaded.sae.d_in,
        "d_sae": loaded.sae.d_sae,
    }
    record = loaded.record
    if not record:
        return facts | {"base_model": loaded.model_name}
    training = _at(record, "recipe", "training")
    facts |= {
        "method": text_at(record, "sae", "method"),
        "base_model": text_at(record, "base_model", "name"),
        "base_model_sha": text_at(record, "base_model", "sha"),
        "training_data": text_at(record, "training_data", "name"),
        "preset": text_at(record, "recipe", "preset"),
        "training_tokens": number_at(training, "tokens"),
        "special_tokens": _special_tokens(record),
        "sparsity_coefficient": number_at(
            training, "sparsity_coefficient", loaded.sae.architecture
        ),
    }
    figures = _metrics(loaded.folder.parent)
    for metric in DEFINITIONS:
        for subset in SUBSETS:
            if _at(figures, "metrics", metric, subset):
                suffix = "" if subset == "all" else f"_{subset}"
                facts[f"{metric}{suffix}"] = number_at(figures, "metrics", metric, subset, "value")
    for key in ("log2_mse", "log2_mse_special"):
        if _at(figures, "paper", key) is not None:
            facts[f"paper_{key}"] = number_at(figures, "paper", key)
    return facts


def name_of(loaded: LoadedSAE) -> str:
    """What its record calls an SAE, else its folder."""
    return text_at(loaded.record, "name") or one_line(loaded.folder.name)


def evaluate_sources(
    sources: Sequence[str],
    *,
    model_name: str | None,
    revision: str | None,
    data: str,
    dialogues: int,
    max_tokens: int | None,
) -> tuple[list[tuple[str, dict[str, Any], None]], dict[str, Any]]:
    """Measure SAEs of one model on dialogues.

    Returns:
        Rows for ``results.print_results``, and a report as ``metrics.json`` has it, for all SAEs.

    Raises:
        InputError: SAEs of different models, or of a model that is not said.
    """
    from fastzoo.assembly import assemble
    from fastzoo.evaluate import evaluate
    from fastzoo.metrics import DEFINITIONS
    from fastzoo.progress import Progress
    from fastzoo.special_latents import SpecialTokens

    together = assemble(
        sources, model_name=model_name, revision=revision, data=data, max_tokens=max_tokens
    )
    sequences, split = together.dialogues(dialogues)
    special = SpecialTokens.of(together.chat)
    reader = together.reader
    with Progress("evaluating", split["tokens"]) as bar:
        found = evaluate(
            reader, together.saes, sequences, special, lambda n: bar.advance(n, "tokens")
        )
    figures = {name: evaluation.metrics for name, evaluation in found.items()}
    report = {
        "base_model": together.base_model,
        "split": split,
        "definitions": DEFINITIONS,
        "metrics": figures,
        "special_latents": {name: e.special_latents for name, e in found.items()},
    }
    return [(name, figures[name], None) for name in figures], report
