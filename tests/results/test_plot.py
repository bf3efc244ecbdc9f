"""The picture of a training log, looked at pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastzoo.results.plot import plot_training


@pytest.mark.parametrize("apart", [False, True])
def test_both_curves_are_drawn_where_sinks_make_a_difference(apart: bool, tmp_path: Path) -> None:
    from matplotlib.image import imread

    log = [
        {
            "tokens": 1000.0 * i,
            "dead_latents": 3.0,
            "lr": 1e-3,
            "l0": 20.0,
            "l0_without_sinks": 20.0,
            "fvu": 0.5 / i,
            "fvu_without_sinks": (5 if apart else 1.0001) * 0.5 / i,
        }
        for i in range(1, 20)
    ]
    plot_training(log, "an SAE", tmp_path / "a.png")
    rows, columns = (slice(40, 280), slice(60, 480))  # inside of the first panel
    panel = imread(tmp_path / "a.png")[rows, columns, :3]
    grey = abs(panel - 0xB9 / 255).max(2) < 0.01
    blue = abs(panel - [0x2F / 255, 0x5D / 255, 0x8A / 255]).max(2) < 0.02
    assert blue.sum() > 200
    assert (grey.sum() > 200) == apart


@pytest.mark.parametrize("held_out", [None, 20.001, 30.0])
def test_l0_on_held_out_dialogues_is_drawn_once_it_was_counted(
    held_out: float | None, tmp_path: Path
) -> None:
    from matplotlib.image import imread

    usual = {"dead_latents": 3.0, "lr": 1e-3, "l0": 20.0, "l0_without_sinks": 20.0}
    log = [usual | {"tokens": 1000.0 * i, "fvu": 0.5, "fvu_without_sinks": 0.5} for i in range(1, 20)]
    if held_out:
        for i, row in enumerate(log[5:]):
            row["l0_held_out"] = held_out if held_out < 21 else held_out + i
    plot_training(log, "an SAE", tmp_path / "a.png")
    panel = imread(tmp_path / "a.png")[40:280, 560:, :3]
    orange = abs(panel - [0xC0 / 255, 0x67 / 255, 0x2B / 255]).max(2) < 0.02
    assert (orange.sum() > 100) == (held_out == 30.0)
