"""The table of keys: what it says of each key is what the readers do, and it has every key of the libraries."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import torch
from sae_files import FLAT, D, F, inputs, saelens_folder, saelens_weights, scope_folder, sparsify_folder
from sae_lens.loading.pretrained_sae_loaders import LLM_METADATA_KEYS
from sae_lens.registry import get_sae_class, get_sae_training_class

from fastzoo.core.errors import InputError
from fastzoo.loading import load_sae, open_sae
from fastzoo.saes import ARCHITECTURES
from fastzoo.saes.formats import keys
from fastzoo.saes.formats.keys import HARMLESS, OBEYED, REFUSED, Key
from fastzoo.saes.formats.loaded import LoadedSAE
from fastzoo.saes.places import GEMMA_SCOPE_SITES

README = Path(keys.__file__).with_name("README.md")
Check = Callable[[LoadedSAE], bool]
TOPK = {"architecture": "topk", "k": 3}
SAID: dict[str, tuple[dict[str, Any], Check | str]] = {
    # Of each obeyed key: a configuration, and what it makes of the SAE, or what the error says.
    "architecture": (TOPK, lambda x: x.sae.architecture == "topk"),
    "d_in": ({"d_in": D + 1}, "its cfg.json says"),
    "d_sae": ({"d_sae": F + 1}, "its cfg.json says"),
    "k": (TOPK, lambda x: getattr(x.sae, "k", 0) == 3),
    "activation_fn_str": ({"activation_fn_str": "topk", "k": 3}, lambda x: x.sae.architecture == "topk"),
    "activation_fn": ({"activation_fn": "topk", "k": 3}, lambda x: x.sae.architecture == "topk"),
    "activation_fn_kwargs": (
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}},
        lambda x: getattr(x.sae, "k", 0) == 3,
    ),
    "apply_b_dec_to_input": ({"apply_b_dec_to_input": True}, lambda x: x.sae.subtracts_b_dec),
    "rescale_acts_by_decoder_norm": (
        TOPK | {"rescale_acts_by_decoder_norm": True},
        lambda x: torch.allclose(x.sae.W_dec.norm(dim=1), torch.ones(F)),
    ),
    "metadata": ({"metadata": {"model_name": "org/m"}}, lambda x: x.model_name == "org/m"),
    "model_name": ({"model_name": "org/m"}, lambda x: x.model_name == "org/m"),
    "hook_name": ({"hook_name": "blocks.4.hook_resid_pre"}, lambda x: x.layer == 3),
    "hook_point": ({"hook_point": "blocks.3.hook_resid_post"}, lambda x: x.layer == 3),
    "hf_hook_name": ({"hf_hook_name": "model.layers.3.output"}, lambda x: x.layer == 3),
    "hook_layer": ({"hook_layer": 3}, lambda x: x.layer == 3),
    "hook_point_layer": ({"hook_point_layer": 3}, lambda x: x.layer == 3),
    "model_from_pretrained_kwargs": (
        {"model_from_pretrained_kwargs": {"revision": "v2"}},
        lambda x: x.model_revision == "v2",
    ),
    "sinks": ({"sinks": {"norm": 9.0, "median_norm": 1.0, "skipped": True}}, lambda x: x.sae.skips_sinks),
    "sae_lens_training_version": ({"sae_lens_training_version": "3.20.0"}, lambda x: not x.centred),
}
SPARSIFY_SAID: dict[str, tuple[dict[str, Any], Check | str]] = {
    "d_in": ({"d_in": D + 1}, "its cfg.json says"),
    "num_latents": ({"num_latents": F + 1}, "its cfg.json says"),
    "expansion_factor": ({"num_latents": 0, "expansion_factor": 5}, f"({5 * D}, {D})"),
    "k": ({"k": 7}, lambda x: getattr(x.sae, "k", 0) == 7),
    "activation": ({"activation": "groupmax"}, "groupmax"),
}


def rows(table: tuple[Key, ...], status: str) -> Iterator[tuple[str, Key]]:
    return ((name, row) for row in table for name in row.names if row.status == status)


def ids(value: Any) -> str:
    return value if isinstance(value, str) else ""


def same_as_before(folder: Path, changed: Path) -> None:
    before, after = open_sae(folder), open_sae(changed)
    assert torch.equal(before.sae.encode(inputs()), after.sae.encode(inputs()))
    assert torch.equal(before.sae(inputs()), after.sae(inputs()))
    assert (before.layer, before.model_name) == (after.layer, after.model_name)


def assert_refused(folder: Path, *mentions: str) -> None:
    with pytest.raises(InputError) as caught:
        load_sae(folder)
    assert str(caught.value).isprintable() and all(mention in str(caught.value) for mention in mentions)


@pytest.mark.parametrize(
    ("name", "moved"),
    [(n, moved) for n, row in rows(keys.SAELENS, OBEYED) for moved in (False, True)[: 1 + row.described]],
)
def test_a_key_of_saelens_that_is_obeyed(tmp_path: Path, name: str, moved: bool) -> None:
    config, expected = SAID[name]
    config = {"metadata": config} if moved else config
    if isinstance(expected, str):
        assert_refused(saelens_folder(tmp_path, **config), expected)
    else:
        assert not expected(open_sae(saelens_folder(tmp_path / "without")))
        assert expected(open_sae(saelens_folder(tmp_path / "with", **config)))


@pytest.mark.parametrize(("name", "row"), rows(keys.SAELENS, REFUSED), ids=ids)
@pytest.mark.parametrize("moved", [False, True])
def test_a_key_of_saelens_that_is_refused(tmp_path: Path, name: str, row: Key, moved: bool) -> None:
    def folder(value: Any) -> Path:
        config = {name: value}
        return saelens_folder(tmp_path / "x", **({"metadata": config} if moved else config))

    for value in row.neutral:
        same_as_before(saelens_folder(tmp_path / "without"), folder(value))
    single = [(value, advice) for values, advice in row.values for value in values.split()]
    for value, advice in (*single, (7, row.what)):
        if moved and not row.described:  # SAELens reads it at the top only
            same_as_before(saelens_folder(tmp_path / "without"), folder(value))
        else:
            assert_refused(folder(value), f"{name} is {value}", advice)


@pytest.mark.parametrize(("name", "row"), rows(keys.SAELENS, HARMLESS), ids=ids)
@pytest.mark.parametrize("value", [7, "x", [1], True])
def test_a_key_of_saelens_without_meaning(tmp_path: Path, name: str, row: Key, value: Any) -> None:
    config = {"hook_name": "blocks.3.hook_resid_post"}
    plain = saelens_folder(tmp_path / "plain", **config)
    same_as_before(plain, saelens_folder(tmp_path / "flat", **config, **{name: value}))
    same_as_before(plain, saelens_folder(tmp_path / "moved", metadata=config | {name: value}))


@pytest.mark.parametrize("name", [*keys.SAELENS_NOTES, "sparsity"])
def test_a_key_that_no_library_has(tmp_path: Path, name: str) -> None:
    """By its beginning a note; else, if it is set, it may mean anything. SAELens' metadata is free."""
    plain, unknown = saelens_folder(tmp_path / "plain"), f"{name}x"
    same_as_before(plain, saelens_folder(tmp_path / "off", **{unknown: False}))
    same_as_before(plain, saelens_folder(tmp_path / "moved", metadata={unknown: 7}))
    folder = saelens_folder(tmp_path / "on", **{unknown: 7})
    if name in keys.SAELENS_NOTES:
        same_as_before(plain, folder)
    else:
        assert_refused(folder, f"{unknown} is 7", "may change what the SAE computes")
    for place in ("hook_side", "hf_hook_side"):
        assert_refused(
            saelens_folder(tmp_path / "hook", metadata={place: "left"}), f"metadata {place} is left"
        )


