"""One model per mechanism, packed against alone, by the checks of tests/long/families.py; and refusals."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import plain_forward, random_dialogues, randomise, small_model
from long.families import LAYER, Plain, dialogues, head, lens, packed, share, steered
from tiny_families import LAYERS, VARIANTS, WIDTH, tiny_config, tiny_model

from fastzoo.config.recipe import ModelSection
from fastzoo.core.errors import ModelError
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.fitness import check_model
from fastzoo.lm.lengths import LengthRules, Proven
from fastzoo.lm.likelihood import answer_nlls
from fastzoo.lm.load import find_model, load_model
from fastzoo.lm.logit_lens import logit_lens
from fastzoo.lm.stack import decoder_layers, language_model
from fastzoo.saes.standard import StandardSAE

NAMED = {f"{family}: {name}": (family, own) for family, name, own in VARIANTS}
PACKED = [
    *("phi3: longrope", "llama: longrope", "llama: dynamic", "qwen2: yarn", "llama: llama3"),
    *("llama4_text", "phimoe", "qwen2_moe"),  # chunks and windows that stand in the mask only
    *("gemma3_text", "cohere2"),  # windows that attention is told of too
    *("gpt_oss", "granite: scaled logits", "cohere"),  # sinks, scales of logits
]
ALONE = {
    "falcon: ALiBi": "attention",
    "bloom": "attention",
    "doge": "SegmentMask",
    "llama4_text: temperature": "differs",  # scores grow with a token's place in the pack
    "mamba": "convolution",
    "bamba": "convolution",
    "rwkv": "attention",
    "bart": "differs",  # counts its positions itself; a decoder in a wrapper
}


def of(name: str) -> tuple[ResidualReader, Plain]:
    family, own = NAMED.get(name, (name, {}))
    config = tiny_config(family, **own)
    reader = ResidualReader(tiny_model(config), pack_tokens=512)
    check_model(reader)
    names = {id(module): name for name, module in reader.model.named_modules()}
    return reader, Plain(lambda: tiny_model(config), names[id(reader.layers)])


@pytest.mark.parametrize("name", PACKED)
def test_packed_is_alone_and_logits_steering_and_lens_are_the_model_s_own(name: str) -> None:
    reader, plain = of(name)
    assert packed(reader, plain) < 1e-5
    assert reader.alone is None
    assert head(reader, plain) < 1e-5
    sae = randomise(StandardSAE(WIDTH, 2 * WIDTH))
    assert steered(reader, plain, sae) < 1e-5
    assert lens(reader, plain) == 0


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_be_packed_goes_alone_and_it_is_said_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        reader, plain = of(name)
        assert packed(reader, plain) < 1e-5
        assert packed(reader, plain) < 1e-5
    assert reader.alone and ALONE[name] in reader.alone
    said = [r.message for r in caplog.records if "one by one" in r.message]
    assert said == [f"dialogues go through the model one by one: {reader.alone}"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gemma3n_text", "not one residual stream"),
        ("deepseek_v4", "not one residual stream"),
        ("bert", "see those after them"),
        ("xlm", "decoder layers"),
    ],
)
def test_models_without_one_causal_residual_stream_are_refused_in_one_line(name: str, why: str) -> None:
    with pytest.raises(ModelError, match=why) as caught:
        of(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "data2vec-text", "roberta-prelayernorm"])
def test_models_that_count_positions_from_elsewhere_are_refused(family: str) -> None:
    """Packed and alone they would be wrong alike."""
    model = tiny_model(tiny_config(family, is_decoder=True))
    with pytest.raises(ModelError, match="positions do not count from 0"):
        check_model(ResidualReader(model))


def test_a_head_of_another_width_has_no_logit_lens() -> None:
    with pytest.raises(ModelError, match="more than a matrix"):
        logit_lens(tiny_model(tiny_config("rembert", is_decoder=True)), torch.randn(2, WIDTH))


def test_a_model_whose_file_asks_for_tuples_is_read(tmp_path: Path) -> None:
    tiny_model(tiny_config("llama", return_dict=False)).save_pretrained(tmp_path)
    section, cpu = ModelSection(name=str(tmp_path)), torch.device("cpu")
    model = load_model(find_model(section), section, cpu)
    check_model(ResidualReader(model))


@pytest.mark.parametrize(
    ("family", "key"), [("llama", "max_position_embeddings"), ("gpt2", "n_positions"), ("mpt", "max_seq_len")]
)
def test_how_long_a_dialogue_can_be(family: str, key: str, tmp_path: Path) -> None:
    tiny_config(family, **{key: 77}).save_pretrained(tmp_path)
    assert find_model(ModelSection(name=str(tmp_path))).max_positions == 77


def test_a_vision_tower_as_deep_as_the_language_model_is_not_taken_for_it() -> None:
    reader, plain = of("gemma3")
    towers = reader.model.model.vision_tower.modules()
    assert any(isinstance(m, torch.nn.ModuleList) and len(m) == LAYERS for m in towers)
    assert decoder_layers(reader.model) is reader.model.model.language_model.layers
    assert language_model(reader.model) is reader.model.model.language_model
    assert packed(reader, plain) < 1e-5 and reader.alone is None


def test_encoder_decoder_models_are_refused_by_their_configuration(tmp_path: Path) -> None:
    from transformers import BartConfig, T5Config

    for kind in (T5Config, BartConfig):
        kind().save_pretrained(tmp_path / kind.__name__)
        with pytest.raises(ModelError, match="encoder-decoder"):
            find_model(ModelSection(name=str(tmp_path / kind.__name__)))


def test_packing_that_fails_only_for_longer_dialogues_is_found_when_they_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a mechanism would that no configuration names."""
    model, plain = small_model("llama", "sdpa"), small_model("llama", "sdpa")

    def mix(module: Any, args: Any, output: Any) -> Any:
        return output + 0.1 * output.roll(1, 1) if output.shape[1] > 40 else None

    short, long = random_dialogues([9, 12, 7, 10]), random_dialogues([30, 35])
    reader = ResidualReader(model, pack_tokens=80)
    model.model.layers[0].register_forward_hook(mix)
    expected = [plain_forward(plain, s.ids)[0][2] for s in (*short, *long)]
    found = [c["L2"] for c in reader.columns([short], [2])]
    assert reader.alone is None
    with caplog.at_level(logging.WARNING):
        found += [c["L2"] for c in reader.columns([long], [2])]
    assert reader.alone and "packed, a dialogue of" in caplog.text
    assert share(torch.cat(found), torch.cat(expected)) < 1e-5


