"""Files that real releases of sae-lens from 3 to 5 wrote (``written/make.py``): read as they computed them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_files import D, F, saelens_folder, saelens_weights, write
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
    # In float64: what differs is then the release's own float32 rounding (1.7e-6 at most, of values up to 12), and not
    # also that of the machine that runs the test, which may sum in another order.
    loaded = open_sae(tmp_path, dtype=torch.float64)
    results = {key: values.double() for key, values in load_file(folder / "results.safetensors").items()}
    assert (loaded.layer, loaded.model_name) == (2, "gpt2")
    with torch.no_grad():
        latents = loaded.sae.encode(results["x"])
        np.testing.assert_allclose(latents, results["latents"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(loaded.sae(results["x"]), results["reconstruction"], rtol=1e-6, atol=1e-6)
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
        loaded = open_sae(tmp_path / "x")
        loaded.refuse_centred(LlamaConfig())
        if centre:
            with pytest.raises(InputError, match="centred by TransformerLens"):
                loaded.refuse_centred(GPT2Config())
        else:
            loaded.refuse_centred(GPT2Config())


EARLIEST = json.loads("""{
"model_name": "gpt2-small", "hook_point": "blocks.3.hook_resid_pre", "hook_point_layer": 3,
"hook_point_head_index": null, "dataset_path": "org/text", "is_dataset_tokenized": false, "context_size": 128,
"use_cached_activations": false, "cached_activations_path": "activations/x", "d_in": 12, "d_sae": 30,
"n_batches_in_buffer": 128, "total_training_tokens": 300000000, "store_batch_size": 32, "device": "mps", "seed": 42,
"dtype": "torch.float32", "b_dec_init_method": "geometric_median", "expansion_factor": 32,
"from_pretrained_path": null, "l1_coefficient": 8e-05, "lr": 0.0004, "lr_scheduler_name": null,
"lr_warm_up_steps": 5000, "train_batch_size": 4096, "use_ghost_grads": false, "feature_sampling_window": 1000,
"feature_sampling_method": null, "resample_batches": 1028, "feature_reinit_scale": 0.2, "dead_feature_window": 5000,
"dead_feature_estimation_method": "no_fire", "dead_feature_threshold": 1e-08, "log_to_wandb": true,
"wandb_project": "p", "wandb_entity": null, "wandb_log_frequency": 100, "n_checkpoints": 10,
"checkpoint_path": "checkpoints/x", "tokens_per_buffer": 67108864, "run_name": "24576-L1", "start_pos_offset": 1
}""")
"""What sae-lens 0.x wrote; it did not say its version."""


@pytest.mark.parametrize("version", [{}, {"sae_lens_training_version": None}])
def test_the_earliest_releases_did_not_say_their_version(tmp_path: Path, version: dict[str, None]) -> None:
    loaded = open_sae(write(tmp_path, EARLIEST | version, saelens_weights(), "sae_weights.safetensors"))
    assert (loaded.layer, loaded.model_name, loaded.sae.subtracts_b_dec) == (2, "gpt2-small", True)
    loaded.refuse_centred(LlamaConfig())
    with pytest.raises(InputError, match="centred by TransformerLens") as caught:
        loaded.refuse_centred(GPT2Config())
    # As the error says, whoever knows better can say so; and version 6, with metadata, centres no weights.
    said = {"model_from_pretrained_kwargs": {"center_writing_weights": False}}
    assert '{"center_writing_weights": false}' in str(caught.value)
    for config in (EARLIEST | version | said, {"d_in": D, "d_sae": F, "metadata": version}):
        write(tmp_path, config, saelens_weights(), "sae_weights.safetensors")
        open_sae(tmp_path).refuse_centred(GPT2Config())


@pytest.mark.parametrize("value", [7, "true", []])
def test_centring_is_true_or_false(tmp_path: Path, value: object) -> None:
    folder = saelens_folder(tmp_path, model_from_pretrained_kwargs={"center_writing_weights": value})
    with pytest.raises(InputError, match=r"center_writing_weights is .*, not true or false"):
        open_sae(folder)
