"""Metrics against direct transcriptions, and evaluate() against slow, unpacked computations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    LAYERS,
    VOCABULARY,
    WIDTH,
    Edit,
    plain_forward,
    random_dialogues,
    randomise,
    sequence,
    small_model,
    value,
)

from fastzoo.core.errors import ModelError
from fastzoo.data.sequences import TokenSequence
from fastzoo.data.special_tokens import SpecialTokens
from fastzoo.lm import head as head_module
from fastzoo.lm.activations import ResidualReader
from fastzoo.results.evaluate import evaluate
from fastzoo.results.figures import DEFINITIONS, LOSS, SUBSETS
from fastzoo.results.metrics import Activations, Reconstruction, Tokens
from fastzoo.saes.base import SAE, Sinks
from fastzoo.saes.jumprelu import JumpReLUSAE
from fastzoo.saes.standard import StandardSAE
from fastzoo.saes.topk import TopKSAE

D, F = 5, 11
CPU = torch.device("cpu")


def kept_tokens(subset: str, sink: np.ndarray, special: np.ndarray) -> np.ndarray:
    """The positions of a dialogue that a figure is about."""
    chosen = special if subset.startswith("special") else np.ones(len(sink), bool)
    if subset == "without_position_0":
        chosen = np.arange(len(sink)) > 0
    return np.flatnonzero(chosen & ~sink if subset.endswith("without_sinks") else chosen)


class Dialogues:
    """Random activations, reconstructions and latents of ragged dialogues."""

    def __init__(self, lengths: list[int], special: Callable[[int, int], bool]) -> None:
        rng = np.random.default_rng(0)
        self.y = [rng.normal(size=(n, D)) * 3 + 1 for n in lengths]
        self.sink = [np.zeros(n, bool) for n in lengths]
        for y, sink in zip(self.y, self.sink, strict=True):
            sink[0] = len(y) != 4  # the attention sink; and one within
            sink[7:8] = True
            y[sink] *= 40
        self.y_hat = [y + rng.normal(size=y.shape) * rng.uniform(0.1, 2) for y in self.y]
        self.acts = [np.maximum(rng.normal(size=(n, F)) - 0.5, 0) for n in lengths]
        for acts, sink in zip(self.acts, self.sink, strict=True):
            acts[:, 3] = 0  # a dead latent
            acts[~sink, 4] = 0  # one for sinks only
        self.special = [np.array([special(i, j) for j in range(n)]) for i, n in enumerate(lengths)]

    def add_to(self, activations: Activations, sums: Reconstruction, indices: list[int]) -> None:
        def whole(parts: list[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([parts[i] for i in indices]))

        position_T = whole([np.arange(len(y)) for y in self.y])
        lengths = [len(self.y[i]) for i in indices]
        tokens = Tokens(lengths, position_T, whole(self.special), whole(self.sink))
        activations.add(whole(self.y), tokens)
        sums.add(whole(self.y), whole(self.y_hat), whole(self.acts), tokens)

    def kept(self, subset: str) -> list[np.ndarray]:
        """Per dialogue, the positions that a figure is about."""
        return [kept_tokens(subset, *each) for each in zip(self.sink, self.special, strict=True)]


def paper_mse(data: Dialogues, subset: str) -> float:
    """MSE = (1/(N·H)) Σᵢ (1/Lᵢ) Σⱼ Σₖ (y − ŷ)², term by term."""
    total, n = 0.0, 0
    for y, y_hat, positions in zip(data.y, data.y_hat, data.kept(subset), strict=True):
        if len(positions) == 0:
            continue
        inner = 0.0
        for j in positions:
            for k in range(D):
                inner += (y[j, k] - y_hat[j, k]) ** 2
        total += inner / len(positions)
        n += 1
    return total / (n * D)


@pytest.fixture(params=[[1, 9, 4, 1, 30, 2], [6, 6, 6], [1]], ids=["ragged", "equal", "one"])
def data(request: pytest.FixtureRequest) -> Dialogues:
    # Dialogue 2 has no special token.
    return Dialogues(request.param, lambda i, j: i != 2 and (j * 7 + i) % 3 == 0)


@pytest.fixture
def figures(data: Dialogues) -> dict[str, Any]:
    activations, sums = Activations(D, CPU), Reconstruction(D, F, CPU)
    for start in range(0, len(data.y), 2):  # in several packs
        data.add_to(activations, sums, list(range(start, min(start + 2, len(data.y)))))
    return sums.figures(activations)


@pytest.mark.parametrize("subset", SUBSETS)
def test_mse_is_the_paper_s_formula(data: Dialogues, figures: Any, subset: str) -> None:
    tokens = sum(map(len, data.kept(subset)))
    assert figures["mse"][subset]["tokens"] == tokens
    assert figures["mse"][subset]["dialogues"] == sum(len(k) > 0 for k in data.kept(subset))
    if tokens == 0:
        assert value(figures, "mse", subset) is None
        assert value(figures, "log2_mse", subset) is None
        return
    expected = paper_mse(data, subset)
    assert value(figures, "mse", subset) == pytest.approx(expected, rel=1e-9)
    assert value(figures, "log2_mse", subset) == pytest.approx(math.log2(expected), rel=1e-9)


def plain_figures(x: torch.Tensor, x_hat: torch.Tensor, lengths: list[int]) -> dict[str, Any]:
    """Figures of dialogues without sinks and special tokens, from an SAE that never fires."""
    position = torch.cat([torch.arange(n) for n in lengths])
    tokens = Tokens(lengths, position, position < 0, position < 0)
    activations, sums = Activations(x.shape[1], CPU), Reconstruction(x.shape[1], F, CPU)
    activations.add(x.double(), tokens)
    sums.add(x.double(), x_hat, torch.zeros(len(x), F), tokens)
    return sums.figures(activations)


def test_mse_weighs_dialogues_not_tokens() -> None:
    """A short bad dialogue counts as much as a long good one."""
    x_hat = torch.tensor([[2.0]] + [[0.0]] * 100)
    found = plain_figures(torch.zeros(101, 1), x_hat, [1, 100])
    assert value(found, "mse") == pytest.approx((4 + 0) / 2)


@pytest.mark.parametrize("subset", SUBSETS)
def test_fvu_is_about_the_mean(data: Dialogues, figures: Any, subset: str) -> None:
    y = np.concatenate([y[k] for y, k in zip(data.y, data.kept(subset), strict=True)])
    y_hat = np.concatenate([y[k] for y, k in zip(data.y_hat, data.kept(subset), strict=True)])
    if len(y) < 2:  # a single token is its own mean
        assert value(figures, "fvu", subset) is None
        return
    expected = ((y - y_hat) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert value(figures, "fvu", subset) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("subset", SUBSETS)
def test_l0_is_a_mean_over_tokens(data: Dialogues, figures: Any, subset: str) -> None:
    acts = np.concatenate([a[k] for a, k in zip(data.acts, data.kept(subset), strict=True)])
    if len(acts) == 0:
        assert value(figures, "l0", subset) is None
        return
    assert value(figures, "l0", subset) == pytest.approx((acts > 0).sum(1).mean(), rel=1e-12)


def test_dead_latents_fire_on_no_token(data: Dialogues, figures: Any) -> None:
    for subset in ("all", "without_sinks"):
        kept = zip(data.acts, data.kept(subset), strict=True)
        fired = np.concatenate([acts[positions] for acts, positions in kept]).any(0)
        assert value(figures, "dead_latents", subset) == (~fired).sum() >= 1
        assert figures["dead_latents"][subset]["share"] == pytest.approx((~fired).mean())


def test_fvu_of_predicting_the_mean_is_one_whatever_the_offset() -> None:
    x = torch.randn(500, D, generator=torch.Generator().manual_seed(0)).double() + 1000
    assert value(plain_figures(x, x.mean(0).expand_as(x), [500]), "fvu") == pytest.approx(1.0, rel=1e-6)


# --- evaluate -----------------------------------------------------------------------------------


LENGTHS = [9, 1, 17, 5, 2, 26, 5]


def identity_sae() -> SAE:
    """Perfect by construction: relu(x) − relu(−x) = x."""
    sae = StandardSAE(WIDTH, 2 * WIDTH)
    eye = torch.eye(WIDTH)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], 1))
        sae.W_dec.copy_(torch.cat([eye, -eye], 0))
    return sae


def some_saes(kind: str = "qwen2") -> dict[str, tuple[int, SAE]]:
    """SAEs that know of sinks, among the tokens of ``DIALOGUES``, and one that does not."""
    last = LAYERS - 1
    saes = {
        "trained": (1, randomise(StandardSAE(WIDTH, 48), 1, 0.2)),
        "skipped": (1, randomise(JumpReLUSAE(WIDTH, 40), 2, 0.2)),
        "last": (last, randomise(TopKSAE(WIDTH, 48, k=5), 3, 0.2)),
        "unknown": (last, randomise(StandardSAE(WIDTH, 24), 4, 0.2)),
        "identity": (1, identity_sae()),
    }
    model = small_model(kind)
    for name, (layer, sae) in saes.items():
        if name != "unknown":
            norms = np.concatenate([norms_at(model, layer, s) for s in DIALOGUES])
            sae.sinks = Sinks(float(np.quantile(norms, 0.8)), float(np.median(norms)), name in SKIPPING)
    return saes


SKIPPING = ("skipped", "last")
DIALOGUES = random_dialogues(LENGTHS, seed=4)


def norms_at(model: Any, layer: int, dialogue: TokenSequence) -> np.ndarray:
    return np.linalg.norm(plain_forward(model, dialogue.ids)[0][layer].double().numpy(), axis=1)


def slow_sinks(model: Any, layer: int, sae: SAE, dialogues: list[TokenSequence]) -> list[np.ndarray]:
    """Which tokens are sinks: by the SAE or, where it does not say, above 10 times the median norm."""
    norms = [norms_at(model, layer, s) for s in dialogues]
    bound = sae.sinks.norm if sae.sinks else 10 * np.median(np.concatenate(norms))
    return [n > bound for n in norms]


def figures_of(
    reader: ResidualReader, saes: dict[str, tuple[int, SAE]], dialogues: list[TokenSequence]
) -> dict[str, Any]:
    found = evaluate(reader, saes, dialogues, SpecialTokens())
    return {name: evaluation.metrics for name, evaluation in found.items()}


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    x = logits.double().numpy()
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def slow_losses(
    model: Any, dialogues: list[TokenSequence], layer: int, sae: SAE, subset: str
) -> dict[str, float]:
    """CE and KL figures of one subset from whole forwards of an unmodified model, one by one."""
    ce: dict[str, list[float]] = {"model": [], "reconstruction": [], "zero": []}
    kl: list[float] = []

    def sparing(change: Edit, spared: np.ndarray) -> Edit:
        return lambda x: torch.where(torch.from_numpy(spared)[:, None], x, change(x).to(x.dtype))

    def through(x: torch.Tensor) -> torch.Tensor:
        return sae.decode(sae.encode(x))

    sinks = slow_sinks(model, layer, sae, dialogues)
    for dialogue, sink in zip(dialogues, sinks, strict=True):
        ids = dialogue.ids
        spared = sink if subset.endswith("without_sinks") else np.zeros_like(sink)
        passed = sink if sae.sinks and sae.sinks.skipped else spared
        log_p = {
            "model": log_softmax(plain_forward(model, ids)[1]),
            "reconstruction": log_softmax(plain_forward(model, ids, (layer, sparing(through, passed)))[1]),
            "zero": log_softmax(plain_forward(model, ids, (layer, sparing(torch.zeros_like, spared)))[1]),
        }
        for t in kept_tokens(subset, sink[:-1], dialogue.special[:-1]):
            for name, table in log_p.items():
                ce[name].append(-table[t, ids[t + 1]])
            p = np.exp(log_p["model"][t])
            kl.append(float((p * (log_p["model"][t] - log_p["reconstruction"][t])).sum()))
    mean = {name: float(np.mean(values)) for name, values in ce.items()}
    return {
        "tokens": len(kl),
        "ce_model": mean["model"],
        "ce_reconstruction": mean["reconstruction"],
        "ce_zero": mean["zero"],
        "ce_recovered": (mean["zero"] - mean["reconstruction"]) / (mean["zero"] - mean["model"]),
        "delta_loss": (mean["reconstruction"] - mean["model"]) / mean["model"],
        "kl": float(np.mean(kl)),
    }


@pytest.fixture(scope="module", params=["qwen2", "gemma2"])
def measured(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """An unmodified model, SAEs, and evaluate()'s figures from packs and small logit chunks."""
    kind = request.param
    saes = some_saes(kind)
    reader = ResidualReader(small_model(kind, "eager"), pack_tokens=24)
    patch = pytest.MonkeyPatch()
    patch.setattr(head_module, "HEAD_ELEMENTS", 1)
    found = figures_of(reader, saes, DIALOGUES)
    patch.undo()
    return small_model(kind, "eager"), saes, found


