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
from fastzoo.saes.formats import keys
from fastzoo.saes.formats.keys import refuse_keys
from fastzoo.saes.formats.loaded import LoadedSAE, build, layer_number, read_tensors, size_at
from fastzoo.saes.places import Place, hook_place

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
        "apply_b_dec_to_input": sae.subtracts_b_dec,  # missing would mean true
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
    # v6 keeps what the model is under "metadata"; before, the whole runner configuration was flat.
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: metadata is {one_line(metadata, 40)}, not an object")
    about = config | {k: v for k, v in metadata.items() if v is not None}
    name, k = _architecture(config, path)
    model_arguments = _refuse_keys(config, metadata, about, path)
    kind = architecture(name)
    d_in, d_sae = size_at(config, "d_in", path), size_at(config, "d_sae", path)
    layer = _layer(about, path)
    subtract = config.get("apply_b_dec_to_input", True)
    if not isinstance(subtract, bool):
        raise InputError(f"{path}: apply_b_dec_to_input is {one_line(subtract, 40)}, not true or false")
    optional = {"scaling_factor": (d_sae,)}  # written by v3-v5 even when unused
    weights = read_tensors(folder / "sae_weights.safetensors", kind.shapes(d_in, d_sae), optional)
    sae = build(kind, d_in, d_sae, weights, config | {"k": k}, path)
    sae.subtracts_b_dec = subtract
    sae.apply_config_(config)
    sae.sinks = _sinks(about, path)
    return LoadedSAE(
        sae,
        folder,
        "saelens",
        layer,
        text_at(about, "model_name"),
        config,
        model_revision=text_at(model_arguments, "revision"),
        centred=_centred(about, model_arguments, path),
    )


def _refuse_keys(
    config: Mapping[str, Any], metadata: Mapping[str, Any], about: Mapping[str, Any], path: Path
) -> Mapping[str, Any]:
    """The arguments that the model was loaded with, once no key asks for what is not done here. Raises
    InputError."""
    described = [row for row in keys.SAELENS if row.described]
    moved = {name for row in described for name in row.names if metadata.get(name) is not None}
    flat = {key: value for key, value in config.items() if key not in moved}
    refuse_keys(flat, keys.SAELENS, f"{path}:", keys.SAELENS_NOTES)
    refuse_keys(metadata, described, f"{path}: metadata", unknown=("hook", "hf_hook"))
    nested = {"model_from_pretrained_kwargs": about, "activation_fn_kwargs": config}
    for (name, holder), rows in zip(
        nested.items(), (keys.MODEL_ARGUMENTS, keys.ACTIVATION_ARGUMENTS), strict=True
    ):
        arguments = holder.get(name) or {}
        if not isinstance(arguments, dict):
            raise InputError(f"{path}: {name} is {one_line(arguments, 40)}, not an object")
        refuse_keys(arguments, rows, f"{path}: {name}")
    return about.get("model_from_pretrained_kwargs") or {}


def _architecture(config: Mapping[str, Any], path: Path) -> tuple[str, Any]:
    """The architecture and, of topk, k. Raises InputError: none that is read, or they contradict each other."""
    name = config.get("architecture", "standard")  # early releases did not say
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{path}: architecture '{one_line(name, 40)}' is not read; {known} are")
    # v3 to v5 had topk as an activation function, at first of a standard SAE.
    functions = [config[key] for key in ("activation_fn_str", "activation_fn") if config.get(key) is not None]
    allowed = {"standard": ("relu", "topk"), "topk": ("topk",)}.get(name, ("relu",))
    for function in functions:
        if function not in allowed or function != functions[0]:
            raise InputError(f"{path}: activation '{one_line(function, 40)}' of {name} is not read")
    if "topk" in functions:
        name = "topk"
    if name != "topk":
        if config.get("rescale_acts_by_decoder_norm"):
            raise InputError(f"{path}: rescale_acts_by_decoder_norm of {name} is not read, only of topk")
        return name, None
    given = [config.get("k"), value_at(config, "activation_fn_kwargs", "k")]
    counts = [k for k in given if k is not None] or [None]
    if counts[0] != counts[-1]:
        raise InputError(
            f"{path}: k is {one_line(counts[0], 40)}, but {one_line(counts[-1], 40)} in activation_fn_kwargs"
        )
    return name, counts[0]


def _centred(about: Mapping[str, Any], model_arguments: Mapping[str, Any], path: Path) -> bool:
    """Whether it was trained by TransformerLens with weights that take the mean out of the residual stream, as
    sae-lens did by default before 3.20. Raises InputError."""
    said = model_arguments.get("center_writing_weights")
    if said is not None:
        if not isinstance(said, bool):
            raise InputError(f"{path}: center_writing_weights is {one_line(said, 40)}, not true or false")
        return said
    version = text_at(about, "sae_lens_training_version")
    if version is None:  # flat ones, of before version 6: the earliest did not say
        return "metadata" not in about
    numbers = re.match(r"([0-9]{1,3})\.([0-9]{1,3})\.", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < (3, 20)


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


def _layer(about: Mapping[str, Any], path: Path) -> int | None:
    """The layer after which the SAE sits. Raises InputError: it sits elsewhere, or the keys disagree."""
    said: dict[str, Place] = {}
    for key in ("hook_name", "hook_point", "hf_hook_name"):
        if about.get(key) not in (None, ""):
            try:
                said[key] = hook_place(about[key])
            except InputError as error:
                raise InputError(f"{path}: {key} {error}") from None
    number = about.get("hook_layer", about.get("hook_point_layer"))
    number = layer_number(str(number)) if isinstance(number, int) else None
    layers = {place.layer for place in said.values()}
    if len(layers) > 1 or (said and number not in (None, *(place.block for place in said.values()))):
        shown = ", ".join(f"{key} {one_line(about[key], 40)}" for key in said)
        raise InputError(f"{path}: {shown} and hook_layer {number} are different places")
    return layers.pop() if layers else number
