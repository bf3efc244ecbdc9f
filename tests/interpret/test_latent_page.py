"""Pages of latents, against what ``fastzoo features`` says of the same dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import plain_forward
from zoo_folders import train_small

from fastzoo.core.errors import DataError, InputError
from fastzoo.interpret.by_latent import of_latents
from fastzoo.interpret.latent_page import BINS, LatentPages, LayerStates, histogram
from fastzoo.interpret.statistics import statistics
from fastzoo.loading import Assembly, assemble

DIALOGUES = 40
NAME = "tiny-chat-L2-2x-jumprelu"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    run: Path = train_small(tmp_path_factory.mktemp("pages") / "run", layers="[2]")
    return assemble([run / NAME])


@pytest.fixture(scope="module")
def pages(alone: Assembly) -> LatentPages:
    sequences, split = alone.dialogues(DIALOGUES)
    told: list[int] = []
    states = LayerStates(alone.reader, sequences, 2, told.append)
    assert sum(told) == split["tokens"] == len(states.x_TD)
    return LatentPages(alone, states, split)


def test_states_are_those_of_each_dialogue_alone(alone: Assembly) -> None:
    sequences, _ = alone.dialogues(12)
    states = LayerStates(alone.reader, sequences, 2)
    for sequence, x_TD in zip(sequences, states.x_TD.split(states.lengths), strict=True):
        expected = plain_forward(alone.reader.model, sequence.ids)[0][2]
        torch.testing.assert_close(x_TD, expected, rtol=1e-5, atol=1e-4)


def test_parts_join_to_the_whole(alone: Assembly) -> None:
    sequences, split = alone.dialogues(12)
    whole = LayerStates(alone.reader, sequences, 2)
    parts = [LayerStates(alone.reader, sequences[start : start + 5], 2) for start in (0, 5, 10)]
    found = LayerStates.joined(parts)
    torch.testing.assert_close(found.x_TD, whole.x_TD, rtol=1e-5, atol=1e-4)
    assert found.lengths == whole.lengths and (found.ids_T == whole.ids_T).all()
    pages = LatentPages(alone, found, split)
    assert pages.figures.tokens == LatentPages(alone, whole, split).figures.tokens


def test_latents_of_special_tokens(alone: Assembly, pages: LatentPages) -> None:
    found = pages.on_special_tokens(3)
    assert [entry["occurrences"] for entry in found] == sorted(
        (e["occurrences"] for e in found), reverse=True
    )
    end = next(entry for entry in found if entry["token"] == "<|im_end|>")
    means = [
        float(pages.activations(k)[pages._special_T & (pages._states.ids_T == end["token_id"])].mean())
        for k in range(256)
    ]
    assert [x["latent"] for x in end["latents"]] == sorted(range(256), key=lambda k: -means[k])[:3]
    assert end["latents"][0]["mean"] == pytest.approx(max(means), rel=1e-5)


def test_a_page_says_what_the_report_on_the_latent_says(alone: Assembly, pages: LatentPages) -> None:
    sequences, _ = alone.dialogues(DIALOGUES)
    expected = statistics(alone.reader, alone.saes, sequences)[NAME]
    assert torch.equal(pages.figures.highest_F, expected.highest_F)
    torch.testing.assert_close(pages.figures.mean_max_F, expected.mean_max_F)
    assert pages.figures.tokens == expected.tokens and pages.figures.dialogues == expected.dialogues
    strongest = expected.mean_max_F.argsort(descending=True)
    for latent in (*strongest[:3].tolist(), int(strongest[-1])):
        (report,) = of_latents(alone, [latent], dialogues=DIALOGUES, top=8)["saes"][NAME]["latents"]
        page = pages.page(latent)
        for key in ("mean_max", "highest", "frequency", "dialogue_frequency"):
            assert page[key] == pytest.approx(report[key])
        assert page["writes"] == report["writes"] and page["sae"] == NAME and page["layer"] == 2
        (more,) = of_latents(alone, [latent], dialogues=DIALOGUES, top=64)["saes"][NAME]["latents"]
        said, rows = set(), []
        for context in more["contexts"]:
            words = tuple(x["token"] for x in context["tokens"])
            rows += [context["row"]] * (words not in said)
            said.add(words)
        assert [c["row"] for c in page["contexts"]] == rows[:8]
        assert [t["token"] for t in page["tokens"]] == [t["token"] for t in report["tokens"]]
        assert page["sinks"] == pytest.approx(report["sinks"])


def test_histogram_special_tokens_and_similar_latents(alone: Assembly, pages: LatentPages) -> None:
    latent = int(pages.figures.frequency_F.argmax())
    page, acts = pages.page(latent), pages.activations(latent)
    found = page["histogram"]
    assert len(found["edges"]) == BINS + 1 and found["edges"][-1] == pytest.approx(page["highest"])
    assert sum(found["counts"]) == round(page["frequency"] * pages.figures.tokens)

    ids = np.concatenate([sequence.ids for sequence in alone.dialogues(DIALOGUES)[0]])
    position = np.concatenate([sequence.position for sequence in alone.dialogues(DIALOGUES)[0]])
    end = next(entry for entry in page["special"] if entry["token"] == "<|im_end|>")
    there = (ids == end["token_id"]) & (position > 0)
    assert end["occurrences"] == there.sum() and end["fired"] == (acts[there] > 0).sum()
    assert end["mean"] == pytest.approx(float(acts[there].mean()))
    assert {"user", "assistant"} <= {entry["token"] for entry in page["special"]}

    W_dec_FD = alone.saes[NAME][1].W_dec
    cosines = torch.nn.functional.cosine_similarity(W_dec_FD, W_dec_FD[[latent]])
    order = [k for k in cosines.argsort(descending=True).tolist() if k != latent]
    assert [x["latent"] for x in page["similar"]] == order[: len(page["similar"])]
    assert page["similar"][0]["cosine"] == pytest.approx(cosines[order[0]].item(), abs=1e-5)


def test_what_there_is_none_of(alone: Assembly, pages: LatentPages) -> None:
    silent = [int(k) for k in (pages.figures.frequency_F == 0).nonzero()[:1]]
    for latent in silent:
        page: dict[str, Any] = pages.page(latent)
        assert page["contexts"] == [] and page["histogram"] == {"edges": [], "counts": []}
    assert histogram(np.zeros(0)) == {"edges": [], "counts": []}
    for latent in (-1, 256, 10**9):
        with pytest.raises(InputError, match="has 256 latents, numbered 0 to 255"):
            pages.page(latent)
    with pytest.raises(DataError, match="no dialogues"):
        LayerStates(alone.reader, [], 2)
