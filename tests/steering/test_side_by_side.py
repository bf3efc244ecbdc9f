"""Two answers at once: as two calls would give them, token by token, and gone when nobody listens."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WIDTH, randomise, small_model
from test_sweep import QUESTIONS, make
from zoo_folders import train_small

from fastzoo.core.errors import InputError
from fastzoo.data.special_tokens import TokenTexts
from fastzoo.lm.activations import ResidualReader
from fastzoo.loading import open_sae
from fastzoo.saes import architecture
from fastzoo.saes.base import Sinks
from fastzoo.steering.hooks import steer
from fastzoo.steering.live import Live
from fastzoo.steering.measured import FILE, keep_latent, open_to_keep, read_measured
from fastzoo.steering.run import run_steer
from fastzoo.steering.settings import SteerSettings
from fastzoo.steering.side_by_side import LIKELIEST, SideBySide
from fastzoo.steering.sweep import Sweep

LATENT, LAYER = 7, 1
ALPHA = {"add": 6.0, "clamp": 5.0, "scale": 4.0, "ablate": 1.0}


@pytest.fixture(scope="module")
def sae() -> Any:
    return randomise(architecture("jumprelu")(WIDTH, 24), seed=3).requires_grad_(False)


def two(sae: Any, mode: str = "add", model: Any = None, **more: Any) -> Sweep:
    """Two questions of different lengths."""
    made = make(model or small_model("qwen2"), sae, mode=mode, questions=QUESTIONS[:2], **more)
    return replace(made, alphas=[ALPHA[mode]])


def alone(sweep: Sweep, question: int) -> list[int]:
    """The answer of one ``generate`` call."""
    ids = torch.tensor([sweep.prompts()[question]])
    how = {
        "max_new_tokens": sweep.settings.max_new_tokens,
        "do_sample": False,
        "eos_token_id": sorted(sweep.ends()),
    }
    alphas = {LATENT: sweep.alphas[0]}
    if not question:
        return sweep.model.generate(ids, **how, pad_token_id=0)[0, ids.shape[1] :].tolist()
    with steer(sweep.model, sweep.sae, alphas, layer=LAYER, mode=sweep.mode, positions=sweep.positions):
        return sweep.model.generate(ids, **how, pad_token_id=0)[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("positions", ["all", "generated"])
@pytest.mark.parametrize("mode", list(ALPHA))
def test_both_answers_are_those_of_calls_of_their_own(mode: str, positions: str, sae: Any) -> None:
    sweep = two(sae, mode, positions=positions)
    both = SideBySide(sweep)
    told: list[tuple[int, int]] = []
    steps = list(both.steps())
    for step in steps:
        told += step
    assert [list(cell.ids) for cell in both.cells] == [alone(sweep, 0), alone(sweep, 1)]
    assert both.ids == tuple([t for row, t in told if row == n] for n in (0, 1))
    # Together, and not one after the other: a visitor sees both grow.
    assert {row for row, _ in steps[0]} == {0, 1}
    assert (both.cells[0].alpha, both.cells[1].alpha) == (0.0, ALPHA[mode])


def test_who_turns_away_leaves_the_model_as_it_was(sae: Any) -> None:
    sweep = two(sae, settings={"max_new_tokens": 100}, model=(model := small_model("qwen2")))
    expected = alone(two(sae, model=model), 1)
    for after in (1, 3):
        steps = SideBySide(sweep).steps()
        for _ in range(after):
            next(steps)
        steps.close()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert alone(two(sae, model=model), 1) == expected


def test_work_that_nobody_watches_ends() -> None:
    done: list[int] = []

    def count(watch: Any) -> None:
        for number in range(2000):
            time.sleep(0.001)
            done.append(number)
            watch(number)

    steps = Live(count).steps()
    assert next(steps) == 0
    steps.close()
    assert len(done) < 2000


def test_errors_of_the_work_reach_who_watches() -> None:
    def fail(watch: Any) -> int:
        watch([(0, 1)])
        raise InputError("no")

    live = Live(fail)
    steps = live.steps()
    assert next(steps) == [(0, 1)]
    with pytest.raises(InputError, match="no"):
        next(steps)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
@pytest.mark.parametrize("mode", list(ALPHA))
def test_views_are_what_a_forward_of_its_own_says(mode: str, positions: str, sae: Any) -> None:
    sweep = two(sae, mode, positions=positions)
    both = SideBySide(sweep)
    list(both.steps())
    texts = TokenTexts(sweep.tokenizer)
    views = both.tokens(ResidualReader(sweep.model), texts)
    for prompt, cell, found in zip(sweep.prompts(), both.cells, views, strict=True):
        assert [view.text for view in found] == [texts(token) for token in cell.ids]
        ids = torch.tensor([[*prompt, *cell.ids]])
        place = torch.arange(ids.shape[1])
        wanted = {"all": place >= 0, "prompt": place < len(prompt), "generated": place >= len(prompt)}[
            positions
        ]
        with torch.no_grad():
            plain = sweep.model(ids, output_hidden_states=True)
            with steer(
                sweep.model,
                sae,
                {LATENT: ALPHA[mode]},
                layer=LAYER,
                mode=mode,
                positions=lambda known, wanted=wanted: wanted[None],
            ):
                steered = sweep.model(ids)
        acts = sae.encode(plain.hidden_states[LAYER + 1])[0, len(prompt) :, LATENT]
        assert [view.activation for view in found] == pytest.approx(acts.tolist(), abs=1e-4)
        for which, out in (("without", plain), ("steered", steered)):
            p_AV = out.logits[0, len(prompt) - 1 : -1].double().softmax(-1)
            for view, p_V, token in zip(found, p_AV, cell.ids, strict=True):
                mind = getattr(view, which)
                assert mind.own == pytest.approx(p_V[token].item(), abs=1e-5)
                assert [p for _, p in mind.best] == pytest.approx(p_V.topk(LIKELIEST)[0].tolist(), abs=1e-5)
                assert mind.best[0][0] == texts(int(p_V.argmax()))


def test_sinks_that_the_sae_skips_have_no_activation(sae: Any) -> None:
    skipping = randomise(architecture("jumprelu")(WIDTH, 24), seed=3).requires_grad_(False)
    skipping.sinks = Sinks(norm=1e-6, median_norm=1e-7, skipped=True)  # all tokens are
    both = SideBySide(two(skipping, "clamp"))
    list(both.steps())
    views = both.tokens(ResidualReader(both.sweep.model), TokenTexts(both.sweep.tokenizer))
    assert all(view.sink and view.activation == 0 and view.without == view.steered for view in views[1])


def test_scores_compare_with_the_unsteered_answer(sae: Any) -> None:
    sweep = two(sae)
    both = SideBySide(replace(sweep, questions=[QUESTIONS[0], QUESTIONS[0]]))
    list(both.steps())
    unsteered, steered = both.scores()
    assert unsteered.kept == 1.0 and steered.kept < 1.0
    (alone, beside) = replace(
        sweep, questions=[QUESTIONS[0]], alphas=[0.0, ALPHA["add"]], control=False
    ).scores(replace(sweep, questions=[QUESTIONS[0]], alphas=[0.0, ALPHA["add"]], control=False).cells())
    assert steered.nll == pytest.approx(beside.nll, abs=1e-4) and unsteered.nll == pytest.approx(
        alone.nll, abs=1e-4
    )


# --- kept beside the SAE -----------------------------------------------------------------------

NAME = "tiny-chat-L1-2x-jumprelu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory.mktemp("kept") / "run") / NAME


def swept(folder: Path, **more: Any) -> Any:
    settings = {
        "latents": [3],
        "alphas": [0.0, 0.5, 1.0],
        "units": "norm",
        "control": False,
        "max_new_tokens": 8,
    }
    settings |= {"questions": ["Where is Paris?", "Hello!", "What is a cat?"], "dialogues": 20, **more}
    return run_steer(SteerSettings(source=str(folder), **settings))


def test_a_window_is_kept_beside_its_sae_in_raw_alphas(folder: Path) -> None:
    loaded = open_to_keep(str(folder), "Cats")
    assert read_measured(loaded) == []
    outcome = swept(folder)
    assert keep_latent(loaded, "Cats", outcome) == folder / FILE
    (kept,) = read_measured(loaded)
    norm = outcome.about["residual_norm"] / loaded.sae.W_dec[3].norm().item()
    assert kept.alphas == pytest.approx([0.0, 0.5 * norm, norm]) and (kept.latent, kept.questions) == (3, 3)
    assert kept.question in ("Where is Paris?", "What is a cat?")  # the even ones choose
    assert kept.best is None or kept.best in kept.alphas
    keep_latent(loaded, "Other", swept(folder, latents=[5], units="raw", alphas=[0.0, 4.0]))
    keep_latent(loaded, "Cats", swept(folder, latents=[4], units="raw", alphas=[0.0, 2.0]))
    assert [(k.title, k.latent, k.alphas) for k in read_measured(loaded)] == [
        ("Other", 5, [0.0, 4.0]),
        ("Cats", 4, [0.0, 2.0]),
    ]


def test_what_cannot_be_kept(folder: Path, tmp_path: Path) -> None:
    loaded = open_sae(folder)
    for more in (
        {"latents": [1, 2]},
        {"positions": "generated"},
        {"questions": ["One?"]},
        {"mode": "clamp"},
        {"alphas": [0.0, -2.0]},
    ):
        with pytest.raises(InputError, match="--keep: it takes one latent, added at all positions"):
            keep_latent(loaded, "x", swept(folder, **({"units": "raw", "alphas": [0.0, 1.0]} | more)))
    with pytest.raises(InputError, match="not a folder of fastzoo's"):
        open_to_keep("hf:org/some-sae", "x")
    for title in ("", "  ", "a" * 61, "a\nb"):
        with pytest.raises(InputError, match="a title has 1 to 60 printable characters"):
            open_to_keep(str(folder), title)


def spoiled(good: str) -> list[str]:
    """What a stranger may write."""
    changes: list[dict[str, Any]] = [
        {"latent": -5}, {"latent": 10**7}, {"latent": "3"}, {"alphas": [0.0, 0.0]}, {"alphas": [4.0, 0.0]},
        {"alphas": [0.0, float("nan")]}, {"alphas": [0.0, float("inf")]}, {"effect": []}, {"quality": [0.5, 7.0]},
        {"low": 0.0, "high": None, "best": None}, {"low": 0.0, "high": 4.0, "best": 50.0}, {"title": ""}, {"title": "x" * 99},
    ]  # fmt: skip
    known = json.loads(good)
    first, *rest = known["latents"]
    return [json.dumps(known | {"latents": [first | change, *rest]}) for change in changes]


def test_other_weights_and_damaged_files(folder: Path) -> None:
    loaded, path = open_sae(folder), folder / FILE
    good = path.read_text(encoding="utf-8")
    try:
        known = json.loads(good)
        path.write_text(json.dumps(known | {"weights": "0" * 64}), encoding="utf-8")
        assert read_measured(loaded) == []
        for broken in (
            "",
            "[]",
            "{}",
            json.dumps(known | {"more": 1}),
            good.replace('"latent": 5', '"latent": -5'),
        ):
            path.write_text(broken, encoding="utf-8")
            with pytest.raises(InputError, match="delete it, and measure again"):
                read_measured(loaded)
    finally:
        path.write_text(good, encoding="utf-8")
