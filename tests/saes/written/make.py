"""Write SAEs with a release of sae-lens from 3 to 5, and what it computes with them, for ``test_written.py``.

pip download --no-deps sae-lens==5.11.0 && python -m zipfile -e sae_lens-5.11.0-*.whl old
PYTHONPATH=old python tests/saes/written/make.py
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

try:
    import sae_lens
except ModuleNotFoundError:  # releases before 3.20 import from a module that huggingface_hub no longer has
    import huggingface_hub.utils as utils

    moved = types.ModuleType("huggingface_hub.utils._errors")
    moved.EntryNotFoundError = utils.EntryNotFoundError  # type: ignore[attr-defined]
    sys.modules[moved.__name__] = moved
    import sae_lens
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.sae import SAE

D = 6
KINDS: dict[str, dict[str, Any]] = {
    "standard": {},
    "standard-topk": {"activation_fn": "topk", "activation_fn_kwargs": {"k": 3}},
    "topk": {"architecture": "topk", "activation_fn": "topk", "activation_fn_kwargs": {"k": 3}},
    "jumprelu": {"architecture": "jumprelu", "apply_b_dec_to_input": False},
    "resid-pre": {"hook_name": "blocks.3.hook_resid_pre", "hook_layer": 3},
}
OF_RELEASE = {"3.0.0": ["standard"], "3.12.5": ["standard-topk"], "3.22.2": ["standard-topk", "jumprelu"]}
"""Kinds that show what is new in a release; later ones have them all."""


def write(folder: Path, seed: int, options: dict[str, Any]) -> None:
    """The files of one SAE with random weights, and its run's configuration."""
    place = {"hook_name": "blocks.2.hook_resid_post", "hook_layer": 2, "model_name": "gpt2"}
    runner = LanguageModelSAERunnerConfig(
        **(place | options),
        d_in=D,
        expansion_factor=2,
        device="cpu",
        wandb_id="run",
        log_to_wandb=False,
        verbose=False,
    )
    sae = SAE.from_dict(runner.get_base_sae_cfg_dict())
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sae.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
        if name == "threshold":
            parameter.data.abs_()
    x_BD = torch.randn(16, D, generator=generator) * 2
    with torch.no_grad():
        results = {"x": x_BD, "latents": sae.encode(x_BD), "reconstruction": sae(x_BD)}
    sae.save_model(str(folder))
    save_file({name: t.contiguous() for name, t in results.items()}, folder / "results.safetensors")
    # With this the runner replaces cfg.json at each checkpoint.
    (folder / "run_cfg.json").write_text(json.dumps(runner.to_dict()))


if __name__ == "__main__":
    for kind in OF_RELEASE.get(sae_lens.__version__, list(KINDS)):
        write(Path(__file__).parent / f"{sae_lens.__version__}-{kind}", list(KINDS).index(kind), KINDS[kind])
