"""SAE files: exchanged with the real sae-lens, read in the others' formats, refused when wrong."""

from __future__ import annotations

import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sae_lens
import torch
from conftest import randomise
from sae_files import (
    FLAT,
    D,
    F,
    inputs,
    saelens_folder,
    saelens_weights,
    scope_folder,
    sparsify_folder,
    write,
)
from safetensors.torch import load_file, save_file

from fastzoo.core.errors import InputError, NotFoundError, OutputError
from fastzoo.core.files import machine_memory
from fastzoo.loading import load_sae, open_sae
from fastzoo.saes.formats import save_sae
from fastzoo.saes.jumprelu import JumpReLUSAE
from fastzoo.saes.standard import StandardSAE
from fastzoo.saes.topk import TopKSAE
from fastzoo.tiny import MODEL

HOOK = "blocks.5.hook_resid_post"


def make(kind: str) -> Any:
    return randomise({"standard": StandardSAE, "jumprelu": JumpReLUSAE}[kind](D, F), 1)


def naive(w: dict[str, torch.Tensor], x: torch.Tensor, subtract: bool) -> tuple[Any, Any]:
    """Latents and reconstructions in float64, written from the format's definition."""
    v = {n: t.double().numpy() for n, t in w.items()}
    x64 = x.double().numpy()
    pre = (x64 - v["b_dec"] if subtract else x64) @ v["W_enc"] + v["b_enc"]
    latents = np.maximum(pre, 0)
    if "threshold" in v:
        latents = latents * (pre > v["threshold"])
    return latents, latents @ v["W_dec"] + v["b_dec"]


