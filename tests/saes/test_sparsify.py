"""Files that the real sparsify writes are read as it computes them; what it computes otherwise is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomise
from sae_files import D, F, inputs

from fastzoo.core.errors import InputError
from fastzoo.loading import load_sae, open_sae

sparsify = pytest.importorskip("sparsify", reason="eai-sparsify is not installed")


def written(folder: Path, **options: Any) -> Any:
    """What sparsify computes with, saved in ``folder``."""
    config = sparsify.SparseCoderConfig(**{"num_latents": F, "k": 5} | options)
    theirs = randomise(sparsify.SparseCoder(D, config), 4)
    theirs.save_to_disk(folder)
    return theirs


def latents_of(theirs: Any, x: torch.Tensor) -> torch.Tensor:
    top = theirs.encode(x)
    return torch.zeros(len(x), theirs.num_latents).scatter_(1, top.top_indices, top.top_acts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": F},
        {"k": 1, "normalize_decoder": False},
        {"num_latents": 0, "expansion_factor": 3},
        {"multi_topk": True},
    ],
)
def test_an_sae_of_sparsify(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = written(tmp_path / "layers.11", **options)
    loaded = open_sae(tmp_path)
    assert (loaded.layer, loaded.sae.d_sae) == (11, theirs.num_latents)
    with torch.no_grad():
        latents = latents_of(theirs, inputs())
        np.testing.assert_allclose(loaded.sae.encode(inputs()), latents, rtol=1e-6, atol=1e-6)
        expected = latents @ theirs.W_dec + theirs.b_dec
        np.testing.assert_allclose(loaded.sae(inputs()), expected, rtol=1e-6, atol=2e-6)
        top = theirs.encode(inputs())
        np.testing.assert_allclose(
            loaded.sae(inputs()), theirs.decode(top.top_acts, top.top_indices), rtol=1e-6, atol=2e-6
        )
    assert latents.abs().max() > 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"transcode": True}, "transcode is True"),
        ({"skip_connection": True}, "skip_connection is True"),
        ({"activation": "groupmax"}, "activation 'groupmax'"),
    ],
)
def test_other_coders_of_sparsify(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    written(tmp_path / "layers.11", **options)
    with pytest.raises(InputError, match=says):
        load_sae(tmp_path)


def test_hookpoints_and_seeds_of_sparsify(tmp_path: Path) -> None:
    """Its trainer saves ``<run>/<hookpoint>`` or ``<run>/<hookpoint>/seed<N>``, and under ``best``."""
    for name, layer in (("layers.5", 5), ("layers.5/seed3", 5), ("best/h.7", 7), ("gpt_neox.layers.2", 2)):
        written(tmp_path / name)
        assert open_sae(tmp_path / name).layer == layer
    for name in ("layers.5.mlp", "h.7.attn", "layers.5.mlp/seed1", "embed_tokens"):
        written(tmp_path / name)
        with pytest.raises(InputError, match="is not the residual stream after a layer"):
            open_sae(tmp_path / name)


def test_the_table_has_every_key_of_the_real_sparsify(tmp_path: Path) -> None:
    from fastzoo.core.files import read_json
    from fastzoo.saes.formats.keys import SPARSIFY

    written(tmp_path)
    assert set(read_json(tmp_path / "cfg.json")) <= {name for row in SPARSIFY for name in row.names}
