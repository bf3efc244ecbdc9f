"""Cross-entropy figures: of which dialogues, how sure they are, and what they cost."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LAYERS, WIDTH, random_dialogues, randomise, small_model, value
from safetensors.numpy import load_file

from fastzoo.core import progress
from fastzoo.data.special_tokens import SpecialTokens
from fastzoo.lm.activations import ResidualReader
from fastzoo.results import evaluate as evaluate_module
from fastzoo.results.evaluate import evaluate, spread
from fastzoo.results.figures import FIGURES, LOSS
from fastzoo.results.metrics import RATIOS, DialogueSums, loss_figures
from fastzoo.saes.base import SAE, Sinks
from fastzoo.saes.standard import StandardSAE

LENGTHS = [9, 1, 17, 5, 2, 26, 5, 12, 7, 30]
DIALOGUES = random_dialogues(LENGTHS, seed=4)


def an_sae(
    layer: int, seed: int = 1, *, sinks: float | None = None, skipped: bool = False
) -> tuple[int, SAE]:
    sae = randomise(StandardSAE(WIDTH, 24), seed, 0.2)
    sae.sinks = Sinks(1e9 if sinks is None else sinks, 1.0, skipped)
    return layer, sae


def measured(saes: dict[str, tuple[int, SAE]], dialogues: Any = DIALOGUES, **options: Any) -> Any:
    model = options.pop("model", None) or small_model("qwen2")
    reader = ResidualReader(model, pack_tokens=options.pop("pack_tokens", 40))
    return evaluate(reader, saes, dialogues, SpecialTokens(), **options)


@pytest.mark.parametrize(
    ("count", "wanted", "places"),
    [
        (10, 3, [1, 5, 8]),
        (10, 1, [5]),
        (4, 4, [0, 1, 2, 3]),
        (3, 50, [0, 1, 2]),
        (3, None, [0, 1, 2]),
        (200, 50, [4 * i + 2 for i in range(50)]),
    ],
)
def test_dialogues_are_spread_evenly(count: int, wanted: int | None, places: list[int]) -> None:
    assert spread(count, wanted) == places


def test_losses_are_those_of_the_chosen_dialogues_and_all_else_of_all() -> None:
    saes = {"a": an_sae(1), "b": an_sae(LAYERS - 1, 2)}
    part, whole = measured(saes, loss_dialogues=4), measured(saes)
    chosen = measured(saes, [DIALOGUES[i] for i in spread(len(LENGTHS), 4)])
    for name in saes:
        for figure in FIGURES:
            expected = chosen if figure.subsets == LOSS else whole
            for subset in figure.subsets:
                found = part[name].metrics[figure.key][subset]
                other = expected[name].metrics[figure.key][subset]
                assert found.keys() == other.keys()
                assert (found["tokens"], found["dialogues"]) == (other["tokens"], other["dialogues"])
                assert found["value"] == pytest.approx(other["value"], rel=1e-4, abs=1e-5)
                assert ("interval" in found) == (figure.subsets == LOSS)
        assert (
            part[name].metrics["kl"]["all"]["dialogues"] == 3
        )  # the fourth has one token, that predicts nothing
        assert part[name].metrics["mse"]["all"]["dialogues"] == len(LENGTHS)
        assert torch.equal(part[name].frequency_F, whole[name].frequency_F)


SINKS = 9.0
"""A norm that some of the tokens exceed at layer 1."""


@pytest.mark.parametrize(
    ("saes", "after_1", "after_2"),
    [
        ({"a": an_sae(1)}, 2, 0),  # the SAE and zeros
        ({"a": an_sae(1), "b": an_sae(1, 2)}, 3, 0),  # zeros are shared
        ({"a": an_sae(1), "b": an_sae(2, 2)}, 2, 2),
        ({"a": an_sae(1, sinks=SINKS)}, 4, 0),  # both twice
        ({"a": an_sae(1, sinks=SINKS, skipped=True)}, 3, 0),  # the SAE spares sinks anyway
    ],
    ids=["no sinks", "one layer", "two layers", "sinks", "skipped sinks"],
)
def test_nothing_is_computed_twice(
    saes: dict[str, tuple[int, SAE]], after_1: int, after_2: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By how many tokens every layer and the head compute in all."""
    monkeypatch.setattr(evaluate_module, "check_head", lambda *args: None)
    model, computed = small_model("qwen2"), [0] * (LAYERS + 1)
    reader = ResidualReader(model, pack_tokens=1000)
    for some in (None, 1):  # checks the model, on packs of many dialogues and of one
        evaluate(reader, saes, DIALOGUES, SpecialTokens(), loss_dialogues=some)

    def count(index: int) -> Any:
        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            computed[index] += output.numel() // output.shape[-1]

        return hook

    for index, module in enumerate([*(layer.mlp for layer in model.model.layers), model.lm_head]):
        module.register_forward_hook(count(index))
    evaluate(reader, saes, DIALOGUES, SpecialTokens())
    tokens, rows = sum(LENGTHS), sum(n - 1 for n in LENGTHS)
    to_end = 1 + after_1 + after_2
    assert computed == [tokens, tokens, tokens * (1 + after_1), tokens * to_end, rows * to_end]
    computed[:] = [0] * (LAYERS + 1)
    evaluate(reader, saes, DIALOGUES, SpecialTokens(), loss_dialogues=1)
    (chosen,) = spread(len(LENGTHS), 1)
    part, rows = LENGTHS[chosen], LENGTHS[chosen] - 1
    up_to = tokens - part if after_2 else 0
    expected = [tokens, tokens, part * (1 + after_1) + up_to, part * to_end, rows * to_end]
    assert computed == expected


