"""Files that real releases of sae-lens from 3 to 5 wrote (``written/make.py``): read as they computed them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, LlamaConfig

from fastzoo.core.errors import InputError
from fastzoo.loading import open_sae

WRITTEN = sorted(path for path in Path(__file__).parent.joinpath("written").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", WRITTEN, ids=lambda path: path.name)
@pytest.mark.parametrize("config", ["cfg.json", "run_cfg.json"])
def test_what_a_release_wrote_is_read_as_it_computed_it(tmp_path: Path, folder: Path, config: str) -> None:
    """With the SAE's own configuration, and with the whole runner's, which checkpoints have."""
    shutil.copy(folder / "sae_weights.safetensors", tmp_path)
    shutil.copy(folder / config, tmp_path / "cfg.json")
    loaded, results = open_sae(tmp_path), load_file(folder / "results.safetensors")
    assert (loaded.layer, loaded.model_name) == (2, "gpt2")
    with torch.no_grad():
        latents = loaded.sae.encode(results["x"])
        np.testing.assert_allclose(latents, results["latents"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(loaded.sae(results["x"]), results["reconstruction"], rtol=0, atol=1e-6)
    topk = folder.name.endswith("topk")
    assert (latents > 0).sum(1).max() == 3 if topk else (latents > 0).sum(1).max() > 3


@pytest.mark.parametrize("folder", WRITTEN, ids=lambda path: path.name)
def test_the_centred_weights_of_early_releases(folder: Path) -> None:
    """Until 3.19 the runner took the mean out of the residual stream of models with LayerNorms."""
    early = folder.name.startswith(("3.0", "3.12"))
    loaded = open_sae(folder)
    loaded.refuse_centred(LlamaConfig())  # RMSNorm: TransformerLens leaves it as it is
    if early:
        with pytest.raises(InputError, match=r"centred by TransformerLens, as sae-lens before 3\.20"):
            loaded.refuse_centred(GPT2Config())
    else:
        loaded.refuse_centred(GPT2Config())


def test_early_releases_could_be_told_not_to_centre(tmp_path: Path) -> None:
    folder = next(path for path in WRITTEN if path.name.startswith("3.0.0"))
    shutil.copytree(folder, tmp_path / "x")
    config = json.loads((folder / "cfg.json").read_text())
    for centre in (False, True):
        config["model_from_pretrained_kwargs"] = {"center_writing_weights": centre}
        (tmp_path / "x" / "cfg.json").write_text(json.dumps(config))
        if centre:
            with pytest.raises(InputError, match="center_writing_weights is True"):
                open_sae(tmp_path / "x")
        else:
            open_sae(tmp_path / "x").refuse_centred(GPT2Config())