def test_a_key_at_the_top_is_refused_whatever_the_metadata_says(tmp_path: Path) -> None:
    config = {"normalize_activations": "layer_norm", "metadata": {"normalize_activations": "none"}}
    assert_refused(saelens_folder(tmp_path, **config), "normalize_activations is layer_norm")
    # What the model is, though, is what the metadata says since version 6.
    config = {"hook_name": "blocks.1.hook_mlp_out", "metadata": {"hook_name": "blocks.2.hook_resid_post"}}
    assert open_sae(saelens_folder(tmp_path, **config)).layer == 2


@pytest.mark.parametrize("holder", ["model_from_pretrained_kwargs", "activation_fn_kwargs"])
def test_arguments_within_keys_of_saelens(tmp_path: Path, holder: str) -> None:
    table = {
        "model_from_pretrained_kwargs": keys.MODEL_ARGUMENTS,
        "activation_fn_kwargs": keys.ACTIVATION_ARGUMENTS,
    }[holder]
    plain = saelens_folder(tmp_path / "plain")

    def folder(**arguments: Any) -> Path:
        return saelens_folder(tmp_path / "x", **{holder: arguments})

    for name, row in rows(table, REFUSED):
        assert_refused(folder(**{name: 7}), f"{holder} {name} is 7", row.what)
        for value in row.neutral:
            same_as_before(plain, folder(**{name: value}))
    for name, _ in rows(table, HARMLESS):
        same_as_before(plain, folder(**{name: 7}))
    assert_refused(folder(surprise=7), f"{holder} surprise is 7")
    assert_refused(saelens_folder(tmp_path / "x", **{holder: [1]}), f"{holder} is [1], not an object")
    assert {name for name, _ in rows(table, OBEYED)} <= {
        "k",
        "revision",
        "center_writing_weights",
    }  # tested with the key that holds them, and in test_written.py


@pytest.mark.parametrize(("name", "row"), [(n, r) for r in keys.SPARSIFY for n in r.names], ids=ids)
def test_a_key_of_sparsify(tmp_path: Path, name: str, row: Key) -> None:
    plain = sparsify_folder(tmp_path / "plain")[0]
    if row.status == OBEYED:
        config, expected = SPARSIFY_SAID[name]
        folder = sparsify_folder(tmp_path, **config)[0]
        if isinstance(expected, str):
            assert_refused(folder, expected)
        else:
            assert expected(open_sae(folder)) and not expected(open_sae(plain))
    elif row.status == REFUSED:
        assert_refused(sparsify_folder(tmp_path, **{name: True})[0], f"{name} is True", row.what)
        same_as_before(plain, sparsify_folder(tmp_path, **{name: False})[0])
    else:
        for value in (True, False, 7):
            same_as_before(plain, sparsify_folder(tmp_path, **{name: value})[0])


