"""What attention sinks do to a run: the faults that a real model showed, on the embedded one, which has a sink."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import training

from fastzoo import load_sae
from fastzoo.saes.base import Sinks
from fastzoo.training.initialise import find_sinks
from fastzoo.training.trainer import without_sinks

ROOT = Path(__file__).parents[2]
SMALL = [
    "training.tokens=196608",
    "training.batch_size=512",
    "training.buffer_tokens=16384",
    "evaluation.dialogues=40",
    "evaluation.loss_dialogues=8",
    "layers=[1]",
    "threads=2",
]
TOYS_L0 = 24

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of runs, each made when it is first asked for."""
    folder = tmp_path_factory.mktemp("sinks")
    main = runpy.run_path(str(ROOT / "recipes" / "train.py"), run_name="recipe")["main"]

    def run(method: str, sinks: str) -> Path:
        out = folder / f"{method}-{sinks}"
        if not out.exists():
            main([*SMALL, f"method={method}", f"training.sinks={sinks}", f"output.folder={out}"])
        return out

    return run


def figures(folder: Path) -> dict[str, Any]:
    """By architecture: L0, FVU and the share of dead latents, each without sinks, and FVU with them."""
    found = {}
    for path in folder.glob("*/metrics.json"):
        metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
        plain = {key: metrics[key]["without_sinks"]["value"] for key in ("l0", "fvu", "ce_recovered")}
        plain["dead"] = metrics["dead_latents"]["without_sinks"]["share"]
        name = "jumprelu" if "jumprelu" in path.parent.name else "standard"
        found[name] = plain | {"fvu_with": metrics["fvu"]["all"]["value"]}
    assert set(found) == {"standard", "jumprelu"}
    return found


@pytest.mark.parametrize("method", ["fast", "bt-f"])
def test_a_run_that_skips_sinks_learns_all_the_other_tokens(runs: Any, method: str) -> None:
    for name, found in figures(runs(method, "skip")).items():
        assert found["l0"] == pytest.approx(TOYS_L0, rel=0.2), name
        assert found["fvu"] < 0.25 and found["ce_recovered"] > 0.85, (name, found)
        assert found["dead"] < 0.5, name


@pytest.mark.parametrize("sinks", ["skip", "train"])
@pytest.mark.parametrize("method", ["bt-f", "bt-p"])
def test_blocks_do_not_collapse(runs: Any, method: str, sinks: str) -> None:
    """Their sink stands at the block's first token, seldom at a dialogue's: L0 was 0 and all latents dead."""
    for name, found in figures(runs(method, sinks)).items():
        assert found["l0"] > 5, (name, found)
        assert found["dead"] < 0.9, (name, found)


def test_the_figure_with_sinks_looks_like_success_and_the_one_without_leads(
    runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_on, skipped = figures(runs("fast", "train")), figures(runs("fast", "skip"))
    for name in trained_on:
        assert trained_on[name]["fvu_with"] < 0.1 * trained_on[name]["fvu"]
        assert skipped[name]["fvu"] < trained_on[name]["fvu"]


def test_an_sae_knows_its_sinks_and_passes_them_through(runs: Any) -> None:
    for choice, skipped in (("skip", True), ("train", False)):
        (folder,) = runs("fast", choice).glob("*jumprelu*")
        sae = load_sae(folder)
        assert sae.sinks is not None and sae.sinks.skipped == skipped
        assert sae.sinks.norm == pytest.approx(10 * sae.sinks.median_norm)
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (config,) = folder.glob("blocks.*/cfg.json")
        written = json.loads(config.read_text(encoding="utf-8"))["metadata"]["sinks"]
        assert written == record["sae"]["sinks"] == vars(sae.sinks)
        generator = torch.Generator().manual_seed(0)
        x_TD = torch.randn(6, sae.d_in, generator=generator)
        x_TD *= sae.sinks.median_norm / x_TD.norm(dim=1, keepdim=True)
        x_TD[2] *= 100
        assert torch.equal(sae(x_TD)[2], x_TD[2]) == skipped
        assert not torch.equal(sae(x_TD)[3], x_TD[3])
        assert (sae.encode(x_TD, skip_sinks=True)[2] == 0).all() == skipped
        assert sae.passed_through(x_TD).tolist() == [False, False, skipped, False, False, False]


@pytest.mark.parametrize("share", [0.0, 0.002, 0.2])
@pytest.mark.parametrize("factor", [20.0, 180.0, 1e4])
def test_sinks_are_found_wherever_they_stand(share: float, factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.nn.functional.normalize(torch.randn(5000, 16, generator=generator) + 1, dim=1)
    x_ND *= 1 + torch.rand(5000, 1, generator=generator)
    sink_N = torch.rand(5000, generator=generator) < share
    x_ND[sink_N] *= factor
    sinks, others = find_sinks(x_ND, training("quick"))
    assert torch.equal(sinks.mask(x_ND), sink_N)
    assert torch.equal(torch.cat(list(others)).float(), x_ND[~sink_N])
    assert sinks.skipped and not find_sinks(x_ND, training("paper"))[0].skipped


def test_activations_that_are_all_zero_are_no_sinks() -> None:
    x_ND = torch.zeros(50, 4)
    assert not find_sinks(x_ND, training("quick"))[0].mask(x_ND).any()
    x_ND[3] = 5.0
    assert not find_sinks(x_ND, training("quick"))[0].mask(x_ND).any()


def test_a_batch_keeps_its_size_without_its_sinks() -> None:
    sinks = Sinks(10.0, 1.0, True)
    x_BD = torch.tensor([[50.0], [50.0], [1.0], [2.0], [99.0], [11.0], [3.0]])
    assert without_sinks(x_BD, sinks).flatten().tolist() == [1, 1, 1, 2, 2, 2, 3]
    usual = torch.tensor([[4.0], [5.0]])
    assert torch.equal(without_sinks(usual, sinks), usual)
