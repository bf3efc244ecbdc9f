"""SAE files: written in the SAELens v6 format, read in that and in the others' formats.

Read: SAELens v6 and v3-v5 (flat configuration), sparsify, Gemma Scope (``params.npz``). Pickles are
refused by name. Sizes are checked against the configuration before a weight is loaded.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastzoo.core.errors import InputError, OutputError
from fastzoo.core.files import machine_memory, write_json
from fastzoo.core.text import one_line
from fastzoo.core.values import text_at
from fastzoo.saes import ARCHITECTURES, MOST_LATENTS, architecture
from fastzoo.saes.base import SAE
from fastzoo.saes.jumprelu import JumpReLUSAE
from fastzoo.saes.layouts import refuse_pickle
from fastzoo.saes.topk import TopKSAE

SAELENS_VERSION = "6.54.12"
"""The sae-lens whose format is written; without a version >= 6 it drops all metadata."""

WEIGHTS = ("sae_weights.safetensors", "sae.safetensors", "params.npz")


@dataclass
class LoadedSAE:
    """Where an SAE came from and what its files say; the SAE itself is ``sae``."""

    sae: SAE
    folder: Path
    """The folder with the weights."""
    layout: str
    """``saelens``, ``sparsify`` or ``gemma-scope``."""
    layer: int | None = None
    model_name: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """Its cfg.json, or {}."""
    record: dict[str, Any] = field(default_factory=dict)
    """fastzoo's own config.json, or {}."""


# --- finding -----------------------------------------------------------------------------------


def find_weights(root: Path) -> tuple[Path, str]:
    """``root`` itself if it holds SAE weights, else the one folder below that does; and its layout.

    Raises:
        InputError: none, several, only pickles, or a folder that cannot be read.
    """
    try:
        candidates = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
        found = [(f, w) for f in candidates for w in WEIGHTS if (f / w).is_file()]
        others = [] if found else [p for f in candidates for p in sorted(f.iterdir())]
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({one_line(error.strerror)})") from None
    if not found:
        for path in others:
            refuse_pickle(path)
        raise InputError(f"{root}: no SAE here; looked for {', '.join(WEIGHTS)}")
    if len(found) > 1 and found[0][0] != root:
        names = ", ".join(str(f.relative_to(root)) for f, _ in found[:5])
        raise InputError(
            f"{root}: holds {len(found)} SAEs ({names}, ...); name one of these folders"
        )
    folder, weights = found[0]
    layouts = dict(zip(WEIGHTS, ("saelens", "sparsify", "gemma-scope"), strict=True))
    return folder, layouts[weights]