NAMES = ("trained", "skipped", "last", "unknown", "identity")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("subset", LOSS)
def test_loss_figures_equal_slow_ones(measured: Any, name: str, subset: str) -> None:
    model, saes, found = measured
    layer, sae = saes[name]
    expected = slow_losses(model, DIALOGUES, layer, sae, subset)
    tokens = expected.pop("tokens")
    assert abs(expected["ce_zero"] - expected["ce_model"]) > 0.01  # the ratio means something
    for metric, number in expected.items():
        figure = found[name][metric][subset]
        assert figure["tokens"] == tokens
        assert figure["value"] == pytest.approx(number, rel=2e-4, abs=2e-5), metric


@pytest.mark.parametrize("name", NAMES[:-1])
@pytest.mark.parametrize("subset", SUBSETS)
def test_reconstruction_figures_equal_slow_ones(measured: Any, name: str, subset: str) -> None:
    model, saes, found = measured
    layer, sae = saes[name]
    sinks = slow_sinks(model, layer, sae, DIALOGUES)
    assert any(sink.any() for sink in sinks) == (name != "unknown")
    total, n, squared, active, rows = 0.0, 0, 0.0, 0, []
    fired = np.zeros(sae.d_sae, bool)
    for dialogue, sink in zip(DIALOGUES, sinks, strict=True):
        x = plain_forward(model, dialogue.ids)[0][layer]
        latents = sae.encode(x).detach()
        y, y_hat = x.double().numpy(), sae.decode(latents).detach().double().numpy()
        if name in SKIPPING:
            latents[sink], y_hat[sink] = 0, y[sink]
        kept = kept_tokens(subset, sink, dialogue.special)
        fired |= (latents[kept] > 0).numpy().any(0)
        error = ((y_hat - y)[kept] ** 2).sum(1)
        if len(kept):
            total, n = total + error.mean(), n + 1
        squared += error.sum()
        active += int((latents[kept] > 0).sum())
        rows.append(y[kept])
    everything = np.concatenate(rows)
    figures = found[name]
    assert figures["mse"][subset]["tokens"] == len(everything)
    assert value(figures, "mse", subset) == pytest.approx(total / n / WIDTH, rel=1e-4)
    variance = ((everything - everything.mean(0)) ** 2).sum()
    assert value(figures, "fvu", subset) == pytest.approx(squared / variance, rel=1e-4)
    assert value(figures, "l0", subset) == pytest.approx(active / len(everything), rel=1e-3)
    if subset in found[name]["dead_latents"]:
        assert value(figures, "dead_latents", subset) == (~fired).sum()


