"""SAEs on this machine: find them, describe them, evaluate them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastzoo.errors import InputError, ModelError, one_line
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
            except InputError:
                continue  # a folder of something else
    return sorted(((name, path) for path, name in found.items()), key=lambda x: (x[0], x[1]))


def find_local(source: str) -> Path | None:
    """The folder of an SAE given by folder, ``hf:`` reference or name; None for a name not here.

    Raises:
        InputError, HubError: a folder or reference that is not there.
    """
    if source.startswith("hf:"):
        from fastzoo.hub import fetch_sae, parse_reference

        return fetch_sae(parse_reference(source))
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        refuse_pickle(path)
        raise InputError(f"'{path}' is a file; give the folder that holds it")
    if "/" in source or "\\" in source:
        raise InputError(f"no folder '{path}'; for a Hub repository write hf:org/repo")
    name = str(parse_name(source))
    candidates = (Path(name), *sorted(RUNS.glob(f"*/{name}")))
    return next((folder for folder in candidates if folder.is_dir()), None)


def refuse_pickle(path: Path) -> None:
    """Raise InputError if ``path`` is named as a pickle."""
    if path.suffix in PICKLES:
        raise InputError(
            f"'{path}' is a pickle, which can run code when loaded, and is refused; convert it to "
            "safetensors where you trust it"
        )


def read_figures(folder: Path) -> dict[str, Any]:
    """L0 and log2 MSE of a folder's ``metrics.json``; None where it has none."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]
        return {
            "l0": metrics["l0"]["all"]["value"],
            "log2_mse": metrics["log2_mse"]["all"]["value"],
            "log2_mse_special": metrics["log2_mse"]["special"]["value"],
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {"l0": None, "log2_mse": None, "log2_mse_special": None}


def describe(folder: Path) -> dict[str, Any]:
    """Facts of a local SAE, flat and in reading order; the weights are opened and checked."""
    from fastzoo.formats import open_sae

    loaded = open_sae(folder)
    facts: dict[str, Any] = {
        "name": _name(loaded),
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
    training = record["recipe"]["training"]
    facts |= {
        "method": record["sae"]["method"],
        "base_model": record["base_model"]["name"],
        "base_model_sha": record["base_model"]["sha"],
        "training_data": record["training_data"]["name"],
        "preset": record["recipe"]["preset"],
        "training_tokens": training["tokens"],
        "special_tokens": " ".join(map(str, record["special_tokens"].values())) or "none",
        "sparsity_coefficient": training["sparsity_coefficient"][loaded.sae.architecture],
    }
    try:
        figures = json.loads((loaded.folder.parent / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return facts
    for metric, subsets in figures["metrics"].items():
        for subset, figure in subsets.items():
            suffix = "" if subset == "all" else f"_{subset}"
            facts[f"{metric}{suffix}"] = figure["value"]
    if figures["paper"]:
        facts |= {f"paper_{key}": value for key, value in figures["paper"].items()}
    return facts


def _name(loaded: LoadedSAE) -> str:
    return str(loaded.record.get("name") or loaded.folder.name)


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
    import torch

    from fastzoo.activations import ResidualReader
    from fastzoo.config import EMBEDDED_DATA, DataSection, ModelSection
    from fastzoo.evaluate import evaluate
    from fastzoo.formats import open_sae
    from fastzoo.metrics import DEFINITIONS
    from fastzoo.models import find_model, load_model, load_tokenizer
    from fastzoo.progress import Progress
    from fastzoo.sources import held_out_embedded, open_rows
    from fastzoo.streams import ChatTokenizer, described, held_out_sequences

    loaded = [open_sae(source) for source in sources]
    names = [_name(x) for x in loaded]
    if len(set(names)) < len(names):
        names = list(sources)  # as given, since their own names do not tell them apart
    if len(set(names)) < len(names):
        raise InputError("the same SAE is given twice")
    said = {name for x in loaded if (name := _model_of(x))}
    model_name = model_name or _only(said)
    section = ModelSection(name=model_name, revision=revision)
    try:
        source = find_model(section)
    except ModelError as error:
        if section.name in said:
            raise ModelError(f"{error}; say where the SAE's model is with --model") from None
        raise
    for name, x in zip(names, loaded, strict=True):
        if x.layer is None:
            raise InputError(f"{name}: its files do not say which layer it belongs to")
        trained_on = x.record.get("base_model", {}).get("sha")
        if trained_on and source.sha and trained_on != source.sha:
            print(
                f"warning: {name} was trained on another version of the model ({trained_on[:19]}...)",
                file=sys.stderr,
            )
    limit = max_tokens or min(8192, source.max_positions or 8192)
    chat = ChatTokenizer(
        load_tokenizer(source),
        DataSection(source=data, max_tokens=limit, shuffle=False),
        model_name,
        source.embeddings,
    )
    rows = held_out_embedded(0) if data == EMBEDDED_DATA else open_rows(chat.data, 0)
    sequences, counts = held_out_sequences(chat, rows, dialogues)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reader = ResidualReader(load_model(source, section, device))
    saes = {name: (int(x.layer or 0), x.sae) for name, x in zip(names, loaded, strict=True)}
    with Progress("evaluating", counts.tokens) as bar:
        figures = evaluate(reader, saes, sequences, lambda n: bar.advance(n, "tokens"))
    report = {
        "base_model": {"name": model_name, "sha": source.sha},
        "split": described(rows.info, counts),
        "definitions": DEFINITIONS,
        "metrics": figures,
    }
    return [(name, figures[name], None) for name in names], report


def _only(model_names: set[str]) -> str:
    if len(model_names) != 1:
        said = ", ".join(sorted(model_names)) or "none"
        raise InputError(f"these SAEs name {said} as their model; say one with --model")
    return next(iter(model_names))


def _model_of(loaded: LoadedSAE) -> str | None:
    name = loaded.record.get("base_model", {}).get("name") or loaded.model_name
    return one_line(name) if isinstance(name, str) else None