def assert_same(sae: Any, latents: Any, reconstruction: Any, x: torch.Tensor, dense: bool = False) -> None:
    with torch.no_grad():
        found = sae.encode(x)
        np.testing.assert_allclose(found.numpy(), np.asarray(latents), rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(sae(x).numpy(), np.asarray(reconstruction), rtol=1e-5, atol=5e-5)
    assert 0.05 < (found > 0).float().mean().item() < (1.01 if dense else 0.95)


# --- what we write ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
def test_the_real_sae_lens_loads_what_we_write(tmp_path: Path, kind: str) -> None:
    sae, sparsity = make(kind), torch.linspace(-10, -1, F)
    folder = tmp_path / "name" / HOOK
    metadata = {"model_name": "org/model", "context_size": 8192, "dataset_path": "d", "ours": [1]}
    save_sae(sae, folder, layer=5, metadata=metadata, log_sparsity=sparsity)
    assert {p.name for p in folder.iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    }
    theirs = sae_lens.SAE.load_from_disk(str(folder))
    assert theirs.cfg.architecture() == kind
    assert (theirs.cfg.d_in, theirs.cfg.d_sae) == (D, F)
    assert theirs.cfg.apply_b_dec_to_input is False
    with torch.no_grad():
        assert torch.equal(theirs.encode(inputs()), sae.encode(inputs()))
        assert torch.equal(theirs.decode(sae.encode(inputs())), sae.decode(sae.encode(inputs())))
        assert torch.equal(theirs(inputs()), sae(inputs()))
    about = theirs.cfg.metadata
    for key, expected in metadata.items():
        assert getattr(about, key) == expected
    assert about.hook_name == "model.layers.5"
    assert about.prepend_bos is False
    assert torch.equal(load_file(folder / "sparsity.safetensors")["sparsity"], sparsity)


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_we_write_we_read(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    sae = make(kind)
    save_sae(sae, tmp_path / "x" / HOOK, layer=5, metadata={"model_name": "org/m"})
    for root in (tmp_path / "x", tmp_path / "x" / HOOK):
        loaded = open_sae(root, dtype=dtype)
        assert (loaded.layer, loaded.model_name, loaded.layout) == (5, "org/m", "saelens")
        assert loaded.folder == tmp_path / "x" / HOOK
        assert loaded.sae.architecture == kind
        assert not loaded.sae.training
        for name, parameter in sae.named_parameters():
            found = getattr(loaded.sae, name)
            assert found.dtype == dtype
            assert not found.requires_grad
            assert torch.equal(found, parameter.to(dtype))
    assert torch.equal(load_sae(tmp_path / "x").W_enc, sae.W_enc)


def test_log_threshold_is_not_written(tmp_path: Path) -> None:
    sae = make("jumprelu")
    sae.learn_log_threshold()
    save_sae(sae, tmp_path / HOOK, layer=5)
    names = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    assert set(load_file(tmp_path / HOOK / "sae_weights.safetensors")) == names
    assert {t.dtype for t in load_file(tmp_path / HOOK / "sae_weights.safetensors").values()} == {
        torch.float32
    }


def test_topk_is_read_only(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="topk"):
        save_sae(TopKSAE(D, F, k=3), tmp_path / "t", layer=0)


def test_our_own_record_comes_along(tmp_path: Path) -> None:
    save_sae(make("standard"), tmp_path / HOOK, layer=5)
    assert open_sae(tmp_path).record == {}
    (tmp_path / "config.json").write_text('{"library": "fastzoo", "name": "n"}')
    assert open_sae(tmp_path).record["name"] == "n"
    (tmp_path / "config.json").write_text('{"library": "another"}')
    assert open_sae(tmp_path).record == {}


# --- what others write --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk"])
@pytest.mark.parametrize("subtract", [True, False])
def test_we_load_what_the_real_sae_lens_writes(tmp_path: Path, kind: str, subtract: bool) -> None:
    made, config = sae_lens.StandardSAE, sae_lens.StandardSAEConfig
    more: dict[str, Any] = {}
    if kind == "jumprelu":
        made, config = sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig
    if kind == "topk":
        made, config = sae_lens.TopKSAE, sae_lens.TopKSAEConfig
        more = {"k": 5}
    theirs = made(config(d_in=D, d_sae=F, apply_b_dec_to_input=subtract, **more))
    theirs.cfg.metadata.model_name = "gpt2"
    theirs.cfg.metadata.hook_name = "blocks.7.hook_resid_post"
    randomise(theirs, 4)
    assert theirs.b_dec.abs().max() > 0.1
    theirs.save_model(tmp_path / "x")
    loaded = open_sae(tmp_path / "x")
    assert (loaded.layer, loaded.model_name) == (7, "gpt2")
    with torch.no_grad():
        latents = theirs.encode(inputs())
        latents = latents.to_dense() if latents.is_sparse else latents
        assert_same(loaded.sae, latents, theirs(inputs()), inputs())


def test_topk_with_activations_rescaled_by_decoder_norms(tmp_path: Path) -> None:
    config = sae_lens.TopKSAEConfig(d_in=D, d_sae=F, k=5, rescale_acts_by_decoder_norm=True)
    theirs = randomise(sae_lens.TopKSAE(config), 4)
    assert theirs.W_dec.norm(dim=1).std() > 0.1
    theirs.save_model(tmp_path / "x")
    with torch.no_grad():
        latents = theirs.encode(inputs())
        latents = latents.to_dense() if latents.is_sparse else latents
        assert_same(load_sae(tmp_path / "x"), latents, theirs(inputs()), inputs())


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
@pytest.mark.parametrize("subtract", [True, False, None])
def test_flat_configurations_of_sae_lens_3_to_5(tmp_path: Path, kind: str, subtract: bool | None) -> None:
    config: dict[str, Any] = FLAT | {"architecture": kind}
    if subtract is not None:
        config["apply_b_dec_to_input"] = subtract
    tensors = saelens_weights(kind)
    folder = write(tmp_path / "x", config, tensors, "sae_weights.safetensors")
    loaded = open_sae(folder)
    assert (loaded.layer, loaded.model_name) == (18, "qwen2.5-7b")
    expected = naive(tensors, inputs(), subtract is not False)  # missing means true
    assert_same(loaded.sae, *expected, inputs())
    theirs = sae_lens.SAE.load_from_disk(str(folder), device="cpu")
    with torch.no_grad():
        assert_same(loaded.sae, theirs.encode(inputs()), theirs(inputs()), inputs())


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk"])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("how", ["expected_average_only_in", "covariance_whitening"])
def test_what_a_refused_normalisation_asks_for_makes_a_file_that_is_read(
    tmp_path: Path, kind: str, subtract: bool, how: Any
) -> None:
    made = sae_lens.registry.get_sae_class(kind)
    more = {"k": 5, "rescale_acts_by_decoder_norm": True} if kind == "topk" else {}
    config = made[1](d_in=D, d_sae=F, apply_b_dec_to_input=subtract, normalize_activations=how, **more)
    theirs = randomise(made[0](config), 4)
    theirs.save_model(tmp_path / "x")
    fold = (
        "fold_activation_whitening"
        if how == "covariance_whitening"
        else "fold_activation_norm_scaling_factor"
    )
    refused(tmp_path / "x", how, fold, "save_model")
    with torch.no_grad():
        if how == "covariance_whitening":
            mean, matrix = torch.randn(D), torch.randn(D, D) + 3 * torch.eye(D)
            scaled = (inputs() - mean) @ matrix
            expected = theirs(scaled) @ torch.linalg.inv(matrix) + mean
            latents = theirs.encode(scaled)
            theirs.fold_activation_whitening(mean, matrix, torch.linalg.inv(matrix))
        else:
            latents, expected = theirs.encode(inputs() * 1.7), theirs(inputs() * 1.7) / 1.7
            theirs.fold_activation_norm_scaling_factor(1.7)
            latents = (
                latents / 1.7 if kind == "topk" else latents
            )  # they are scaled by the shrunk rows' norms
    theirs.save_model(tmp_path / "y")
    # Rounding may swap two latents of topk that are as good as equal.
    found = load_sae(tmp_path / "y")
    with torch.no_grad():
        near = torch.isclose(found.encode(inputs()), latents, rtol=1e-3, atol=1e-3).all(1)
        assert near.float().mean() > 0.9
        assert torch.allclose(found(inputs())[near], expected[near], rtol=1e-3, atol=1e-3)
    assert_same(found, theirs.encode(inputs()).detach(), theirs(inputs()).detach(), inputs())


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_a_normalisation_that_no_weights_can_do(tmp_path: Path, how: Any) -> None:
    config = sae_lens.StandardSAEConfig(d_in=D, d_sae=F, normalize_activations=how)
    sae_lens.StandardSAE(config).save_model(tmp_path)
    refused(tmp_path, how, "each token", "use it in sae-lens")


def test_old_ways_to_say_that_nothing_is_normalised(tmp_path: Path) -> None:
    for value in (False, None, "none"):
        load_sae(saelens_folder(tmp_path / "x", normalize_activations=value))
    refused(saelens_folder(tmp_path / "x", normalize_activations=True), "fold_activation_norm_scaling_factor")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architecture": "topk", "activation_fn_str": "relu", "k": 3}, "activation 'relu' of topk"),
        ({"architecture": "jumprelu", "activation_fn_str": "topk"}, "activation 'topk' of jumprelu"),
        ({"architecture": "jumprelu", "activation_fn": "tanh-relu"}, "activation 'tanh-relu' of jumprelu"),
        ({"activation_fn_str": "relu", "activation_fn": "topk"}, "activation 'topk' of standard"),
        ({"activation_fn_str": ["topk"]}, "activation '['topk']' of standard"),
        ({"activation_fn_str": "topk"}, "k is None"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": F + 1}}, f"k is {F + 1}"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3.0}}, "k is 3.0"),
        ({"activation_fn_str": "topk", "k": 4, "activation_fn_kwargs": {"k": 3}}, "k is 4, but 3"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3, "signed": True}}, "signed is True"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm of standard"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input is false, not true or false"),
        ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input is None"),
        ({"metadata": [1]}, "metadata is [1], not an object"),
    ],
)
def test_keys_that_contradict_each_other_or_make_no_sense(
    tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    refused(saelens_folder(tmp_path, **config), says)


@pytest.mark.parametrize(
    "kind", ["gated", "abstopk", "matching_pursuit", "transcoder", "jumprelu_transcoder"]
)
def test_other_architectures_of_the_real_sae_lens(tmp_path: Path, kind: str) -> None:
    made = sae_lens.registry.get_sae_class(kind)
    made[0](made[1](d_in=D, d_sae=F, apply_b_dec_to_input=False)).save_model(tmp_path)
    refused(tmp_path, f"architecture '{kind}' is not read")


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk"])
def test_what_the_real_sae_lens_has_trained(tmp_path: Path, kind: str) -> None:
    """Its finished SAEs, and, where a file says enough, its checkpoints."""
    made = sae_lens.registry.get_sae_training_class(kind)
    more = {"matryoshka_widths": [10, F]} if kind.startswith("matryoshka") else {}
    theirs = randomise(made[0](made[1](d_in=D, d_sae=F, **more, **({"k": 4} if "topk" in kind else {}))), 4)
    theirs.save_inference_model(tmp_path / "finished")
    inference = sae_lens.SAE.load_from_disk(tmp_path / "finished")
    with torch.no_grad():
        assert_same(
            load_sae(tmp_path / "finished"),
            inference.encode(inputs()),
            inference(inputs()),
            inputs(),
            dense=True,
        )
    theirs.save_model(tmp_path / "checkpoint")
    if "batch" in kind:
        refused(tmp_path / "checkpoint", f"architecture '{kind}' is not read")
    else:
        with torch.no_grad():
            assert_same(
                load_sae(tmp_path / "checkpoint"), theirs.encode(inputs()), theirs(inputs()), inputs()
            )


def test_sae_lens_loads_the_model_in_the_type_that_we_trained_with(tmp_path: Path) -> None:
    """The toy's own files are in bfloat16, and so would its activations be."""
    from sae_lens.load_model import load_model

    arguments = {"dtype": "float32"}
    save_sae(make("standard"), tmp_path, layer=5, metadata={"model_from_pretrained_kwargs": arguments})
    about = sae_lens.SAE.load_from_disk(tmp_path).cfg.metadata
    model = load_model(about.model_class_name, str(MODEL), "cpu", about.model_from_pretrained_kwargs)
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}
    assert open_sae(tmp_path).layer == 5


