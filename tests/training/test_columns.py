"""The held-out activations that ``training.l0`` is to hold on."""

from __future__ import annotations

import pytest
import torch
from conftest import random_dialogues, small_model

from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.packing import Pack
from fastzoo.training import columns
from fastzoo.training.columns import held_out_columns


@pytest.mark.parametrize(
    ("read", "rows", "chosen", "step"),
    [(160, 40, [1, 3, 5, 7], 4), (10**6, 10**6, list(range(8)), 1), (1, 1000, [4], 1)],
)
def test_rows_come_evenly_from_dialogues_spread_over_all(
    read: int, rows: int, chosen: list[int], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "HELD_OUT_TOKENS", read)
    monkeypatch.setattr(columns, "HELD_OUT_ROWS", rows)
    model, dialogues = small_model("qwen2"), random_dialogues([40] * 8)
    reader = ResidualReader(model, pack_tokens=1)  # one dialogue in each pack
    found = held_out_columns(reader, dialogues, [1, 2])
    assert found.keys() == {"L1", "L2"}
    with torch.inference_mode():
        for layer in (1, 2):
            alone = [reader.read(Pack.of([dialogues[i]], reader.device), [layer])[layer] for i in chosen]
            assert torch.equal(
                found[f"L{layer}"], torch.cat([acts_TD[step // 2 :: step] for acts_TD in alone])
            )


def test_every_process_finds_out_the_same_about_the_model() -> None:
    """Also one that has no SAE: all decide alike how dialogues are read."""
    dialogues = random_dialogues([40, 10, 90, 3])
    readers = [ResidualReader(small_model("qwen2")) for _ in range(2)]
    found = [held_out_columns(x, dialogues, layers) for x, layers in zip(readers, ([1], []), strict=True)]
    assert found[0].keys() == {"L1"} and not found[1]
    assert readers[0].state() == readers[1].state() != ResidualReader(small_model("qwen2")).state()