# --- writing -----------------------------------------------------------------------------------


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

    Raises:
        OutputError: an architecture that SAELens has no such format for.
    """
    if sae.architecture not in ("standard", "jumprelu"):
        raise OutputError(
            f"{sae.architecture} SAEs are read only; no file format is written for them"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: p.detach().float().cpu().contiguous() for n, p in _saved(sae).items()}
    config = {
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        # Missing would mean true.
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "hook_name": f"model.layers.{layer}",
            "hook_layer": layer,
            "model_class_name": "AutoModelForCausalLM",
            "prepend_bos": False,
            **(metadata or {}),
        },
    }
    write_json(folder / "cfg.json", config)
    save_file(weights, folder / "sae_weights.safetensors")
    if log_sparsity is not None:
        sparsity = log_sparsity.detach().float().cpu().contiguous()
        save_file({"sparsity": sparsity}, folder / "sparsity.safetensors")


def _saved(sae: SAE) -> dict[str, Tensor]:
    names = ["W_enc", "b_enc", "W_dec", "b_dec"]
    if isinstance(sae, JumpReLUSAE):
        names.append("threshold")
    return {name: getattr(sae, name) for name in names}


# --- reading -----------------------------------------------------------------------------------


def _read_saelens(folder: Path, config: dict[str, Any]) -> LoadedSAE:
    kind = config.get("architecture", "standard")  # early releases did not say
    d_in, d_sae = _size(config, "d_in", folder), _size(config, "d_sae", folder)
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise InputError(
            f"{folder}/cfg.json: architecture '{one_line(kind, 40)}' is not read; "
            f"{', '.join(ARCHITECTURES)} are"
        )
    function = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if kind == "standard" and function != "relu":
        raise InputError(f"{folder}/cfg.json: activation '{one_line(function, 40)}' is not read")
    shapes = _shapes(d_in, d_sae, kind)
    optional = {"scaling_factor": (d_sae,)}  # written by v3-v5 even when unused
    weights = _read_tensors(folder / "sae_weights.safetensors", shapes, optional)
    sae: SAE
    if kind == "topk":
        sae = TopKSAE(d_in, d_sae, k=_k(config, d_sae, folder))
    else:
        sae = architecture(kind)(d_in, d_sae)
    _assign(sae, {n: weights[n] for n in shapes})
    normalize = config.get("normalize_activations", "none")
    if normalize not in ("none", None):
        raise InputError(
            f"{folder}/cfg.json: normalize_activations '{one_line(normalize, 40)}' is not read; fold "
            "the normalisation into the weights first (fold_activation_norm_scaling_factor)"
        )
    if config.get("apply_b_dec_to_input", True):
        _fold_input_bias(sae)
    if kind == "topk" and config.get("rescale_acts_by_decoder_norm", False):
        _fold_decoder_norm(sae)
    if config.get("finetuning_scaling_factor") and "scaling_factor" in weights:
        raise InputError(f"{folder}/cfg.json: finetuning_scaling_factor is not read")
    # v6 keeps what the model is under "metadata"; before, the whole runner configuration was flat.
    about = config.get("metadata") if isinstance(config.get("metadata"), dict) else config
    assert isinstance(about, dict)
    return LoadedSAE(sae, folder, "saelens", _layer(about), text_at(about, "model_name"), config)


def _read_sparsify(folder: Path, config: dict[str, Any]) -> LoadedSAE:
    d_in = _size(config, "d_in", folder)
    if config.get("num_latents"):
        d_sae = _size(config, "num_latents", folder)
    else:
        d_sae = d_in * _size(config, "expansion_factor", folder)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (d_sae, d_in),
        "encoder.bias": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    if config.get("transcode") or config.get("skip_connection"):
        raise InputError(f"{folder}: a transcoder, not an SAE")
    if config.get("activation", "topk") != "topk":
        raise InputError(
            f"{folder}/cfg.json: activation '{one_line(config['activation'], 40)}' is not read; "
            "topk is"
        )
    weights = _read_tensors(folder / "sae.safetensors", shapes)
    sae = TopKSAE(d_in, d_sae, k=_k(config, d_sae, folder))
    _assign(
        sae,
        {
            "W_enc": weights["encoder.weight"].t(),
            "b_enc": weights["encoder.bias"],
            "W_dec": weights["W_dec"],
            "b_dec": weights["b_dec"],
        },
    )
    _fold_input_bias(sae)
    layer = _layer_number(folder.name.rpartition(".")[2])
    return LoadedSAE(sae, folder, "sparsify", layer, None, config)


def _read_gemma_scope(folder: Path) -> LoadedSAE:
    path = folder / "params.npz"
    try:
        with zipfile.ZipFile(path) as archive:
            weights = _read_arrays(archive, path)
    except InputError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        raise InputError(f"{path}: not a readable params.npz ({one_line(error, 100)})") from None
    sae = JumpReLUSAE(*weights["W_enc"].shape)
    _assign(sae, weights)
    # layer_20/width_16k/average_l0_71: other parts have numbers too
    found = [re.fullmatch(r"layer_(.*)", part) for part in folder.resolve().parts]
    layer = next((_layer_number(match[1]) for match in reversed(found) if match), None)
    return LoadedSAE(sae, folder, "gemma-scope", layer)


def _read_arrays(archive: zipfile.ZipFile, path: Path) -> dict[str, Tensor]:
    """The arrays of a JumpReLU SAE, after all their headers were found to be as expected."""
    import numpy as np

    entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    found: dict[str, tuple[int, ...]] = {}
    for name in _shapes(1, 1, "jumprelu"):
        if name not in entries:
            raise InputError(f"{path}: lacks {name}")
        with archive.open(entries[name]) as file:
            wide = np.lib.format.read_magic(file) != (1, 0)
            read = (
                np.lib.format.read_array_header_2_0 if wide else np.lib.format.read_array_header_1_0
            )
            found[name], _, dtype = read(file)
            held = entries[name].file_size - file.tell()
        if dtype not in (np.float16, np.float32, np.float64):
            raise InputError(f"{path}: {name} is {one_line(dtype, 40)}, not floating point")
        # One dimension at a time: their product can be beyond any number of 64 bits.
        if any(not 0 < size <= MOST_LATENTS for size in found[name]):
            raise InputError(f"{path}: {name} has shape {found[name]}, not a sensible size")
        if math.prod(found[name]) * dtype.itemsize != held:
            raise InputError(f"{path}: {name} of shape {found[name]} does not fit its {held} bytes")
    if len(found["W_enc"]) != 2:
        raise InputError(f"{path}: W_enc of shape {found['W_enc']} is no matrix")
    for name, shape in _shapes(*found["W_enc"], "jumprelu").items():
        if found[name] != shape:
            raise InputError(f"{path}: {name} has shape {found[name]} and not {shape}")
    # Weights hardly compress; what shrinks a thousandfold was made to fill the memory.
    unpacked, packed = sum(entries[name].file_size for name in found), path.stat().st_size
    if unpacked > 16 * packed + (1 << 20):
        raise InputError(f"{path}: {packed} bytes that unpack to {unpacked} are no weights")
    _check_memory(found, path)
    weights = {}
    for name in found:
        with archive.open(entries[name]) as file:
            # allow_pickle=False: an array of objects is refused instead of unpickled.
            weights[name] = torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False))
    return weights


def _shapes(d_in: int, d_sae: int, kind: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    return shapes | ({"threshold": (d_sae,)} if kind == "jumprelu" else {})


def _size(config: Mapping[str, Any], key: str, folder: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MOST_LATENTS:
        raise InputError(f"{folder}/cfg.json: {key} is {one_line(value, 40)}, not a sensible size")
    return value


def _check_memory(shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Refuse weights that this machine cannot hold in float32. Raises InputError."""
    needed, there = 4 * sum(map(math.prod, shapes.values())), machine_memory()
    if needed > there:
        raise InputError(
            f"{path}: {needed >> 20} MiB of weights; this machine has {there >> 20} MiB of memory"
        )