@pytest.mark.parametrize("name", ["gram", "signed_k", "jumprelu", "encoder_scale", "W"])
def test_an_option_of_sparsify_that_is_not_known(tmp_path: Path, name: str) -> None:
    plain = sparsify_folder(tmp_path / "plain")[0]
    for value in (True, 2.5, "gram", [3], {"a": 1}):
        assert_refused(sparsify_folder(tmp_path, **{name: value})[0], f"{name} is ")
    for value in (False, None, 0, 0.0, "", "none", [], {}):
        same_as_before(plain, sparsify_folder(tmp_path, **{name: value})[0])


def test_what_sparsify_takes_for_missing_keys(tmp_path: Path) -> None:
    """Its SparseCoderConfig: k and the expansion factor are 32, and TopK is meant."""
    folder, w = sparsify_folder(tmp_path, rows=32 * D)
    (folder / "cfg.json").write_text(f'{{"d_in": {D}}}')
    sae = load_sae(folder)
    assert (sae.d_sae, sae.k, sae.architecture) == (32 * D, 32, "topk")
    assert torch.equal(sae.W_enc, w["encoder.weight"].t())


@pytest.mark.parametrize("name", [name for row in keys.GEMMA_SCOPE for name in row.names])
def test_an_array_of_gemma_scope(tmp_path: Path, name: str) -> None:
    arrays = {n: t.numpy() for n, t in saelens_weights("jumprelu").items()}
    usual = name.replace("w_", "W_")
    changed = arrays[usual] + 1
    sae = load_sae(scope_folder(tmp_path, **{usual: None, name: changed}))
    assert torch.equal(getattr(sae, usual), torch.from_numpy(changed))
    assert_refused(scope_folder(tmp_path / "without", **{usual: None}), f"lacks {usual}")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_table_has_every_key_of_the_real_sae_lens(kind: str) -> None:
    known = {name for row in keys.SAELENS for name in row.names}
    for config in (get_sae_class(kind)[1], get_sae_training_class(kind)[1]):
        assert {field.name for field in dataclasses.fields(config)} <= known
    runner = {field.name for field in dataclasses.fields(sae_lens.LanguageModelSAERunnerConfig)}
    notes = {name for name in runner if name.startswith(keys.SAELENS_NOTES)}
    assert runner - notes - {"sae"} <= known
    described = {name for row in keys.SAELENS if row.described for name in row.names}
    assert described >= LLM_METADATA_KEYS
    assert set(FLAT) - notes <= known | {"sae_lens_training_version"}


def test_no_key_is_listed_twice() -> None:
    for table in (keys.SAELENS, keys.MODEL_ARGUMENTS, keys.ACTIVATION_ARGUMENTS, keys.SPARSIFY):
        names = [name for row in table for name in row.names]
        assert len(set(names)) == len(names)
        assert {row.status for row in table} <= {OBEYED, REFUSED, HARMLESS}


def as_markdown(table: tuple[Key, ...]) -> str:
    def cells(row: Key) -> str:
        named = ", ".join(f"`{name}`" + "*" * row.described for name in row.names)
        single = "".join(f"; {', '.join(v.split())}: {advice}" for v, advice in row.values)
        return f"| {named} | {row.status} | {row.what}{single} |"

    return "\n".join(["| key | is | what it says, or what to do |", "|---|---|---|", *map(cells, table)])


def readme_tables() -> dict[str, str]:
    """The tables of the README, by the heading that they stand under."""
    sites = {f"`{n}`": f"refused: {what}" if what else "read" for n, what in GEMMA_SCOPE_SITES.items()}
    lines = [
        "| part of a name | SAEs of it are |",
        "|---|---|",
        *(f"| {n} | {s} |" for n, s in sites.items()),
    ]
    return {
        "SAELens": as_markdown(keys.SAELENS),
        "SAELens: model_from_pretrained_kwargs": as_markdown(keys.MODEL_ARGUMENTS),
        "SAELens: activation_fn_kwargs": as_markdown(keys.ACTIVATION_ARGUMENTS),
        "sparsify": as_markdown(keys.SPARSIFY),
        "Gemma Scope": as_markdown(keys.GEMMA_SCOPE),
        "Gemma Scope: names of repositories and folders": "\n".join(lines),
    }


def test_the_readme_has_the_tables() -> None:
    """``python tests/saes/test_keys.py`` writes them anew."""
    text = README.read_text()
    assert with_tables(text) == text


def with_tables(text: str) -> str:
    for heading, table in readme_tables().items():
        pattern = rf"(?ms)^(## {re.escape(heading)}\n.*?)^\| .*?(?=\n(?!\|))"
        assert re.search(pattern, text), heading
        text = re.sub(pattern, lambda match, table=table: match[1] + table, text)
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
