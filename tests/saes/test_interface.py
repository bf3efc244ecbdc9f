"""A new architecture is one class and one entry: trained by each step, saved, read and described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import recipe, training
from examples import example
from torch import Tensor

from fastzoo.config.recipe import ComputeSection, TrainingSection
from fastzoo.core.errors import InputError
from fastzoo.loading import load_sae
from fastzoo.results.card import render_card
from fastzoo.saes import ARCHITECTURES, Architecture, Option, trainable
from fastzoo.saes.base import SAE, TrainableSAE
from fastzoo.saes.formats import save_sae
from fastzoo.saes.names import SAEName, parse_name
from fastzoo.saes.standard import StandardSAE
from fastzoo.training.initialise import new_sae
from fastzoo.training.steps import ReferenceStep, step_for
from fastzoo.training.steps.sparse import SparseStep
from fastzoo.training.trainer import Trainer

D_IN, EXPANSION, BATCH = 24, 6, 40


class SquaredSAE(TrainableSAE):
    """ReLU with the penalty scale · Σf²; saved as the standard SAE that it computes."""

    architecture = "squared"
    width_power = 0.0

    def __init__(self, d_in: int, d_sae: int, *, scale: float = 1.0, **more: Any) -> None:
        super().__init__(d_in, d_sae, **more)
        self.scale = scale

    @classmethod
    def start(cls, d_in: int, d_sae: int, options: Any) -> SquaredSAE:
        return cls(d_in, d_sae, scale=options["squared_scale"])

    def finished(self) -> SAE:
        sae = StandardSAE(self.d_in, self.d_sae)
        sae.load_state_dict({n: t.detach().cpu() for n, t in self.state_dict().items()})
        return sae

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre)

    def thresholds(self, pre_BF: Tensor) -> Tensor:
        return pre_BF.new_zeros(())  # one for all

    def penalty_terms(self, acts: Tensor) -> Tensor:
        return self.scale * acts.square()

    def penalty_slope(self, acts: Tensor) -> Tensor:
        return 2 * self.scale * acts


class WholeBatchSAE(SquaredSAE):
    """Keeps what exceeds the mean of its token: thresholds of tokens, and no chunks."""

    architecture = "wholebatch"
    whole_batch = True

    def thresholds(self, pre_BF: Tensor) -> Tensor:
        return pre_BF.mean(-1, keepdim=True).clamp_min(0)

    def activate(self, pre: Tensor) -> Tensor:
        return torch.where(pre > self.thresholds(pre), pre, 0.0)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Option(1.0, lambda x: isinstance(x, float) and x > 0, "a number above 0")
    for cls in (SquaredSAE, WholeBatchSAE):
        entry = Architecture(
            f"{__name__}:{cls.__name__}",
            trainable=True,
            card_line=f"{cls.architecture} (ReLU, squared penalty)",
            encode_snippet="pre.clamp_min(0)",
            options={"squared_scale": scale},
            card_rows=lambda training: {"squares": f"times {training['squared_scale']}"},
        )
        monkeypatch.setitem(ARCHITECTURES, cls.architecture, entry)


def resolved(kind: str, **changes: Any) -> TrainingSection:
    changes = {"sparsity_coefficient": {kind: 0.3}, "batch_size": BATCH, **changes}
    return recipe(architectures=[kind], training=changes).training


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(6, D_IN, generator=generator)
    return [torch.randn(BATCH, 6, generator=generator) @ mix / 2.5 for _ in range(count)]


def started(kind: str, bias: float) -> TrainableSAE:
    generator = torch.Generator().manual_seed(0)
    sae = new_sae(kind, D_IN, D_IN * EXPANSION, resolved(kind), generator).double()
    with torch.no_grad():
        sae.b_enc.fill_(bias)
    return sae


@pytest.mark.parametrize(("kind", "listed"), [("squared", 30), ("wholebatch", 0)])
def test_all_steps_train_it_alike(kind: str, listed: int) -> None:
    section = resolved(kind)
    steps = [step(started(kind, -0.9), section, ComputeSection()) for step in (ReferenceStep, SparseStep)]
    for x in batches(30):
        ours, reference = (step(x.double(), 1e-3, 0.3) for step in reversed(steps))
        for name in ("squared_error", "penalty", "fired_F", "grad_norm"):
            torch.testing.assert_close(getattr(ours, name), getattr(reference, name))
    for name, parameter in steps[0].sae.trained_parameters().items():
        other = steps[1].sae.trained_parameters()[name]
        torch.testing.assert_close(other, parameter, rtol=1e-9, atol=1e-12)
    assert steps[1].sparse_steps == listed  # thresholds of tokens are not for lists


def test_its_gradient_is_that_of_its_loss() -> None:
    sae, x = started("squared", -0.3), batches(1)[0].double()
    acts = sae.encode(x)
    loss = (sae.decode(acts) - x).square().sum() + 0.3 * acts.square().sum()
    expected = torch.autograd.grad(loss / BATCH, list(sae.trained_parameters().values()))
    sae.gradients(x, 0.3)
    for parameter, gradient in zip(sae.trained_parameters().values(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)


def test_a_batch_that_must_stay_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastzoo.saes.base.CHUNK_ELEMENTS", 1)
    x = torch.zeros(500, D_IN)
    assert started("squared", 0.0).chunk_rows(x) == 64
    assert started("wholebatch", 0.0).chunk_rows(x) == 500


def test_it_is_trained_saved_read_and_described(tmp_path: Path) -> None:
    name = parse_name("model-L3-6x-squared")
    section = resolved("squared", squared_scale=0.5, tokens=20 * BATCH, buffer_tokens=4096)
    columns = [{"L3": x, "position": torch.arange(BATCH)} for x in batches(20)]
    trainer = Trainer([name], D_IN, section, columns[0], seed=0, device=torch.device("cpu"))
    for batch in columns:
        trainer.step(batch)
    (learner,) = trainer.learners
    assert learner.step.kind == "sparse" and learner.sae.scale == 0.5
    assert learner.log[-1]["fvu"] < learner.log[0]["fvu"]
    save_sae(learner.finished(), tmp_path / name.hook_folder, layer=3)
    loaded = load_sae(tmp_path)
    assert loaded.architecture == "standard"  # the form in which others know it
    x, scale = batches(1)[0], learner.scale
    torch.testing.assert_close(loaded(x), learner.sae(x * scale) / scale, rtol=1e-4, atol=1e-5)
    record, figures = example()
    record["sae"]["architecture"] = name.architecture
    record["recipe"]["training"] = section.model_dump()
    card = render_card(record, figures)
    assert "- **Architecture:** squared (ReLU, squared penalty)\n" in card
    assert "    return pre.clamp_min(0)\n" in card and "| squares | times 0.5 |\n" in card


def test_its_options_are_recipe_keys_of_runs_that_train_it() -> None:
    section = resolved("squared")
    assert section.model_dump()["squared_scale"] == 1.0
    assert TrainingSection.model_validate(section.model_dump()) == section
    assert "squared_scale" not in training().model_dump()
    changes = {"squared_scale": "7"}
    with pytest.raises(InputError, match=r"training\.squared_scale: got '7'; .*a number above 0"):
        resolved("squared", **changes)
    with pytest.raises(InputError, match=r"'training\.squared_scal'.*Did you mean squared_scale"):
        resolved("squared", squared_scal=1.0)
    with pytest.raises(InputError, match=r"sparsity_coefficient\.squared: missing"):
        recipe(architectures=["squared"])
    assert "squared" in trainable()


def test_the_cuda_step_is_refused_where_its_kernels_lack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, section = started("squared", 0.0), resolved("squared")
    monkeypatch.setattr("fastzoo.training.steps.cuda_lacks", lambda device: "")
    with pytest.raises(InputError, match="'cuda' needs kernels for squared SAEs"):
        step_for(sae, section, ComputeSection(step="cuda"))


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
def test_the_cards_snippet_computes_what_the_class_does(kind: str) -> None:
    sae = new_sae(kind, 5, 9, training("quick"), torch.Generator().manual_seed(0)).finished()
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)) * 3
    values = {"pre": sae.pre_activations(x), "torch": torch, "weights": dict(sae.named_parameters())}
    found = eval(ARCHITECTURES[kind].encode_snippet, values)
    assert torch.equal(found, sae.encode(x)) and 0 < (found > 0).sum() < found.numel()
    assert str(SAEName("m", 1, 2, kind)) == f"m-L1-2x-{kind}"