@pytest.mark.parametrize("subset", SUBSETS)
def test_a_perfect_sae_recovers_everything(measured: Any, subset: str) -> None:
    figures = measured[2]["identity"]
    assert value(figures, "fvu", subset) < 1e-12
    assert value(figures, "mse", subset) < 1e-10
    assert value(figures, "l0", subset) == pytest.approx(WIDTH, rel=0.05)
    if subset in LOSS:
        assert value(figures, "ce_recovered", subset) == pytest.approx(1.0, abs=1e-5)
        assert value(figures, "delta_loss", subset) == pytest.approx(0.0, abs=1e-6)
        assert value(figures, "kl", subset) == pytest.approx(0.0, abs=1e-7)


def test_an_sae_of_zeros_recovers_nothing() -> None:
    dialogues = random_dialogues(LENGTHS)
    reader = ResidualReader(small_model("qwen2"), pack_tokens=24)
    figures = figures_of(reader, {"zero": (2, StandardSAE(WIDTH, 4))}, dialogues)["zero"]
    assert value(figures, "ce_recovered") == pytest.approx(0.0, abs=1e-7)
    assert value(figures, "l0") == 0
    assert value(figures, "dead_latents") == 4


def test_every_figure_has_a_definition(measured: Any) -> None:
    for figures in measured[2].values():
        assert set(figures) == set(DEFINITIONS)