def _k(config: Mapping[str, Any], d_sae: int, folder: Path) -> int:
    k = _size(config, "k", folder)
    if k > d_sae:
        raise InputError(f"{folder}/cfg.json: k is {k}, more than the {d_sae} latents")
    return k


def _read_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    optional: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, after its header was found to be as expected."""
    allowed = {**shapes, **(optional or {})}
    try:
        str(path).encode()
    except UnicodeEncodeError:
        reason = "safetensors opens no path that is not UTF-8; rename the folder"
        raise InputError(f"{path}: {reason}") from None
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if missing := set(shapes) - names:
                raise InputError(f"{path}: lacks {', '.join(sorted(missing))}")
            if extra := names - set(allowed):
                some = one_line(", ".join(sorted(extra)[:3]), 100)
                raise InputError(f"{path}: unexpected {some}")
            for name in sorted(names):
                part = file.get_slice(name)
                if tuple(part.get_shape()) != tuple(allowed[name]):
                    raise InputError(
                        f"{path}: {name} has shape {tuple(part.get_shape())}; its cfg.json says "
                        f"{tuple(allowed[name])}"
                    )
                if part.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                    raise InputError(f"{path}: {name} is {part.get_dtype()}, not floating point")
            _check_memory(shapes, path)
            return {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except (SafetensorError, OSError, RuntimeError, struct.error) as error:  # mmap is torch's
        raise InputError(
            f"{path}: not a readable safetensors file ({one_line(error, 100)})"
        ) from None


@torch.no_grad()
def _assign(sae: SAE, weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        getattr(sae, name).copy_(value)


@torch.no_grad()
def _fold_input_bias(sae: SAE) -> None:
    """x − b_dec at the input is the same as b_enc − b_dec @ W_enc."""
    sae.b_enc.sub_((sae.b_dec.double() @ sae.W_enc.double()).to(sae.b_enc.dtype))


@torch.no_grad()
def _fold_decoder_norm(sae: SAE) -> None:
    """Latents of unit decoder rows: each grows by the norm that its row loses."""
    norm_F = torch.linalg.vector_norm(sae.W_dec, dim=1).clamp_min(1e-8)
    sae.W_dec.div_(norm_F[:, None])
    sae.W_enc.mul_(norm_F)
    sae.b_enc.mul_(norm_F)


def _layer(about: Mapping[str, Any]) -> int | None:
    layer = about.get("hook_layer", about.get("hook_point_layer"))
    if isinstance(layer, int):
        return _layer_number(str(layer))
    hook = text_at(about, "hook_name") or text_at(about, "hook_point") or ""
    # blocks.18.hook_resid_post, model.layers.18 or layer_18
    parts = map(_layer_number, re.split(r"[/._]", hook))
    return next((number for number in parts if number is not None), None)


def _layer_number(text: str) -> int | None:
    """The number of a layer as names have it: up to four plain digits."""
    return int(text) if re.fullmatch(r"[0-9]{1,4}", text) else None
