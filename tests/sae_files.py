"""Files of SAEs as the libraries write them, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

D, F = 12, 30


def inputs(count: int = 64) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(9)) * 2


def weights(seed: int = 2, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {n: torch.randn(s, generator=generator) * 0.4 for n, s in shapes.items()}
    if "threshold" in made:
        made["threshold"] = made["threshold"].abs() + 0.05
    return made


def saelens_weights(kind: str = "standard") -> dict[str, torch.Tensor]:
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
    return weights(**shapes, **({"threshold": (F,)} if kind == "jumprelu" else {}))


def write(folder: Path, config: Any, tensors: dict[str, torch.Tensor], name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / name)
    return folder


def saelens_folder(folder: Path, kind: str = "standard", **config: Any) -> Path:
    """A valid folder in our own form, with changes to its configuration."""
    base = {"architecture": kind, "d_in": D, "d_sae": F, "dtype": "float32"}
    base |= {"apply_b_dec_to_input": False}
    return write(folder, base | config, saelens_weights(kind), "sae_weights.safetensors")


FLAT = {
    # SAELens v3-v5: the whole runner configuration, flat.
    "model_name": "qwen2.5-7b",
    "hook_name": "blocks.18.hook_resid_post",
    "hook_layer": 18,
    "hook_head_index": None,
    "activation_fn_str": "relu",
    "activation_fn_kwargs": {},
    "d_in": D,
    "d_sae": F,
    "dtype": "torch.float32",
    "device": "cuda",
    "context_size": 2048,
    "normalize_activations": "none",
    "finetuning_scaling_factor": False,
    "sae_lens_training_version": "5.6.0",
    "prepend_bos": True,
    "dataset_path": "org/data",
}


def sparsify_folder(root: Path, rows: int = F, **config: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A valid folder as sparsify writes it, of so many latents, with changes to its configuration."""
    tensors = weights(**{"encoder.weight": (rows, D), "encoder.bias": (rows,)})
    tensors |= weights(3, W_dec=(rows, D), b_dec=(D,))
    base = {"activation": "topk", "expansion_factor": 32, "num_latents": F, "k": 4, "d_in": D}
    base |= {"normalize_decoder": True, "multi_topk": False, "skip_connection": False}
    base |= {"transcode": False}
    folder = root / "layers.11"
    return write(folder, base | config, tensors, "sae.safetensors"), tensors


def scope_folder(root: Path, **changes: Any) -> Path:
    """Gemma Scope's layout, with some arrays changed or (None) left out."""
    folder = root / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {n: t.numpy() for n, t in saelens_weights("jumprelu").items()} | changes
    np.savez(folder / "params.npz", **{n: a for n, a in arrays.items() if a is not None})
    return folder