def sums(values_SN: np.ndarray) -> DialogueSums:
    found = DialogueSums()
    for part in np.array_split(values_SN, 3, axis=1):
        found.add(torch.from_numpy(part))
    return found


def test_intervals_are_those_of_dialogues_drawn_again() -> None:
    rng = np.random.default_rng(5)
    count = 60
    tokens = rng.integers(1, 80, (len(LOSS), count)).astype(float)
    tokens[3] = 0
    tokens[3, 7] = 5  # one dialogue is no sample
    own, more, zero, kl = (tokens * rng.gamma(3, scale, tokens.shape) for scale in (0.5, 0.1, 1.5, 0.05))
    figures = loss_figures(sums(tokens), sums(own), sums(own + more), sums(own + zero), sums(kl))
    for index, subset in enumerate(LOSS[:3]):
        t, o, s, z, k = (x[index] for x in (tokens, own, own + more, own + zero, kl))
        ratios = {
            "ce_model": (o, t),
            "ce_reconstruction": (s, t),
            "ce_zero": (z, t),
            "ce_recovered": (z - s, z - o),
            "delta_loss": (s - o, o),
            "kl": (k, t),
        }
        assert ratios.keys() == RATIOS.keys()
        for name, (above, below) in ratios.items():
            figure = figures[name][subset]
            assert figure["value"] == pytest.approx(above.sum() / below.sum(), rel=1e-12)
            assert figure["dialogues"] == count and figure["tokens"] == t.sum()
            again = []
            for _ in range(4000):
                drawn = rng.integers(0, count, count)
                again.append(above[drawn].sum() / below[drawn].sum())
            low, high = np.quantile(again, [0.025, 0.975])
            assert figure["interval"] == pytest.approx([low, high], abs=0.12 * (high - low)), name
            assert figure["interval"][0] < figure["value"] < figure["interval"][1]
    alone = figures["kl"][LOSS[3]]
    assert alone == {"value": pytest.approx(kl[3, 7] / 5), "interval": None, "tokens": 5, "dialogues": 1}
    again = loss_figures(sums(tokens), sums(own), sums(own + more), sums(own + zero), sums(kl))
    assert again == figures  # the seed is fixed


def test_progress_ends_where_it_should(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    saes = {"a": an_sae(1, sinks=9.0), "b": an_sae(2, 2)}
    measured(saes, loss_dialogues=4, shown=True)
    lines = capsys.readouterr().err.splitlines()
    shares = [int(line.split("%")[0].removeprefix("evaluating")) for line in lines]
    assert shares == sorted(shares) and shares[-1] == 100
    assert max(after - before for before, after in pairwise(shares)) < 25
    assert "10 of 10 dialogues" in lines[-1] and "left" in lines[-1]
    measured(saes)
    assert capsys.readouterr().err == ""


def test_a_run_measures_losses_where_its_recipe_says(model_run: Path) -> None:
    (path,) = model_run.glob("tiny-chat-*/metrics.json")
    metrics = json.loads(path.read_text())["metrics"]
    assert metrics["mse"]["all"]["dialogues"] == 8 and metrics["kl"]["all"]["dialogues"] == 4
    low, high = metrics["delta_loss"]["without_sinks"]["interval"]
    assert low < value(metrics, "delta_loss", "without_sinks") < high


def test_sparsity_is_of_the_finished_sae_on_held_out_dialogues(model_run: Path) -> None:
    (folder,) = model_run.glob("tiny-chat-*")
    (path,) = folder.glob("*/sparsity.safetensors")
    sparsity = load_file(path)["sparsity"]
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert (10 ** sparsity.astype(float)).sum() == pytest.approx(
        value(metrics, "l0", "without_sinks"), rel=1e-6
    )
    dead = metrics["dead_latents"]["without_sinks"]
    assert (sparsity == -10).sum() == dead["value"]


def test_a_model_that_cannot_restart_has_the_same_figures(caplog: pytest.LogCaptureFixture) -> None:
    """One whose third layer fails where the first was not computed."""
    whole, kept = small_model("llama"), []

    def use(module: Any, args: Any, output: torch.Tensor) -> None:
        kept.pop()

    whole.model.layers[0].mlp.register_forward_hook(lambda module, args, output: kept.append(output))
    whole.model.layers[2].mlp.register_forward_hook(use)
    saes = {"a": an_sae(1, sinks=SINKS), "b": an_sae(2, 2)}
    expected = measured(saes, model=small_model("llama"))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        found = measured(saes, model=whole)
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("the model cannot go on from layer 1,")
    for name in saes:
        assert found[name].metrics == expected[name].metrics