def test_passes_are_shared_whatever_an_sae_was_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three SAEs of a layer with the same sinks, one of which spares these: zeros go through once for all."""
    saes = {name: each for name, each in some_saes().items() if each[0] == 1}
    reader, passes = ResidualReader(small_model("qwen2"), pack_tokens=1 << 20), []
    plain = ResidualReader.restarted

    def counted(self: ResidualReader, *given: Any) -> torch.Tensor:
        passes.append(given)
        return plain(self, *given)

    monkeypatch.setattr(ResidualReader, "restarted", counted)
    figures_of(reader, saes, DIALOGUES)
    assert len(passes) == 2 + 1 + 2 + 2, "trained: 2, skipped: 1, identity: 2, zeros: 2"


def test_figures_do_not_depend_on_packing() -> None:
    dialogues = random_dialogues(LENGTHS, seed=9)
    whole = figures_of(ResidualReader(small_model("qwen2")), some_saes(), dialogues)
    single = figures_of(ResidualReader(small_model("qwen2"), pack_tokens=1), some_saes(), dialogues)
    for name, figures in whole.items():
        for metric, subsets in figures.items():
            for subset, figure in subsets.items():
                other = single[name][metric][subset]["value"]
                if name == "identity" and metric in ("mse", "log2_mse"):
                    continue  # zero up to rounding
                assert figure["value"] == pytest.approx(other, rel=1e-3, abs=1e-4), metric


def test_dialogues_of_one_token_predict_nothing() -> None:
    reader = ResidualReader(small_model("qwen2"))
    dialogues = [sequence([3]), sequence([VOCABULARY - 1], 1)]
    figures = figures_of(reader, {"a": some_saes()["trained"]}, dialogues)["a"]
    assert figures["ce_model"]["all"] == {"value": None, "interval": None, "tokens": 0, "dialogues": 0}
    assert value(figures, "ce_recovered") is None
    assert value(figures, "mse") is not None
    assert value(figures, "mse", "without_position_0") is None


@pytest.mark.parametrize(("layer", "width"), [(LAYERS, WIDTH), (-1, WIDTH), (0, WIDTH + 1)])
def test_saes_that_do_not_fit_the_model_are_refused(layer: int, width: int) -> None:
    reader = ResidualReader(small_model("qwen2"))
    with pytest.raises(ModelError, match=f"mine \\(width {width}, layer {layer}\\) does not fit"):
        evaluate(reader, {"mine": (layer, StandardSAE(width, 4))}, random_dialogues([3]), SpecialTokens())
