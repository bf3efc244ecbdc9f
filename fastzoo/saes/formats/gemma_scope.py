"""Gemma Scope: JumpReLU SAEs as NumPy arrays in ``params.npz``, the layer in the path."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line
from fastzoo.saes import MOST_LATENTS
from fastzoo.saes.formats.loaded import LoadedSAE, build, check_memory, layer_of_folder
from fastzoo.saes.jumprelu import JumpReLUSAE


def read(folder: Path) -> LoadedSAE:
    """The SAE in ``folder``. Raises InputError."""
    path = folder / "params.npz"
    layer = layer_of_folder(path)
    try:
        with zipfile.ZipFile(path) as archive:
            weights = _read_arrays(archive, path)
    except InputError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        raise InputError(f"{path}: not a readable params.npz ({one_line(error, 100)})") from None
    d_in, d_sae = weights["W_enc"].shape
    sae = build(JumpReLUSAE, d_in, d_sae, weights, {}, path)
    return LoadedSAE(sae, folder, "gemma-scope", layer)


def _read_arrays(archive: zipfile.ZipFile, path: Path) -> dict[str, Tensor]:
    """The arrays of a JumpReLU SAE, after all their headers were found to be as expected."""
    # Some files call the matrices w_enc and w_dec.
    entries = {re.sub("^w_", "W_", e.filename.removesuffix(".npy")): e for e in archive.infolist()}
    if more := set(entries) - set(JumpReLUSAE.shapes(1, 1)):
        raise InputError(f"{path}: unexpected {one_line(', '.join(sorted(more)), 100)}")
    found: dict[str, tuple[int, ...]] = {}
    for name in JumpReLUSAE.shapes(1, 1):
        if name not in entries:
            raise InputError(f"{path}: lacks {name}")
        with archive.open(entries[name]) as file:
            wide = np.lib.format.read_magic(file) != (1, 0)
            read = np.lib.format.read_array_header_2_0 if wide else np.lib.format.read_array_header_1_0
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
    for name, shape in JumpReLUSAE.shapes(*found["W_enc"]).items():
        if found[name] != shape:
            raise InputError(f"{path}: {name} has shape {found[name]} and not {shape}")
    # Weights hardly compress; what shrinks a thousandfold was made to fill the memory.
    unpacked, packed = sum(entries[name].file_size for name in found), path.stat().st_size
    if unpacked > 16 * packed + (1 << 20):
        raise InputError(f"{path}: {packed} bytes that unpack to {unpacked} are no weights")
    check_memory(found, path)
    weights = {}
    for name in found:
        with archive.open(entries[name]) as file:
            weights[name] = torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False))
    return weights
