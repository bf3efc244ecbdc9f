"""Where an SAE sits, by the names of hooks, modules, folders and repositories; other places are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from sae_files import saelens_folder, scope_folder, sparsify_folder

from fastzoo.core.errors import InputError
from fastzoo.loading import load_sae, open_sae
from fastzoo.saes.places import GEMMA_SCOPE_SITES, hook_place, layer_named


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.18.hook_resid_post", 18),
        ("blocks.18.hook_out", 18),  # TransformerLens' bridge
        ("blocks.19.hook_resid_pre", 18),
        ("blocks.19.hook_in", 18),
        ("blocks.1.hook_resid_pre", 0),
        ("model.layers.18", 18),
        ("model/layers/18", 18),
        ("model.layers.18.output", 18),  # Gemma Scope 2
        ("model.layers.18.output.0", 18),
        ("model.layers.18.input", 17),
        ("layers.18", 18),
        ("layers_18", 18),
        ("layer_18", 18),
        ("h.5", 5),
        ("transformer.h.5", 5),
        ("gpt_neox.layers.5", 5),
        ("model.decoder.layers.5", 5),
        ("model.language_model.layers.5", 5),
        ("backbone.layers.5", 5),
        ("transformer.blocks.5", 5),
    ],
)
def test_hooks_of_the_residual_stream(tmp_path: Path, hook: str, layer: int) -> None:
    assert hook_place(hook).layer == layer
    assert open_sae(saelens_folder(tmp_path / "flat", hook_name=hook)).layer == layer
    assert open_sae(saelens_folder(tmp_path / "v6", metadata={"hook_name": hook})).layer == layer


@pytest.mark.parametrize(
    "hook",
    [
        "blocks.2.hook_mlp_out",
        "blocks.2.hook_attn_out",
        "blocks.2.hook_resid_mid",
        "blocks.2.attn.hook_z",
        "blocks.2.attn.hook_q",
        "blocks.2.attn.hook_result",
        "blocks.2.mlp.hook_post",
        "blocks.2.mlp.hook_in",
        "blocks.2.hook_mlp_in",
        "blocks.2.ln1.hook_normalized",
        "blocks.2.ln2.hook_normalized",
        "blocks.2.hook",
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_in",
        "model.layers.0.input",
        "hook_embed",
        "hook_pos_embed",
        "ln_final.hook_normalized",
        "unembed",
        "model.layers.2.mlp",
        "model.layers.2.self_attn",
        "model.layers.2.self_attn.o_proj.input",
        "model.layers.2.post_feedforward_layernorm.output",
        "model.layers.2.input_layernorm",
        "model.embed_tokens",
        "model.norm",
        "vision_tower.encoder.layers.2",
        "visual.blocks.2",
        "encoder.block.2",
        "model.mtp.layers.2",
        "blocks.²",
        "blocks.٣.hook_resid_post",
        "blocks." + "9" * 5000,
        "blocks.-1.hook_resid_post",
        "18",
        7,
        ["blocks.1.hook_resid_post"],
    ],
)
def test_hooks_of_other_places(tmp_path: Path, hook: object) -> None:
    for key in ("hook_name", "hook_point", "hf_hook_name"):
        for config in ({key: hook}, {"metadata": {key: hook}}):
            with pytest.raises(InputError) as caught:
                load_sae(saelens_folder(tmp_path / "x", **config))
            assert f"cfg.json: {key} '" in str(caught.value) and str(caught.value).isprintable()
            assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    "about",
    [
        {"hook_name": "blocks.3.hook_resid_post", "hook_layer": 4},
        {"hook_name": "blocks.3.hook_resid_pre", "hook_layer": 2},
        {"hook_point": "blocks.3.hook_resid_post", "hook_point_layer": 2},
        {"hook_name": "blocks.3.hook_resid_post", "hf_hook_name": "model.layers.2"},
    ],
)
def test_keys_that_name_different_places(tmp_path: Path, about: dict[str, object]) -> None:
    for config in (about, {"metadata": about}):
        with pytest.raises(InputError, match="are different places"):
            load_sae(saelens_folder(tmp_path / "x", **config))


def test_keys_that_name_one_place(tmp_path: Path) -> None:
    about = {"hook_name": "blocks.4.hook_resid_pre", "hook_layer": 4, "hf_hook_name": "model.layers.3.output"}
    assert open_sae(saelens_folder(tmp_path, metadata=about)).layer == 3


SCOPE = "layer_20/width_16k/average_l0_71/params.npz"


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        (f"gemma-scope-2b-pt-res/{SCOPE}", 20),
        (f"gemma-scope-9b-it-res-canonical/{SCOPE}", 20),
        (f"a-mlp/gemma-scope-2b-pt-res/{SCOPE}", 20),
        (f"gemma-scope-2b-pt-transcoders/a/b/c/d/e/{SCOPE}", 20),  # too far up to be the repository
        (f"gemma-scope-2b-pt-mlp/res/{SCOPE}", 20),
        (f"resid_post_all/{SCOPE}", 20),
        (f"gemma_scope_2b_res/{SCOPE}", 20),
        (f"models--google--gemma-scope-2b-pt-res/snapshots/{'0' * 40}/{SCOPE}", 20),
        (f"my-mlp-project/gemma/{SCOPE}", 20),  # their owner's names
        (f"my-mlp-project/{SCOPE}", 20),
        (f"attn/downloads/{SCOPE}", 20),
        (f"transcoders/a/b/{SCOPE}", 20),
        (f"mlp-study/gemma-scope-2b-pt-res/{SCOPE}", 20),
        (SCOPE, 20),
        ("params.npz", None),
        ("layer_99999/params.npz", None),
        ("runs/layers.11/sae.safetensors", 11),
        ("runs/layers.11/seed3/sae.safetensors", 11),
        ("runs/gpt_neox.layers.11/sae.safetensors", 11),
        ("runs/h.11/sae.safetensors", 11),
        ("runs/best/layers_11/sae.safetensors", 11),
        ("runs/v1.0/sae.safetensors", None),
        ("sae.safetensors", None),
        (f"gemma-scope-2b-pt-mlp/{SCOPE}".replace("params.npz", "sae_weights.safetensors"), None),
    ],
)
def test_names_that_say_a_layer(path: str, layer: int | None) -> None:
    assert layer_named(path) == layer


@pytest.mark.parametrize(
    "path",
    [
        f"gemma-scope-2b-pt-mlp/{SCOPE}",
        f"gemma-scope-2b-pt-att/{SCOPE}",
        f"gemma-scope-2b-pt-transcoders/{SCOPE}",
        f"gemma-scope-2b-pt-att-canonical/{SCOPE}",
        f"Gemma-Scope-2B-PT-MLP/{SCOPE}",
        f"models--google--gemma-scope-2b-pt-mlp/snapshots/{'0' * 40}/{SCOPE}",
        f"gemma-scope-2-4b-it/attn_out/{SCOPE}",
        f"mlp_out/{SCOPE}",
        f"mlp_out_all/{SCOPE}",
        f"Transcoder-All/{SCOPE}",
        f"gemma_scope_2b_mlp/{SCOPE}",
        f"gemmascope-att-16k/{SCOPE}",
        f"gemma-scope-2-4b-it_mlp_out/{SCOPE}",
        "gs/layer_7/mlp/width_16k/params.npz",
        "gemma-scope-2b-pt-res/layer_7/mlp/params.npz",
        "gemma-scope-2-1b-it/mlp_out/layer_22_width_16k_l0_medium/params.npz",
        "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6/params.npz",
        "layers.11.mlp/sae.safetensors",
        "layers.11.mlp/seed0/sae.safetensors",
        "gpt_neox.layers.11.attention/sae.safetensors",
        "h.11.attn/sae.safetensors",
        "embed_tokens/sae.safetensors",
        "model.norm/sae.safetensors",
    ],
)
def test_names_that_say_another_place(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError) as caught:
        layer_named(path)
    assert str(caught.value).isprintable() and "resid" in str(caught.value)
    folder = tmp_path / Path(path).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = (
        sparsify_folder(tmp_path)[0] if path.endswith("sae.safetensors") else scope_folder(tmp_path / "made")
    )
    made.rename(folder)
    link = tmp_path / "link"
    link.symlink_to(folder)
    for place in (folder, link):
        with pytest.raises(InputError, match="resid"):
            load_sae(place)


def test_the_sites_of_gemma_scope_are_read_or_refused() -> None:
    for site, what in GEMMA_SCOPE_SITES.items():
        for path in (f"gemma-scope-2b-{site}/{SCOPE}", f"{site}/{SCOPE}"):
            if what is None:
                assert layer_named(path) == 20
            else:
                with pytest.raises(InputError, match=what):
                    layer_named(path)
