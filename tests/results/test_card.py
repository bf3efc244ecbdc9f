"""Cards: what users typed cannot act as markup, and no card ever fails a save."""

from __future__ import annotations

import json
import logging
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TOYS_FILES
from examples import HOSTILE, example, older

from fastzoo import tiny
from fastzoo.results.card import escape, render_card
from fastzoo.results.card_merge import merge_cards
from fastzoo.results.figures import DEFINITIONS, FIGURES, SUBSETS
from fastzoo.results.licences import base_licence, notice

ROOT = Path(__file__).parents[2]


def split(card: str) -> tuple[dict[str, Any], str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_card_holds_its_figures_and_the_papers_beside_them() -> None:
    record, figures = example()
    front, body = split(render_card(record, figures))
    assert front["base_model"] == "org/Model-Instruct"
    assert front["base_model_relation"] == "adapter"
    (result,) = front["model-index"][0]["results"]
    assert {"type": "fvu", "name": "FVU (all tokens)", "value": 0.25} in result["metrics"]
    assert result["metrics"][0]["name"] == "L0 (without sinks)"
    assert "log2 MSE -1.5" in body and f"| FVU |{' 0.25 |' * len(SUBSETS)}\n" in body
    assert "empty: 2" in body and 'MODEL = "org/Model-Instruct"' in body


def test_figures_without_sinks_lead_and_what_the_sae_does_with_sinks_is_said() -> None:
    record, figures = example()
    for key, without, all_tokens in (("l0", 31.5, 33.0), ("fvu", 0.4612, 0.0029)):
        figures["metrics"][key]["without_sinks"]["value"] = without
        figures["metrics"][key]["all"]["value"] = all_tokens
    figures["metrics"]["mse"]["without_sinks"]["tokens"] = 73
    trained = split(render_card(record, figures))[1]
    lead = (
        "**In short** (without attention sinks): 31.5 latents active per token (L0), 0.4612 of the variance"
    )
    assert lead in trained and "(FVU), 4 dead latents (12.5%)" in trained
    assert "| | without sinks | all tokens | special" in trained and "| FVU | 0.4612 | 0.0029 |" in trained
    assert "norm above 20, 10 times the median" in trained and "trained on them, too" in trained
    assert "7 of these tokens are attention sinks" in trained and "| attention sinks | trained on;" in trained
    assert "> **Warning:** FVU is 0.0029 with attention sinks and 0.4612 without" in trained
    assert "skip_sinks" not in trained

    assert "> **Warning:** L0 is 31.5, not 24 as training.l0 asked for" in trained

    record["sae"]["sinks"]["skipped"] = True
    record["recipe"]["training"]["l0"] = 30.0
    skipped = split(render_card(record, figures))[1]
    assert lead in skipped and "not trained on them and passes them through" in skipped
    assert "Warning" not in skipped and "skip_sinks=True" in skipped


def test_a_card_of_an_older_record_says_that_sinks_are_included() -> None:
    record, figures = older(*example())
    front, body = split(render_card(record, figures))
    assert "**In short** (attention sinks included): 0.25 latents" in body and "3 dead latents (9.4%)" in body
    assert "| | all tokens | special tokens | without position 0 |\n|---|---:|---:|---:|\n" in body
    assert "without sinks" not in body and "| FVU | 0.25 | 0.25 | 0.25 |\n" in body
    assert 'Cross-entropy "without position 0"' in body
    found = {m["type"]: m["name"] for m in front["model-index"][0]["results"][0]["metrics"]}
    assert found["l0"] == "L0 (all tokens)" and not [key for key in found if "sinks" in key]
    assert found["dead_latents_share"] == "share of dead latents (all tokens)"


def test_what_users_typed_is_shown_and_does_nothing() -> None:
    record, figures = example(name=HOSTILE)
    for data in (record["training_data"], record["evaluation_data"]):
        data["name"] = HOSTILE
        data["skipped"] = {HOSTILE: 1}
    front, body = split(render_card(record, figures))
    assert front["model-index"][0]["results"][0]["dataset"]["type"] == HOSTILE
    text = re.sub(r"<!-- .*?-->", "", body.replace(json.dumps(HOSTILE)[:5], ""), flags=re.S)
    outside = "".join(part for i, part in enumerate(text.split("```")) if i % 2 == 0)
    assert "<script" not in outside and "](javascript" not in outside
    assert "49" not in outside and "\n# <" not in outside and "\u202e" not in outside
    rows = [line for line in outside.splitlines() if line.startswith(("| source |", "| model |"))]
    assert [row.replace(r"\|", "").count("|") for row in rows] == [4, 3]
    assert merge_cards(render_card(record, figures), render_card(record, figures)).endswith(body)


@pytest.mark.parametrize("broken", ["sae", "base_model", "recipe", "training_data"])
def test_a_card_that_cannot_be_rendered_does_not_fail(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    record, figures = example()
    del record[broken]
    with caplog.at_level(logging.WARNING):
        card = render_card(record, figures)
    front, body = split(card)
    assert front["tags"] == ["sparse-autoencoder"] and "model-L3-8x-jumprelu" in body
    assert "could not be rendered" in caplog.text


def test_missing_values_are_dashes() -> None:
    record, figures = example()
    figures["metrics"]["ce_recovered"]["special"]["value"] = None
    front, body = split(render_card(record, figures))
    assert "| CE recovered | 0.25 | 0.25 | 0.25 | — | — |" in body
    types = [m["type"] for m in front["model-index"][0]["results"][0]["metrics"]]
    assert "ce_recovered" in types and "ce_recovered_special" not in types


def test_escape_leaves_plain_words_alone() -> None:
    assert escape("plain words, 3.5 and a-b") == "plain words, 3.5 and a-b"
    assert escape("a|b\nc") == r"a\|b c"


def test_the_model_index_has_every_figure_of_the_table() -> None:
    record, figures = example()
    front, body = split(render_card(record, figures))
    (result,) = front["model-index"][0]["results"]
    found = {m["type"]: m["value"] for m in result["metrics"]}
    expected = {f.key if s == "all" else f"{f.key}_{s}" for f in FIGURES for s in f.subsets}
    assert set(found) == expected | {"dead_latents_share"}
    assert (found["dead_latents"], found["dead_latents_without_sinks"]) == (3, 4)
    assert found["dead_latents_share"] == 4 / 32
    assert "| dead latents of 32 | 4 (12.5%) | 3 (9.4%) |" in body
    assert all(f"({escape(key)}): {escape(text)}" in body for key, text in DEFINITIONS.items())
    assert "pipeline_tag" not in front and front["library_name"] == "saelens"


def test_only_data_of_the_hub_is_in_its_list() -> None:
    record, figures = example()
    record["training_data"]["name"] = "lab/chats"  # a folder may be called that
    assert "datasets" not in split(render_card(record, figures))[0]
    for data, name in ((record["training_data"], "lab/chats"), (record["evaluation_data"], "a/b")):
        data |= {"kind": "hub", "name": name, "revision": "d" * 40, "source_rows": None}
    front, body = split(render_card(record, figures))
    assert front["datasets"] == ["lab/chats", "a/b"]
    assert "[lab/chats](https://huggingface.co/datasets/lab/chats)" in body
    assert f"- training: {'d' * 40}\n- held out: {'d' * 40}\n" in body
    assert "| rows of the source | — | — |" in body and "| split | train | train |" in body


def test_deduplication_is_none_unless_the_record_says_otherwise() -> None:
    record, figures = example()
    card = render_card(record, figures)
    assert "| deduplication | none |" in card and "was not deduplicated" in card
    record["training_data"]["deduplication"] = {"n": 20, "dropped": 1234}
    card = render_card(record, figures)
    assert "| deduplication | n: 20; dropped: 1234 |" in card
    assert "was not deduplicated" not in card


def test_latents_of_special_tokens_are_shown_where_they_were_measured() -> None:
    record, figures = example()
    assert "Latents of the special tokens" not in render_card(record, figures)
    latents = [{"latent": 5, "mean_max": 3.21987, "dialogues": 1200}]
    token = {"token_id": 1, "token": "<|im_start|>", "dialogues": 2000, "latents": latents}
    figures["special_latents"] = {"definition": "a mean of maxima", "tokens": [token]}
    card = render_card(record, figures)
    assert r"| &lt;\|im\_start\|&gt; | 1 | 2,000 | **5** (3.22, 1,200) |" in card
    figures["special_latents"]["tokens"][0]["latents"] = []
    assert "| 2,000 | none |" in render_card(record, figures)


@pytest.mark.parametrize(
    "model, hub, named",
    [
        ("meta-llama/Llama-3.2-1B-Instruct", {"license": "llama3.2"}, "Llama 3.2 Community"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", {"license": "llama3.1"}, "Llama 3.1 Community"),
        ("someone/Llama-3.1-8B-Tuned", {"license": "llama3.1"}, "Llama 3.1 Community"),
        ("Qwen/Qwen2.5-7B-Instruct", {"license": "apache-2.0"}, None),
        ("Qwen/Qwen2.5-Coder-32B-Instruct", {"license": "apache-2.0"}, None),
        ("Qwen/Qwen3-30B-A3B", {"license": "apache-2.0"}, None),
        ("tiny-chat", {"license": "apache-2.0"}, None),
        ("someone/unknown", {}, None),
        ("someone/Qwen2.5-7B-Tuned", {}, None),
    ],
)
def test_licences_of_derivatives(model: str, hub: dict[str, str], named: str | None) -> None:
    licence, text = base_licence(model), notice(model)
    assert (licence.metadata if licence else {}) == hub
    assert (named is None) == (text is None)
    record, figures = example(name=model)
    front, body = split(render_card(record, figures))
    assert {k: v for k, v in front.items() if k.startswith("license")} == hub
    assert ("Built with Llama" in body) == bool(named) == ("in `NOTICE`" in body)
    assert ("does not know which" in body) == (not hub)
    if named and text:
        assert text.startswith(named[:9]) and f"the {named} License, Copyright © Meta" in text
        assert text.strip() in body


def test_the_notice_is_saved_beside_the_card(tmp_path: Path) -> None:
    model = tmp_path / "Llama-3.2-Toy"
    shutil.copytree(tiny.MODEL, model)
    train = runpy.run_path(str(ROOT / "recipes" / "train.py"), run_name="recipe")["main"]
    train(
        [
            *(f"model.name={model}", "layers=[0]", "expansions=[1]", "architectures=[standard]"),
            *("training.tokens=2048", "training.batch_size=256", "training.buffer_tokens=1024"),
            *(
                "evaluation.dialogues=2",
                "threads=1",
                "compute.step=reference",
                "training.l0=16",
                f"output.folder={tmp_path / 'out'}",
            ),
            *TOYS_FILES,
        ]
    )
    folder = tmp_path / "out" / "llama-3.2-toy-L0-1x-standard"
    text = (folder / "NOTICE").read_text(encoding="utf-8")
    assert text == notice("Llama-3.2-Toy") and "Copyright © Meta" in text
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "**Built with Llama.**" in card and "license: llama3.2" in card
    assert "base_model" not in split(card)[0]  # a folder is not on the Hub


def test_the_licence_of_qwens_3b() -> None:
    for model in ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-Coder-3B"):
        licence = base_licence(model)
        assert licence and licence.metadata == {
            "license": "other",
            "license_name": "qwen-research",
            "license_link": f"https://huggingface.co/{model}/blob/main/LICENSE",
        }
        assert "Qwen RESEARCH LICENSE" in (notice(model) or "")


def test_hub_clients_read_the_metadata_and_write_it_back_unedited() -> None:
    from huggingface_hub import ModelCard

    record, figures = example()
    generated = render_card(record, figures, "org/model-L3-8x-jumprelu")
    card = ModelCard(generated)
    assert card.data.base_model == "org/Model-Instruct"
    figures["metrics"]["l0"]["all"]["value"] = 7.5
    newer = render_card(record, figures, "org/model-L3-8x-jumprelu")
    # What the client writes is in another order and form; its values are ours still.
    merged = ModelCard(merge_cards(str(card), newer))
    assert merged.data.eval_results is not None
    l0 = next(r for r in merged.data.eval_results if r.metric_type == "l0")
    assert l0.metric_value == 7.5
