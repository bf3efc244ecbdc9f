"""EleutherAI's sparsify: ``cfg.json`` and ``sae.safetensors``, TopK, in a folder per hookpoint."""

from __future__ import annotations

from pathlib import Path

from fastzoo.core.errors import InputError
from fastzoo.core.files import read_json
from fastzoo.core.text import one_line
from fastzoo.saes.formats.keys import SPARSIFY, refuse_keys
from fastzoo.saes.formats.loaded import LoadedSAE, build, layer_of_folder, read_tensors, size_at
from fastzoo.saes.topk import TopKSAE


def read(folder: Path) -> LoadedSAE:
    """The SAE in ``folder``; its layer is in the folder's name. Raises InputError."""
    config = read_json(path := folder / "cfg.json")
    refuse_keys(config, SPARSIFY, f"{path}:", notes=("_",))
    config = {"num_latents": 0, "expansion_factor": 32, "k": 32} | config
    layer = layer_of_folder(folder / "sae.safetensors")
    d_in = size_at(config, "d_in", path)
    if config["num_latents"]:
        d_sae = size_at(config, "num_latents", path)
    else:
        d_sae = d_in * size_at(config, "expansion_factor", path)
    if config.get("activation", "topk") != "topk":
        raise InputError(f"{path}: activation '{one_line(config['activation'], 40)}' is not read; topk is")
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (d_sae, d_in),
        "encoder.bias": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    weights = read_tensors(folder / "sae.safetensors", shapes)
    weights["W_enc"], weights["b_enc"] = weights["encoder.weight"].t(), weights["encoder.bias"]
    sae = build(TopKSAE, d_in, d_sae, weights, config, path)
    sae.subtracts_b_dec = True
    return LoadedSAE(sae, folder, "sparsify", layer, config=config)