def test_an_unused_scaling_factor_is_ignored_and_a_used_one_refused(tmp_path: Path) -> None:
    tensors = saelens_weights() | {"scaling_factor": torch.full((F,), 2.0)}
    config = FLAT | {"architecture": "standard", "apply_b_dec_to_input": False}
    folder = write(tmp_path / "x", config, tensors, "sae_weights.safetensors")
    assert_same(load_sae(folder), *naive(tensors, inputs(), False), inputs())
    config = config | {"finetuning_scaling_factor": True}
    write(tmp_path / "x", config, tensors, "sae_weights.safetensors")
    with pytest.raises(InputError, match="finetuning_scaling_factor"):
        load_sae(folder)


@pytest.mark.parametrize("d_sae_said", [True, False])
def test_sparsify_folder(tmp_path: Path, d_sae_said: bool) -> None:
    folder, w = sparsify_folder(tmp_path)
    x = inputs()
    if not d_sae_said:  # expansion_factor says it
        w = {n: torch.cat([t] * 2)[: 2 * D] if t.shape[0] == F else t for n, t in w.items()}
        folder, _ = sparsify_folder(tmp_path, num_latents=0, expansion_factor=2)
        save_file({n: t.contiguous() for n, t in w.items()}, folder / "sae.safetensors")
    v = {n: t.double().numpy() for n, t in w.items()}
    pre = (x.double().numpy() - v["b_dec"]) @ v["encoder.weight"].T + v["encoder.bias"]
    latents = np.zeros_like(pre)
    for row, values in enumerate(pre):
        for i in sorted(range(len(values)), key=lambda i: -values[i])[:4]:
            latents[row, i] = max(values[i], 0)
    for root in (tmp_path, folder):
        loaded = open_sae(root)
        assert (loaded.layout, loaded.layer, loaded.sae.architecture) == ("sparsify", 11, "topk")
        assert_same(loaded.sae, latents, latents @ v["W_dec"] + v["b_dec"], x)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"transcode": True}, "transcoder"),
        ({"skip_connection": True}, "transcoder"),
        ({"activation": "groupmax"}, "groupmax"),
        ({"k": F + 1}, f"k is {F + 1}"),
        ({"k": 0}, "k is 0"),
        ({"k": "4"}, "k is 4"),
    ],
)
def test_sparsify_variants_that_are_not_read(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder, _ = sparsify_folder(tmp_path, **config)
    with pytest.raises(InputError, match=message):
        load_sae(folder)


def test_gemma_scope_parameters(tmp_path: Path) -> None:
    loaded = open_sae(scope_folder(tmp_path))
    assert (loaded.layout, loaded.sae.architecture) == ("gemma-scope", "jumprelu")
    assert_same(loaded.sae, *naive(saelens_weights("jumprelu"), inputs(), False), inputs())
    assert loaded.layer == 20


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ae.pt", "model.bin", "sae.pth", "x.pkl", "y.ckpt", "z.pickle"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "p" / name
    path.parent.mkdir()
    path.write_bytes(b"never opened")
    for source in (path, path.parent, tmp_path):
        with pytest.raises(InputError) as caught:
            load_sae(source)
        assert name in str(caught.value)
        assert "pickle" in str(caught.value)
        assert "\n" not in str(caught.value)


def refused(folder: Path, *mentions: str) -> None:
    with pytest.raises(InputError) as caught:
        load_sae(folder)
    message = str(caught.value)
    assert message.isprintable()
    for mention in mentions:
        assert mention in message


def rewritten(folder: Path, **changes: torch.Tensor | None) -> Path:
    tensors = load_file(folder / "sae_weights.safetensors") | changes
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
def test_missing_tensors(tmp_path: Path, name: str) -> None:
    folder = saelens_folder(tmp_path / "x", "jumprelu")
    refused(rewritten(folder, **{name: None}), "lacks", name)


def test_extra_tensors(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "x")
    refused(rewritten(folder, surprise=torch.ones(3)), "unexpected surprise")


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_wrong_shapes(tmp_path: Path, name: str) -> None:
    folder = saelens_folder(tmp_path / "x")
    old = load_file(folder / "sae_weights.safetensors")[name]
    # Transposed, or one longer: never broadcast, never reshaped.
    new = old.t().contiguous() if old.ndim == 2 else torch.cat([old, old[:1]])
    refused(rewritten(folder, **{name: new}), name, str(tuple(new.shape)), str(tuple(old.shape)))
    refused(rewritten(folder, **{name: old[:1].clone()}), name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["W_enc", "b_dec"])
def test_values_that_are_not_finite(tmp_path: Path, name: str, bad: float) -> None:
    folder = saelens_folder(tmp_path / "x")
    tensor = load_file(folder / "sae_weights.safetensors")[name]
    tensor.view(-1)[3] = bad
    refused(rewritten(folder, **{name: tensor}), name, "NaN or infinity")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_wrong_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = saelens_folder(tmp_path / "x")
    refused(rewritten(folder, b_enc=torch.ones(F, dtype=dtype)), "b_enc", "not floating point")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_dtypes_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = saelens_folder(tmp_path / "x")
    tensors = {n: t.to(dtype) for n, t in saelens_weights().items()}
    sae = load_sae(rewritten(folder, **tensors))
    assert torch.equal(sae.W_enc, tensors["W_enc"].float())


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_safetensors(tmp_path: Path, keep: float) -> None:
    folder = saelens_folder(tmp_path / "x")
    path = folder / "sae_weights.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    refused(folder, "not a readable safetensors file")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_npz(tmp_path: Path, keep: float) -> None:
    folder = scope_folder(tmp_path)
    path = folder / "params.npz"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    refused(folder, "not a readable params.npz")


def test_damaged_bytes_inside_an_npz(tmp_path: Path) -> None:
    folder = scope_folder(tmp_path)
    data = bytearray((folder / "params.npz").read_bytes())
    data[400:420] = bytes(20)  # the checksum of W_enc no longer holds
    (folder / "params.npz").write_bytes(data)
    refused(folder, "params.npz")


def test_object_arrays_are_not_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    objects = np.empty(F, dtype=object)
    objects[0] = Trap()
    folder = scope_folder(tmp_path, threshold=objects)
    refused(folder, "params.npz")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": None},
        {"W_enc": None},
        {"W_dec": np.zeros((D, F), np.float32)},
        {"b_enc": np.zeros((F, 1), np.float32)},
        {"W_enc": np.zeros(D, np.float32)},
        {"b_dec": np.full(D, np.nan, np.float32)},
        {"b_dec": np.zeros(D, np.int64)},
        {"b_dec": np.zeros(D, np.complex64)},
        {"b_dec": np.array(["x"] * D)},
    ],
)
def test_wrong_arrays_in_an_npz(tmp_path: Path, changes: dict[str, Any]) -> None:
    refused(scope_folder(tmp_path, **changes))


