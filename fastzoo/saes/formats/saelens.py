"""SAELens: v6 is written and read, v3 to v5 (one flat configuration) are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from fastzoo.core.errors import InputError, OutputError
from fastzoo.core.files import read_json, write_json
from fastzoo.core.text import one_line
from fastzoo.core.values import number_at, text_at, value_at
from fastzoo.saes import ARCHITECTURES, architecture
from fastzoo.saes.base import SAE, Sinks
from fastzoo.saes.formats.loaded import (
    LoadedSAE,
    build,
    fold_input_bias_,
    layer_number,
    read_tensors,
    size_at,
)

SAELENS_VERSION = "6.54.12"
"""The sae-lens whose format is written; without a version >= 6 it drops all metadata."""


def save_sae(
    sae: SAE,
    folder: str | Path,
    *,
    layer: int,
    metadata: Mapping[str, Any] | None = None,
    log_sparsity: Tensor | None = None,
) -> None:
    """Write ``cfg.json``, ``sae_weights.safetensors`` and, if given, ``sparsity.safetensors``.

    Args:
        folder: usually ``<name>/blocks.<layer>.hook_resid_post``; made if it is not there.
        metadata: more keys for the configuration's ``metadata`` (model_name, context_size, ...).
        log_sparsity: (d_sae,) log10 of each latent's firing frequency.

    Raises OutputError: an architecture that is read only.
    """
    if not sae.writable:
        raise OutputError(f"{sae.architecture} SAEs are read only; no file format is written for them")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,  # missing would mean true
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "hook_name": f"model.layers.{layer}",
            "hook_layer": layer,
            "model_class_name": "AutoModelForCausalLM",
            "prepend_bos": False,
            "sinks": vars(sae.sinks) if sae.sinks else None,
            **(metadata or {}),
        },
    }
    write_json(folder / "cfg.json", config)
    weights = {name: getattr(sae, name) for name in sae.shapes(sae.d_in, sae.d_sae)}
    save_file(_plain(weights), folder / "sae_weights.safetensors")
    if log_sparsity is not None:
        save_file(_plain({"sparsity": log_sparsity}), folder / "sparsity.safetensors")


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}


def read(folder: Path) -> LoadedSAE:
    """The SAE in ``folder``. Raises InputError."""
    config = read_json(path := folder / "cfg.json")
    name = config.get("architecture", "standard")  # early releases did not say
    d_in, d_sae = size_at(config, "d_in", path), size_at(config, "d_sae", path)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{path}: architecture '{one_line(name, 40)}' is not read; {known} are")
    kind = architecture(name)
    optional = {"scaling_factor": (d_sae,)}  # written by v3-v5 even when unused
    weights = read_tensors(folder / "sae_weights.safetensors", kind.shapes(d_in, d_sae), optional)
    sae = build(kind, d_in, d_sae, weights, config, path)
    normalize = config.get("normalize_activations", "none")
    if normalize not in ("none", None):
        reason = "fold the normalisation into the weights first (fold_activation_norm_scaling_factor)"
        raise InputError(f"{path}: normalize_activations '{one_line(normalize, 40)}' is not read; {reason}")
    if config.get("apply_b_dec_to_input", True):
        fold_input_bias_(sae)
    sae.apply_config_(config)
    if config.get("finetuning_scaling_factor") and "scaling_factor" in weights:
        raise InputError(f"{path}: finetuning_scaling_factor is not read")
    # v6 keeps what the model is under "metadata"; before, the whole runner configuration was flat.
    metadata = config.get("metadata")
    about = metadata if isinstance(metadata, dict) else config
    sae.sinks = _sinks(about, path)
    return LoadedSAE(sae, folder, "saelens", _layer(about), text_at(about, "model_name"), config)


def _sinks(about: Mapping[str, Any], path: Path) -> Sinks | None:
    """What fastzoo says of attention sinks. Raises InputError: it is not what fastzoo writes."""
    said = about.get("sinks")
    if said is None:
        return None
    norm, median = number_at(said, "norm"), number_at(said, "median_norm")
    skipped = value_at(said, "skipped")
    if not norm or not median or min(norm, median) <= 0 or not isinstance(skipped, bool):
        raise InputError(f"{path}: sinks is {one_line(said, 80)}, not a norm, a median norm and skipped")
    return Sinks(float(norm), float(median), skipped)


def _layer(about: Mapping[str, Any]) -> int | None:
    layer = about.get("hook_layer", about.get("hook_point_layer"))
    if isinstance(layer, int):
        return layer_number(str(layer))
    hook = text_at(about, "hook_name") or text_at(about, "hook_point") or ""
    # blocks.18.hook_resid_post, model.layers.18 or layer_18
    parts = map(layer_number, re.split(r"[/._]", hook))
    return next((number for number in parts if number is not None), None)