def test_what_was_proven_goes_with_a_checkpoint() -> None:
    reader, _ = of("phi3: longrope")
    list(reader.columns([dialogues([9, 100, 3])], [LAYER]))
    other, _ = of("phi3: longrope")
    other.restore(reader.state())
    assert other.state() == reader.state() and other.state()["proven"]["kinds"]


def test_packs_hold_one_side_of_a_switching_length() -> None:
    rules = LengthRules.of(tiny_config("phi3", **NAMED["phi3: longrope"][1]))
    assert rules.sides == (64,) and 64 in rules.boundaries and rules.remembers
    group = dialogues([3, 64, 65, 100, 64])
    assert [[len(s) for s in part] for part in rules.together(group)] == [[3, 64], [65, 100], [64]]
    assert rules.key(3, 60) == rules.key(60, 64) != rules.key(65, 90) and rules.key(60, 65) is None
    dynamic = LengthRules.of(tiny_config("llama", **NAMED["llama: dynamic"][1]))
    assert [[len(s) for s in p] for p in dynamic.together(group)] == [[3, 64], [65], [100], [64]]
    assert dynamic.key(3, 64) and dynamic.key(60, 65) is None and dynamic.key(65, 90) is None
    plain = LengthRules.of(tiny_config("llama"))
    assert plain.together(group) == [group] and not plain.remembers


def test_a_pack_is_proven_again_beyond_every_boundary_and_when_it_is_longer() -> None:
    proven = Proven(LengthRules(boundaries=(24, 64)))
    proven.add(dialogues([20, 20]))
    assert proven.knows(dialogues([20, 2, 18]))
    assert not proven.knows(dialogues([20]))  # does not show whether neighbours are seen
    assert not proven.knows(dialogues([25, 15]))  # beyond the window
    assert not proven.knows(dialogues([20, 20, 20]))  # the pack is longer than any


def test_history_does_not_change_what_a_growing_rope_gives() -> None:
    reader, plain = of("llama: dynamic")
    (short, long, longer) = dialogues([20, 90, 200])
    for s in (long, longer, short, long):
        (columns,) = reader.columns([[s]], [LAYER])
        assert share(columns[f"L{LAYER}"], plain.forward(s.ids)[0]) < 1e-5
    assert not np.allclose(plain.forward(longer.ids[:90])[0], plain.forward(longer.ids)[0][:90])


@pytest.mark.parametrize("name", ["phi3: longrope", "llama: dynamic"])
def test_likelihoods_of_answers_do_not_depend_on_which_are_scored_together(name: str) -> None:
    reader, _ = of(name)
    whole = [s.ids.tolist() for s in dialogues([9, 60, 64, 65, 80, 100])]
    prompts, answers = [ids[:-4] for ids in whole], [ids[-4:] for ids in whole]
    together = answer_nlls(reader.model, prompts, answers)
    for prompt, answer, found in zip(prompts, answers, together, strict=True):
        (alone,) = answer_nlls(tiny_model(reader.model.config), [prompt], [answer])
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)
