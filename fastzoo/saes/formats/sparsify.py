"""EleutherAI's sparsify: ``cfg.json`` and ``sae.safetensors``, TopK, in a folder per hookpoint."""

from __future__ import annotations

from pathlib import Path

from fastzoo.core.errors import InputError
from fastzoo.core.files import read_json
from fastzoo.core.text import one_line
from fastzoo.saes.formats.loaded import (
    LoadedSAE,
    build,
    fold_input_bias_,
    layer_number,
    read_tensors,
    size_at,
)
from fastzoo.saes.topk import TopKSAE


def read(folder: Path) -> LoadedSAE:
    """The SAE in ``folder``; its layer is the end of the folder's name. Raises InputError."""
    config = read_json(path := folder / "cfg.json")
    d_in = size_at(config, "d_in", path)
    if config.get("num_latents"):
        d_sae = size_at(config, "num_latents", path)
    else:
        d_sae = d_in * size_at(config, "expansion_factor", path)
    if config.get("transcode") or config.get("skip_connection"):
        raise InputError(f"{folder}: a transcoder, not an SAE")
    if config.get("activation", "topk") != "topk":
        raise InputError(
            f"{folder}/cfg.json: activation '{one_line(config['activation'], 40)}' is not read; topk is"
        )
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (d_sae, d_in),
        "encoder.bias": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    weights = read_tensors(folder / "sae.safetensors", shapes)
    weights["W_enc"], weights["b_enc"] = weights["encoder.weight"].t(), weights["encoder.bias"]
    sae = build(TopKSAE, d_in, d_sae, weights, config, path)
    fold_input_bias_(sae)
    return LoadedSAE(sae, folder, "sparsify", layer_number(folder.name.rpartition(".")[2]), config=config)
