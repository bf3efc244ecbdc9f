"""What ``fastzoo info`` knows of one SAE: its files, what is published of it, and the paper's figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastzoo.core.errors import InputError
from fastzoo.core.files import sha256_of
from fastzoo.core.text import did_you_mean, one_line
from fastzoo.core.values import number_at, text_at, value_at
from fastzoo.hub.find import find_local
from fastzoo.hub.registry import Registry
from fastzoo.results.table import local_row, measured, paper_cells
from fastzoo.saes.names import SAEName, grid_row, parse_name, zoo_names
from fastzoo.saes.paper import paper_figures


def facts_of(source: str, registry: Callable[[], Registry]) -> dict[str, Any]:
    """What is known of one SAE, flat and in reading order: its record and figures if it is on this
    machine, what is published of it, and what the paper reports.

    ``registry`` is called unless ``source`` is an ``hf:`` reference or a folder of any other name.
    Raises InputError: nothing is known of it.
    """
    path = find_local(source)
    if path is None:
        return _remote_facts(parse_name(source), registry())
    facts = _local_facts(path)
    try:
        name = parse_name(str(facts["name"]))
    except InputError:
        return facts
    if not source.startswith("hf:"):
        known = registry()
        facts |= _published_facts(name, known, Path(facts["path"]))
        facts["status"] = "both" if name in known.saes else "local"
    return facts | _paper_facts(name)


def _local_facts(folder: Path) -> dict[str, Any]:
    """What the files of an SAE say; the weights are opened and checked."""
    from fastzoo.loading import name_of, open_sae

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
    tokens = value_at(record, "special_tokens")
    special = [one_line(token) for token in tokens.values()] if isinstance(tokens, dict) else []
    coefficients = value_at(record, "recipe", "training", "sparsity_coefficient")
    facts |= {
        "method": text_at(record, "sae", "method"),
        "special_tokens": " ".join(special) or "none",
        "sparsity_coefficient": number_at(coefficients, str(text_at(record, "sae", "architecture"))),
    }
    cells = local_row(loaded.folder.parent)
    return {**facts, **cells, "d_in": facts["d_in"], "d_sae": facts["d_sae"]}


def _remote_facts(name: SAEName, registry: Registry) -> dict[str, Any]:
    """What is known of an SAE that is not on this machine."""
    found, paper = _published_facts(name, registry, None), _paper_facts(name)
    if not found and not paper:
        hint = did_you_mean(str(name), map(str, {*zoo_names(), *registry.saes}), 1)
        raise InputError(
            f"{name} is neither on this machine (looked in . and runs/*/), nor published by "
            f"{registry.namespace}, nor in the paper's grid; 'fastzoo list' shows what is.{hint}"
        )
    facts: dict[str, Any] = {
        "name": str(name),
        "status": "published" if found else "paper",
        "architecture": name.architecture,
        "method": name.method,
        "layer": name.layer,
    }
    if row := grid_row(name):
        facts |= {"base_model": row.base_model, "d_in": row.d_model, "d_sae": row.d_model * name.expansion}
    return facts | found | paper


def _published_facts(name: SAEName, registry: Registry, folder: Path | None) -> dict[str, Any]:
    """What is published of one SAE; {} if nothing is.

    Weights in ``folder`` on this machine are compared, and the published figures then get keys of their own.
    """
    sae = registry.saes.get(name)
    if sae is None:
        return {}
    facts: dict[str, Any] = {
        "repo": sae.repo_id,
        "revision": sae.sha,
        "weights_sha256": sae.weights_sha256,
        "bytes": sum(facts.size for facts in sae.files.values()),
    }
    if folder is not None:
        weights = folder / "sae_weights.safetensors"
        facts["same_weights_here"] = weights.is_file() and sha256_of(weights) == sae.weights_sha256
    prefix = "" if folder is None else "published_"
    return facts | {prefix + key: value for key, value in measured(sae.figures).items() if value is not None}


def _paper_facts(name: SAEName) -> dict[str, Any]:
    return paper_cells(name) if name in paper_figures() else {}