def test_an_npz_that_claims_an_absurd_size_allocates_nothing(tmp_path: Path) -> None:
    folder = scope_folder(tmp_path)
    for shape in ((1 << 20, 1 << 30), (1 << 20, 1 << 20), (1 << 62, 1 << 62), (-1, -1), (0, 5), (3,)):
        write_npz(folder / "params.npz", {"W_enc": (shape, bytes(64))})
        refused(folder, "params.npz", str(shape))


def write_npz(
    path: Path, arrays: dict[str, tuple[tuple[int, ...], bytes]], method: int = zipfile.ZIP_STORED
) -> None:
    """An archive whose headers say what is asked for, whatever the bytes are."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, (shape, data) in arrays.items():
            header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode() + b"\n"
            head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
            archive.writestr(f"{name}.npy", head + data)


def test_an_npz_that_unpacks_to_a_thousand_times_its_size_is_not_unpacked(tmp_path: Path) -> None:
    folder = scope_folder(tmp_path)
    shapes = {"W_enc": (64, 1 << 16), "b_enc": (1 << 16,), "W_dec": (1 << 16, 64), "b_dec": (64,)}
    arrays = {
        name: (shape, bytes(4 * int(np.prod(shape))))
        for name, shape in {**shapes, "threshold": (1 << 16,)}.items()
    }
    write_npz(folder / "params.npz", arrays, zipfile.ZIP_DEFLATED)
    refused(folder, "params.npz", "unpack to 34", "no weights")
    arrays = {name: (shape, data) for name, (shape, data) in arrays.items() if name != "b_dec"}
    write_npz(folder / "params.npz", arrays)
    refused(folder, "lacks b_dec")


def test_compressed_parameters_are_read(tmp_path: Path) -> None:
    folder = scope_folder(tmp_path)
    arrays = {n: t.numpy() for n, t in saelens_weights("jumprelu").items()}
    np.savez_compressed(folder / "params.npz", **arrays)
    assert torch.equal(load_sae(folder).W_enc, saelens_weights("jumprelu")["W_enc"])
    for name in ("scaling_factor", "W_skip", "more"):  # it may change what the SAE computes
        np.savez(folder / "params.npz", **arrays, **{name: np.zeros(3)})
        refused(folder, f"unexpected {name}")


@pytest.mark.parametrize(
    ("share", "says"), [(0.75, "MiB of weights; this machine has"), (300, "sae_weights.safetensors")]
)
def test_weights_beyond_the_memory_are_refused_before_they_are_read(
    tmp_path: Path, share: float, says: str
) -> None:
    """In float16 on the disk they take ``share`` of the memory, in float32 twice that."""
    d_in = 1 << 14
    d_sae = min(1 << 24, int(share * machine_memory()) // (4 * d_in))
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    header, size = {}, 0
    for name, shape in shapes.items():
        offsets = [size, size := size + 2 * math.prod(shape)]
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": offsets}
    folder = saelens_folder(tmp_path / "x", d_in=d_in, d_sae=d_sae)
    text = json.dumps(header).encode()
    with (folder / "sae_weights.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        try:
            file.truncate(8 + len(text) + size)  # takes no space
        except OSError:
            pytest.skip("this file system has no file of that size")
    refused(folder, says)


@pytest.mark.parametrize(
    ("config", "mentions"),
    [
        ({"d_sae": 1 << 23, "d_in": 1 << 23}, ["W_dec", "its cfg.json says"]),
        ({"d_sae": 1 << 62}, ["d_sae", "not a sensible size"]),
        ({"d_sae": -F}, ["d_sae"]),
        ({"d_sae": 0}, ["d_sae"]),
        ({"d_sae": True}, ["d_sae"]),
        ({"d_sae": float(F)}, ["d_sae"]),
        ({"d_sae": str(F)}, ["d_sae"]),
        ({"d_in": None}, ["d_in"]),
        ({"architecture": "gated"}, ["'gated' is not read"]),
        ({"architecture": ["standard"]}, ["architecture"]),
        ({"architecture": None}, ["architecture"]),
        ({"architecture": "jumprelu"}, ["threshold"]),
        ({"normalize_activations": "layer_norm"}, ["layer_norm"]),
        ({"activation_fn_str": "tanh-relu"}, ["tanh-relu"]),
    ],
)
def test_configurations_that_are_not_read(
    tmp_path: Path, config: dict[str, Any], mentions: list[str]
) -> None:
    refused(saelens_folder(tmp_path / "x", **config), *mentions)


def test_nothing_is_allocated_for_an_absurd_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header of the weights contradicts the configuration before any tensor is made."""
    folder = saelens_folder(tmp_path / "x", d_in=1 << 20, d_sae=1 << 20)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("allocated")

    monkeypatch.setattr(torch, "zeros", fail)
    monkeypatch.setattr(torch, "empty", fail)
    refused(folder, "its cfg.json says", "(1048576, 1048576)")


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"x"', "[" * 100_000, "\udcff", '{"d_in": 1', "null"])
def test_broken_configurations(tmp_path: Path, text: str) -> None:
    folder = saelens_folder(tmp_path / "x")
    (folder / "cfg.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(folder, "cfg.json")


def test_a_configuration_that_is_a_pipe_or_huge_is_not_read(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "x")
    (folder / "cfg.json").unlink()
    os.mkfifo(folder / "cfg.json")
    refused(folder, "cfg.json is not a file")
    (folder / "cfg.json").unlink()
    with (folder / "cfg.json").open("wb") as file:
        file.truncate(1 << 30)
    refused(folder, "cfg.json", "more than 16777216 bytes")


@pytest.mark.parametrize(
    ("about", "layer"),
    [
        ({"hook_name": "blocks.18.hook_resid_post"}, 18),
        ({"hook_name": "model/layers/7"}, 7),
        ({"hook_name": ""}, None),
        ({"hook_layer": True}, None),
        ({"hook_layer": -1}, None),
        ({"hook_layer": 10**30}, None),
        ({"hook_point": "blocks.3.hook_resid_post", "hook_point_layer": 3}, 3),
        ({"hook_name": "blocks.4.hook_resid_pre", "hook_layer": 4}, 3),
    ],
)
def test_the_layer_is_a_number_of_four_digits_or_unknown(
    tmp_path: Path, about: dict[str, Any], layer: int | None
) -> None:
    assert open_sae(saelens_folder(tmp_path / "x", metadata=about)).layer == layer
    assert open_sae(saelens_folder(tmp_path / "x", **about)).layer == layer


@pytest.mark.parametrize(("name", "shown"), [("org/m", "org/m"), ("a\nb", "a b"), (7, None), ({}, None)])
def test_a_model_s_name_is_one_line_of_text_or_unknown(tmp_path: Path, name: Any, shown: str | None) -> None:
    assert open_sae(saelens_folder(tmp_path / "x", model_name=name)).model_name == shown


def test_weights_are_finite_in_the_type_that_is_asked_for(tmp_path: Path) -> None:
    tensors = saelens_weights() | {"b_dec": torch.full((D,), 1e5)}
    folder = saelens_folder(tmp_path / "x")
    save_file(tensors, folder / "sae_weights.safetensors")
    assert load_sae(folder, dtype=torch.bfloat16).b_dec[0] > 9e4
    with pytest.raises(InputError, match=r"b_dec hold NaN or infinity \(as float16\)"):
        load_sae(folder, dtype=torch.float16)


def test_names_of_tensors_are_shown_in_one_short_line(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "x")
    more = {"a\nb" + "c" * 9000: torch.zeros(2)}
    save_file(saelens_weights() | more, folder / "sae_weights.safetensors")
    refused(folder, "unexpected a bccc")


def test_a_missing_configuration(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "x")
    (folder / "cfg.json").unlink()
    refused(folder, "cfg.json is missing")


def test_several_saes_in_one_folder_must_be_told_apart(tmp_path: Path) -> None:
    for layer in (3, 4):
        saelens_folder(tmp_path / f"blocks.{layer}.hook_resid_post")
    refused(tmp_path, "holds 2 SAEs", "blocks.3.hook_resid_post")


def test_an_empty_folder_a_file_and_nothing_at_all(tmp_path: Path) -> None:
    refused(tmp_path, "no SAE here")
    refused(saelens_folder(tmp_path / "x") / "cfg.json", "give the folder")
    refused(tmp_path / "nowhere", "no folder")
    with pytest.raises(InputError, match="'' is not an SAE name"):
        load_sae("")


@pytest.mark.parametrize("source", ["x" * 300, "x" * 300 + "/y", "~nobody-here/x", "~\0", "a\nb/c"])
def test_what_can_be_no_path_is_not_there(source: str, offline: None) -> None:
    with pytest.raises(InputError) as caught:
        load_sae(source)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    long_name = "x" * 300 + "-L1-8x-standard"
    with pytest.raises(NotFoundError, match="not on this machine"):
        load_sae(long_name)


def test_a_name_is_looked_for_here_and_in_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match="tiny-chat-L5-2x-standard is not published"):
        load_sae("tiny-chat-L5-2x-standard")
    sae = make("standard")
    save_sae(sae, tmp_path / "runs" / "any" / "tiny-chat-L5-2x-standard" / HOOK, layer=5)
    assert torch.equal(load_sae("Tiny-Chat-L5-2x-standard").W_enc, sae.W_enc)
