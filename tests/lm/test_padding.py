"""Rows of a padded batch against each alone."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from long.families import dialogues
from tiny_families import tiny_config, tiny_model

from fastzoo.lm.likelihood import answer_nlls
from fastzoo.lm.padding import batch_key, padding_is_exact

DISTURBED = ["recurrent_gemma", "rwkv", "xlstm", "bart", "trocr", "git"]
"""Recurrences that padding gets into, places that are counted without a mask, and with a cache only."""


@pytest.mark.parametrize("family", [*DISTURBED, "llama", "whisper", "mamba", "bloom"])
def test_likelihoods_are_those_of_one_row_alone(family: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(tiny_config(family))
    whole = [s.ids.tolist() for s in dialogues([9, 30, 12, 9])]
    with caplog.at_level(logging.WARNING):
        found = answer_nlls(model, [ids[:-4] for ids in whole], [ids[-4:] for ids in whole])
        key = batch_key(model)
    for ids, nlls in zip(whole, found, strict=True):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -5:-1].log_softmax(-1)
        alone = [-row[token].item() for row, token in zip(logits, ids[-4:], strict=True)]
        np.testing.assert_allclose(nlls, alone, rtol=1e-4, atol=1e-5)
    exact = family not in DISTURBED
    assert padding_is_exact(model) == exact and (key(9, 20) == key(12, 23)) == exact
    assert key(9, 20) == key(9, 15)
    said = [r.message for r in caplog.records if "of their length only" in r.message]
    assert len(said) == (not exact) and all("\n" not in line for line in said)
