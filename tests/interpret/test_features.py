"""Where latents fire and what they write, against loops over unpacked forwards of the embedded model."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import weakref
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WIDTH, plain_forward, randomise, recipe, sequence, small_model, write_jsonl
from tiny_families import tiny_config, tiny_model
from torch import Tensor
from typer.testing import CliRunner
from zoo_folders import train_small

import fastzoo
from fastzoo import tiny
from fastzoo.cli.feature_tables import print_text, print_tokens, visible
from fastzoo.cli.main import app
from fastzoo.core.errors import DataError, InputError, ModelError, TrainingError
from fastzoo.data.sequences import TokenSequence
from fastzoo.data.special_tokens import SpecialTokens, TurnTexts, answer_starts
from fastzoo.data.tokenizer import ChatTokenizer
from fastzoo.interpret.by_latent import of_latents, rank_by_activation, rank_by_output
from fastzoo.interpret.by_token import _add_paper, find_token, of_special_tokens, of_text, of_token
from fastzoo.interpret.contexts import AROUND
from fastzoo.interpret.output_score import TOKENS, output_scores
from fastzoo.interpret.statistics import statistics
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.logit_lens import lens_tokens, logit_lens
from fastzoo.loading import Assembly, assemble
from fastzoo.results.evaluate import evaluate
from fastzoo.saes.base import Sinks
from fastzoo.saes.jumprelu import JumpReLUSAE
from fastzoo.saes.paper import paper_special_latents

DIALOGUES = 50
NAMES = ("tiny-chat-L1-2x-jumprelu", "tiny-chat-L2-2x-jumprelu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one SAE at each of two layers."""
    return train_small(tmp_path_factory.mktemp("features") / "run", layers="[1,2]")


@pytest.fixture(scope="module")
def together(run: Path) -> Assembly:
    return assemble([run / name for name in NAMES])


@pytest.fixture(scope="module")
def dialogues(together: Assembly) -> list[TokenSequence]:
    return together.dialogues(DIALOGUES)[0]


@pytest.fixture(scope="module")
def alone(together: Assembly, dialogues: list[TokenSequence]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Residual stream (T, D) and activations (T, F) of each dialogue, one forward each, by SAE."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in NAMES}
    for dialogue in dialogues:
        states, _ = plain_forward(together.reader.model, dialogue.ids)
        for name, (layer, sae) in together.saes.items():
            found[name].append((states[layer], sae.encode(states[layer], skip_sinks=True)))
    return found


def test_exported_names_are_no_modules() -> None:
    """Importing a module of that name would put it in the function's place."""
    for name in fastzoo.__all__:
        assert importlib.util.find_spec(f"fastzoo.{name}") is None
        assert getattr(fastzoo, name) is not None
    assert fastzoo.statistics is statistics and fastzoo.output_scores is output_scores


# --- statistics --------------------------------------------------------------------------------


@pytest.mark.parametrize("pack_tokens", [None, 150])
def test_statistics_equal_loops(
    together: Assembly,
    dialogues: list[TokenSequence],
    alone: dict[str, list[tuple[Tensor, Tensor]]],
    pack_tokens: int | None,
) -> None:
    reader = ResidualReader(together.reader.model, pack_tokens=pack_tokens)
    single = sequence([5], 99)  # has nothing but a position 0
    found = statistics(reader, together.saes, [*dialogues[:20], single, *dialogues[20:]])
    for name in NAMES:
        norms, largest, fired = [], [], torch.zeros(256)
        for x_TD, acts_TF in alone[name]:
            norms += x_TD[1:].norm(dim=1).tolist()
            largest.append(acts_TF[1:].amax(0))
            fired += (acts_TF[1:] > 0).sum(0)
        max_GF = torch.stack(largest).double()
        figures = found[name]
        assert (figures.dialogues, figures.tokens) == (DIALOGUES, len(norms))
        assert figures.layer == together.saes[name][0]
        assert figures.residual_norm == pytest.approx(np.mean(norms), rel=1e-5)
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(figures.mean_max_F, max_GF.mean(0), **close)
        torch.testing.assert_close(figures.highest_F, max_GF.amax(0), **close)
        torch.testing.assert_close(
            figures.frequency_F, fired.double() / len(norms), rtol=0, atol=2 / len(norms)
        )
        torch.testing.assert_close(
            figures.dialogue_frequency_F, (max_GF > 0).double().mean(0), rtol=0, atol=0.021
        )
    first, second = (found[name] for name in NAMES)
    assert first.residual_norm != second.residual_norm
    assert 0 < (first.mean_max_F > 0).sum() <= 256


def test_the_model_runs_once_for_all_saes(together: Assembly, dialogues: list[TokenSequence]) -> None:
    computed = []
    for names in (NAMES[1:], NAMES):
        reader = ResidualReader(together.reader.model)
        statistics(reader, {name: together.saes[name] for name in names}, dialogues)
        computed.append(reader.computed_tokens)
    assert computed[0] == computed[1]


def test_statistics_of_nothing_are_refused(together: Assembly) -> None:
    with pytest.raises(DataError, match="no dialogue has a token that counts"):
        statistics(together.reader, together.saes, [sequence([5])])
    with pytest.raises(ModelError, match=r"x \(width 8, layer 1\) does not fit"):
        statistics(together.reader, {"x": (1, JumpReLUSAE(8, 8))}, [sequence([5, 6])])


# --- attention sinks ---------------------------------------------------------------------------


def with_sinks(
    together: Assembly, alone: dict[str, list[tuple[Tensor, Tensor]]], skipped: bool
) -> tuple[str, float, Assembly]:
    """An SAE's name, the norm above which an eighth of all tokens are sinks to it, and it alone, marked so."""
    name = NAMES[0]
    layer, sae = together.saes[name]
    limit = torch.cat([x_TD.norm(dim=1) for x_TD, _ in alone[name]]).quantile(0.875).item()
    marked = deepcopy(sae)
    marked.sinks = Sinks(limit, limit / 2, skipped)
    return name, limit, replace(together, saes={name: (layer, marked)})


@pytest.mark.parametrize("skipped", [True, False])
def test_sinks_do_not_count_wherever_they_stand(
    together: Assembly,
    dialogues: list[TokenSequence],
    alone: dict[str, list[tuple[Tensor, Tensor]]],
    skipped: bool,
) -> None:
    name, limit, assembly = with_sinks(together, alone, skipped)
    sinks, kept, acts = [], [], []
    for x_TD, acts_TF in alone[name]:
        sink_T = x_TD.norm(dim=1) > limit
        acts.append(acts_TF.masked_fill(sink_T[:, None] & skipped, 0))
        sinks.append(sink_T | (torch.arange(len(x_TD)) == 0))
        kept.append(~sinks[-1])
    assert sum(int(s[1:].sum()) for s in sinks) > 20 < sum(int(k.sum()) for k in kept)

    (figures,) = statistics(together.reader, assembly.saes, dialogues).values()
    norms = torch.cat([x_TD[k].norm(dim=1) for (x_TD, _), k in zip(alone[name], kept, strict=True)])
    largest = torch.stack([a[k].amax(0) for a, k in zip(acts, kept, strict=True)]).double()
    assert (figures.dialogues, figures.tokens) == (DIALOGUES, len(norms))
    assert figures.residual_norm == pytest.approx(norms.mean().item(), rel=1e-5)
    torch.testing.assert_close(figures.mean_max_F, largest.mean(0), rtol=1e-4, atol=1e-5)

    latent = int(figures.mean_max_F.argmax())
    (entry,) = of_latents(assembly, [latent], dialogues=DIALOGUES, top=4)["saes"][name]["latents"]
    at_sinks = torch.cat([a[s, latent] for a, s in zip(acts, sinks, strict=True)])
    assert entry["sinks"]["tokens"] == len(at_sinks)
    assert entry["sinks"]["mean"] == pytest.approx(at_sinks.mean().item(), rel=1e-3, abs=1e-6)
    assert entry["contexts"][0]["activation"] == pytest.approx(largest[:, latent].max().item(), rel=1e-4)
    counted = np.concatenate([d.ids[k.numpy()] for d, k in zip(dialogues, kept, strict=True)])
    for x in entry["tokens"]:
        assert x["occurrences"] == int((counted == x["token_id"]).sum())

    number = find_token(together, "assistant")
    (found,) = of_token(assembly, "assistant", dialogues=DIALOGUES, top=3)["saes"][name]["tokens"]
    best_GF = [
        a[k & torch.from_numpy(d.ids == number)].amax(0)
        for d, a, k in zip(dialogues, acts, kept, strict=True)
        if (k.numpy() & (d.ids == number)).any()
    ]
    best = torch.stack(best_GF).double().mean(0).topk(3)
    assert found["dialogues"] == len(best_GF)
    assert [x["mean_max"] for x in found["latents"]] == pytest.approx(best.values.tolist(), rel=1e-4)

    text = "Where is Paris?"
    shown = of_text(assembly, text, raw=False, top=2)["saes"][name]["tokens"]
    layer, sae = together.saes[name]
    unaware = deepcopy(sae)
    unaware.sinks = None
    assembly = replace(together, saes={name: (layer, unaware)})
    plain = of_text(assembly, text, raw=False, top=2)["saes"][name]["tokens"]
    for entry, before in zip(shown, plain, strict=True):
        assert entry == (
            before if not entry["skipped"] else {**before, "skipped": True, "firing": 0, "latents": []}
        )
    assert any(entry["skipped"] for entry in shown) == skipped


@pytest.mark.parametrize("skipped", [False, True])
def test_a_record_leaves_out_the_same_sinks(
    together: Assembly,
    dialogues: list[TokenSequence],
    alone: dict[str, list[tuple[Tensor, Tensor]]],
    skipped: bool,
) -> None:
    """``metrics.json`` names the latents of special tokens that ``fastzoo features`` shows."""
    name, _, assembly = with_sinks(together, alone, skipped)
    shown = of_special_tokens(assembly, dialogues=DIALOGUES, top=5)["saes"][name]["tokens"]
    special = SpecialTokens.of(together.chat)
    evaluation = evaluate(together.reader, assembly.saes, dialogues, special, loss_dialogues=1)[name]
    kept = evaluation.special_latents["tokens"]
    unmarked = evaluate(together.reader, {name: together.saes[name]}, dialogues, special, loss_dialogues=1)[
        name
    ]
    assert kept != unmarked.special_latents["tokens"]
    assert [x["token_id"] for x in kept] == [x["token_id"] for x in shown] != []
    for one, other in zip(kept, shown, strict=True):
        assert one["dialogues"] == other["dialogues"]
        assert (one["with_sinks"] is None) == (other["with_sinks"] is None)
        values = [[x["mean_max"] for x in entry["latents"]] for entry in (one, other)]
        assert values[0] == pytest.approx(values[1], rel=1e-4)


# --- tokens ------------------------------------------------------------------------------------


def slow_top(
    dialogues: Sequence[TokenSequence], acts: Sequence[Tensor], token: int, first: int
) -> tuple[int, Tensor, Tensor]:
    """Dialogues with the token from position ``first`` on; mean maximum; dialogues fired in."""
    largest = []
    for dialogue, acts_TF in zip(dialogues, acts, strict=True):
        places = [j for j in range(first, len(dialogue)) if dialogue.ids[j] == token]
        if places:
            largest.append(acts_TF[places].amax(0).double())
    max_GF = torch.stack(largest)
    return len(largest), max_GF.mean(0), (max_GF > 0).sum(0)


@pytest.mark.parametrize("token", ["<|im_start|>", " is", "."])
def test_latents_of_any_token_equal_loops(
    together: Assembly,
    dialogues: list[TokenSequence],
    alone: dict[str, list[tuple[Tensor, Tensor]]],
    token: str,
) -> None:
    number = find_token(together, token)
    assert find_token(together, str(number)) == number
    report = of_token(together, token, dialogues=DIALOGUES, top=3)
    assert report["split"]["used"] == DIALOGUES
    for name in NAMES:
        acts = [acts_TF for _, acts_TF in alone[name]]
        (entry,) = report["saes"][name]["tokens"]
        assert entry["token_id"] == number
        checked = [(entry, 1)]
        if token == "<|im_start|>":
            checked.append((entry["with_sinks"], 0))
        for shown, first in checked:
            count, mean_F, fired_F = slow_top(dialogues, acts, number, first)
            best = mean_F.topk(3)
            assert shown["dialogues"] == count
            assert [x["latent"] for x in shown["latents"]] == best.indices.tolist()
            assert [x["mean_max"] for x in shown["latents"]] == pytest.approx(best.values.tolist(), rel=1e-4)
            assert [x["dialogues"] for x in shown["latents"]] == fired_F[best.indices].tolist()


def test_special_tokens_are_as_an_evaluation_has_them(together: Assembly, run: Path) -> None:
    """On the dialogues that the run was evaluated on."""
    saved = json.loads((run / NAMES[0] / "metrics.json").read_text())
    report = of_special_tokens(together, dialogues=saved["split"]["used"], top=5)
    for entry, then in zip(
        report["saes"][NAMES[0]]["tokens"], saved["special_latents"]["tokens"], strict=True
    ):
        assert entry["token"] == then["token"] and entry["paper"] is None
        assert [x["latent"] for x in entry["latents"]] == [x["latent"] for x in then["latents"]]
        assert [x["mean_max"] for x in entry["latents"]] == pytest.approx(
            [x["mean_max"] for x in then["latents"]], rel=1e-4
        )


def test_the_papers_latents_stand_beside() -> None:
    name = "qwen2.5-7b-L18-8x-jumprelu"
    reported = paper_special_latents()[fastzoo.parse_name(name)]
    ours = {"token_id": reported[0].token_id, "token": reported[0].token, "latents": []}
    other = {"token_id": 7, "token": "x", "latents": []}
    found: dict[str, Any] = {"tokens": [ours, other]}
    _add_paper(found, name)
    assert other["paper"] is None
    assert ours["paper"][0] == {
        "rank": 1,
        "latent": reported[0].latent,
        "mean_max": reported[0].mean_max_activation,
    }
    shown = [(e["token_id"], x["rank"]) for e in found["tokens"] for x in e["paper"] or ()]
    assert sorted(shown) == [(x.token_id, x.rank) for x in reported]
    found = {"tokens": [dict(other)]}
    _add_paper(found, "a folder/of any name")
    assert found == {"tokens": [{**other, "paper": None}]}


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("Paris_is", "is not a token of tiny-chat but 4"),
        ("", "is not a token"),
        ("99999", "is not a token id; ids are 0 to 1023"),
        ("9" * 5000, "is not a token id"),
        ("a\nb", r"but 3 \('a', '\\n', 'b'\)"),
        ("\udcff", r"--token: '\?' is not valid Unicode"),
    ],
)
def test_what_is_no_token(together: Assembly, token: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        of_token(together, token, dialogues=2, top=5)


def test_a_token_that_stands_nowhere(together: Assembly, dialogues: list[TokenSequence]) -> None:
    present = set(np.concatenate([d.ids for d in dialogues[:2]]).tolist())
    absent = next(i for i in range(1024) if i not in present)
    with pytest.raises(InputError, match="is in none of the 2 dialogues"):
        of_token(together, str(absent), dialogues=2, top=5)
    five = together.chat.tokenizer.get_vocab()["5"]
    with pytest.raises(InputError, match=rf"'#' \(id 5\) .* \(the text '5' is id {five}\)"):
        of_token(together, "5", dialogues=2, top=5)


@pytest.mark.parametrize("text", ["é", " ", "\n", " is", "<|im_end|>"])
def test_a_token_is_found_as_typed_and_as_the_vocabulary_spells_it(together: Assembly, text: str) -> None:
    """Whose letter for the byte 0xE9 is an 'é'."""
    (number,) = together.chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert find_token(together, text) == number
    assert find_token(together, together.chat.tokenizer.convert_ids_to_tokens(number)) == number
    assert TurnTexts(together.chat)(number) == text


def test_a_token_without_the_space_that_its_tokenizer_puts_before_a_text(together: Assembly) -> None:
    """As Llama 2 does: alone, 'user' is '▁user', and yet a token of its own inside of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"user": 0, "▁user": 1, "?": 2, "▁?": 3}
    backend = Tokenizer(models.WordLevel(words, "?"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chat = ChatTokenizer(tokenizer, recipe(data={"source": "embedded"}).data, "m")
    assembly = replace(together, chat=chat)
    assert tokenizer("user")["input_ids"] == [1]
    assert [find_token(assembly, text) for text in ("user", "▁user", " user")] == [0, 1, 1]


# --- text --------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
def test_latents_of_a_text_equal_a_plain_forward(together: Assembly, tokenizer: Any, raw: bool) -> None:
    text = "Where is l'été?\n<|im_end|>"
    report = of_text(together, text, raw=raw, top=4)
    ids = np.array([entry["token_id"] for entry in report["saes"][NAMES[0]]["tokens"]])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if raw:
        assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        # Typed into a message, a special token's text is ordinary text.
        assert tokenizer.decode(ids) == tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False
        )
        assert (ids == end).sum() == 1
    states, _ = plain_forward(together.reader.model, ids)
    for name, (layer, sae) in together.saes.items():
        acts_TF = sae.encode(states[layer], skip_sinks=True)
        entries = report["saes"][name]["tokens"]
        assert [e["position"] for e in entries] == list(range(len(ids)))
        assert {e["role"] for e in entries} == {None if raw else "user"}
        for entry, acts_F in zip(entries, acts_TF, strict=True):
            assert entry["firing"] == pytest.approx(int((acts_F > 0).sum()), abs=1)
            best = acts_F.topk(4)
            values = [x["activation"] for x in entry["latents"]]
            assert values == pytest.approx(best.values[best.values > 0].tolist(), rel=1e-3)
            for x in entry["latents"]:
                assert acts_F[x["latent"]].item() == pytest.approx(x["activation"], rel=1e-3)


def test_no_more_than_the_last_saes_activations_are_held(
    together: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a long text through many SAEs take gigabytes."""
    made: list[weakref.ref[Tensor]] = []
    held = []

    def counted(sae: JumpReLUSAE, x_TD: Tensor, **how: bool) -> Tensor:
        held.append(sum(ref() is not None for ref in made))
        acts_TF = encode(sae, x_TD, **how)
        made.append(weakref.ref(acts_TF))
        return acts_TF

    encode = JumpReLUSAE.encode
    monkeypatch.setattr(JumpReLUSAE, "encode", counted)
    several = [*together.saes.values()] * 2
    four = replace(together, saes={str(i): sae for i, sae in enumerate(several)})
    of_text(four, "Where?", raw=False, top=2)
    of_special_tokens(four, dialogues=2, top=2)
    assert len(held) == 8 and max(held) <= 1


@pytest.mark.parametrize(
    ("text", "raw", "said"),
    [
        ("", False, "is empty"),
        (" \n", True, "is empty"),
        ("\ud800", False, "cannot be a user's message"),
        ("word " * 5000, True, "tokens; at most"),
        ("\udcff", True, "--text: '\\?' is not valid Unicode"),
    ],
)
def test_texts_that_cannot_be_used(together: Assembly, text: str, raw: bool, said: str) -> None:
    with pytest.raises(InputError, match=said):
        of_text(together, text, raw=raw, top=5)


# --- where a latent fires ----------------------------------------------------------------------


def test_where_latents_fire_equals_loops(
    together: Assembly, dialogues: list[TokenSequence], alone: dict[str, list[tuple[Tensor, Tensor]]]
) -> None:
    name = NAMES[0]
    mean_F = torch.stack([acts_TF[1:].amax(0) for _, acts_TF in alone[name]]).mean(0)
    silent = int(mean_F.argmin())
    latents = [int(mean_F.argmax()), int(mean_F.sort().indices[-40]), silent]
    report = of_latents(together, latents, dialogues=DIALOGUES, top=4)
    texts = TurnTexts(together.chat)
    for latent, entry in zip(latents, report["saes"][name]["latents"], strict=True):
        acts = [acts_TF[:, latent] for _, acts_TF in alone[name]]
        maxima = torch.tensor([acts_T[1:].max().item() for acts_T in acts])
        assert entry["latent"] == latent
        assert entry["mean_max"] == pytest.approx(maxima.mean().item(), rel=1e-4, abs=1e-6)
        assert entry["highest"] == pytest.approx(maxima.max().item(), rel=1e-4, abs=1e-6)
        best = maxima.sort(descending=True, stable=True).values[:4]
        values = [context["activation"] for context in entry["contexts"]]
        assert values == pytest.approx(best[best > 0].tolist(), rel=1e-4)
        for context in entry["contexts"]:
            index = next(i for i, d in enumerate(dialogues) if d.dialogue[0] == context["row"])
            place, ids = context["position"], dialogues[index].ids
            assert acts[index][place].item() == pytest.approx(context["activation"], rel=1e-3)
            start = max(0, place - AROUND)
            window = ids[start : place + AROUND + 1].tolist()
            assert [x["token"] for x in context["tokens"]] == [texts(i) for i in window]
            assert [x["activation"] for x in context["tokens"]] == pytest.approx(
                acts[index][start : start + len(window)].tolist(), rel=1e-3, abs=1e-3
            )
            assert context["token"] == place - start
        assert entry["sinks"]["fired"] == sum(bool(a[0] > 0) for a in acts)
        assert entry["sinks"]["tokens"] == DIALOGUES
        assert entry["sinks"]["mean"] == pytest.approx(
            torch.stack([a[0] for a in acts]).mean().item(), rel=1e-3, abs=1e-6
        )

        ids_T = np.concatenate([d.ids[1:] for d in dialogues])
        acts_T = torch.cat([a[1:] for a in acts]).numpy()
        sums = {int(i): float(acts_T[ids_T == i].sum()) for i in np.unique(ids_T)}
        shares = sorted((s for s in sums.values() if s > 0), reverse=True)[:4]
        assert [x["share"] for x in entry["tokens"]] == pytest.approx(
            [s / sum(sums.values()) for s in shares], rel=1e-3
        )
        for x in entry["tokens"]:
            occurrences = int((ids_T == x["token_id"]).sum())
            assert x["occurrences"] == occurrences
            assert x["mean"] == pytest.approx(sums[x["token_id"]] / occurrences, rel=1e-3)
            assert x["fired"] == pytest.approx((acts_T[ids_T == x["token_id"]] > 0).sum(), abs=1)
    assert len(report["saes"][name]["latents"][0]["contexts"]) == 4
    if mean_F[silent] == 0:
        assert report["saes"][name]["latents"][2]["contexts"] == []


def test_roles_are_those_of_the_turns(
    together: Assembly, dialogues: list[TokenSequence], tokenizer: Any
) -> None:
    rows = [json.loads(line) for line in tiny.HELDOUT.read_text().splitlines()]
    texts, seen = TurnTexts(together.chat), set()
    for dialogue in dialogues[:10]:
        turns = rows[int(dialogue.dialogue[0])]["messages"]
        start = 0
        for i, turn in enumerate(turns):
            shown = tokenizer.apply_chat_template(turns[: i + 1], tokenize=False)
            stop = len(tokenizer(shown, add_special_tokens=False)["input_ids"])
            for place in (start, start + 1, (start + stop) // 2, stop - 1):
                assert texts.role(dialogue, place) == turn["role"]
            seen.add(turn["role"])
            start = stop
        assert start == len(dialogue)
    assert seen >= {"user", "assistant"}


@pytest.mark.parametrize("latent", [256, -1])
def test_latents_that_are_not_there(together: Assembly, latent: int) -> None:
    said = "has 256 latents, numbered 0 to 255"
    with pytest.raises(InputError, match=said):
        of_latents(together, [latent], dialogues=2, top=5)
    with pytest.raises(InputError, match=said):
        output_scores(together.reader, together.saes[NAMES[0]][1], 1, [latent], [], 1.0)


# --- logit lens --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma2"])
def test_logit_lens_equals_a_plain_computation(kind: str) -> None:
    model = small_model(kind)
    d_LD = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    weight_D = model.model.norm.weight + (1 if kind == "gemma2" else 0)
    slow = torch.tensor([[float((w_D * weight_D) @ d_D) for w_D in model.lm_head.weight] for d_D in d_LD])
    torch.testing.assert_close(logit_lens(model, d_LD), slow, rtol=1e-4, atol=1e-5)
    values, ids = lens_tokens(model, d_LD, 4, vocabulary=50, largest=False)
    assert ids.tolist() == slow[:, :50].topk(4, largest=False).indices.tolist()
    torch.testing.assert_close(values, slow.gather(1, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "norm"), [("gpt2", "transformer.ln_f"), ("cohere", "model.norm"), ("nemotron", "model.norm")]
)
def test_logit_lens_through_a_layer_norm(family: str, norm: str) -> None:
    """Whose division aside it takes the mean out first."""
    model = tiny_model(tiny_config(family))
    last, head = model.get_submodule(norm), model.get_output_embeddings()
    torch.nn.init.normal_(last.weight)
    d_D = torch.randn(head.in_features)
    with torch.no_grad():
        spread = torch.sqrt(d_D.var(unbiased=False) + 1e-5)
        slow = head((last(d_D) - last(torch.zeros_like(d_D))) * spread)
    torch.testing.assert_close(logit_lens(model, d_D[None])[0], slow, rtol=1e-4, atol=1e-4)


# --- output scores -----------------------------------------------------------------------------


def slow_scores(
    model: Any, sae: Any, layer: int, latents: Sequence[int], prompts: Any, shift: float
) -> list[float]:
    """By its definition, one forward for each latent and prompt; not batched."""
    scores = []
    plain = [plain_forward(model, prompt.ids)[1][-1].softmax(-1) for prompt in prompts]
    for k in latents:
        added_D = shift * sae.W_dec[k]
        tokens = logit_lens(model, sae.W_dec[[k]])[0].topk(TOKENS).indices
        rises = []
        for prompt, before in zip(prompts, plain, strict=True):
            _, logits = plain_forward(model, prompt.ids, (layer, added_D.add))
            rises.append((logits[-1].softmax(-1) - before)[tokens].sum().item())
        scores.append(max(0.0, float(np.mean(rises))))
    return scores


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
@pytest.mark.parametrize("packed", [True, False])
def test_output_scores_equal_single_runs_with_a_hook(kind: str, packed: bool) -> None:
    model = small_model(kind)
    sae = randomise(JumpReLUSAE(WIDTH, 40), 2)
    rng = np.random.default_rng(0)
    prompts = [sequence(rng.integers(0, 96, n), i) for i, n in enumerate((9, 4, 17))]
    reader = ResidualReader(model, pack_tokens=64)
    if not packed:
        reader.alone = "the test wants it"
    norms = [plain_forward(model, p.ids)[0][1][1:].norm(dim=1) for p in prompts]
    shift = 0.7 * torch.cat(norms).mean().item()
    latents = [3, 0, 39, 11, 12]
    found = output_scores(reader, sae, 1, latents, prompts, 0.7)
    assert found == pytest.approx(slow_scores(model, sae, 1, latents, prompts, shift), abs=1e-4)
    assert all(0 <= score <= 1 for score in found) and max(found) > 0.01
    given = output_scores(reader, sae, 1, latents, prompts, 0.35, residual_norm=2 * shift / 0.7)
    assert given == pytest.approx(found, abs=1e-5)
    assert output_scores(reader, sae, 1, latents, prompts, 0) == pytest.approx([0] * 5, abs=1e-5)
    assert output_scores(reader, sae, 1, [], prompts, 1) == []
    with pytest.raises(InputError, match="alpha is nan"):
        output_scores(reader, sae, 1, latents, prompts, float("nan"))
    with pytest.raises(TrainingError, match=r"latent 3 at alpha 1e\+38 the model gives NaN"):
        output_scores(reader, sae, 1, latents, prompts, 1e38)
    with pytest.raises(InputError, match="at least one prompt"):
        output_scores(reader, sae, 1, latents, [], 1.0)


def test_rankings(together: Assembly, dialogues: list[TokenSequence]) -> None:
    by_activation = rank_by_activation(together, dialogues=DIALOGUES, top=4)
    figures = statistics(together.reader, together.saes, dialogues)
    for name in NAMES:
        rows = by_activation["saes"][name]["latents"]
        assert [x["latent"] for x in rows] == figures[name].mean_max_F.topk(4).indices.tolist()
        assert by_activation["saes"][name]["residual_norm"] == figures[name].residual_norm
    how = {"candidates": 5, "alpha": 0.8, "dialogues": DIALOGUES, "top": 4, "prompts": 4}
    report = rank_by_output(together, **how)
    prompts = answer_starts(together.chat, dialogues, report["prompts"])
    assert len(prompts) == report["prompts"] == 4
    for name, (layer, sae) in together.saes.items():
        tried = figures[name].mean_max_F.topk(5).indices.tolist()
        norm = figures[name].residual_norm
        slow = slow_scores(together.reader.model, sae, layer, tried, prompts, 0.8 * norm)
        order = sorted(zip(slow, tried, strict=True), key=lambda x: -x[0])[:4]
        rows = report["saes"][name]["latents"]
        assert [x["output_score"] for x in rows] == pytest.approx([x[0] for x in order], abs=1e-4)
        assert report["saes"][name]["candidates"] == 5
        (one,) = logit_lens(together.reader.model, sae.W_dec[[rows[0]["latent"]]])
        shown = [x["token_id"] for x in rows[0]["writes"]["top"]]
        assert shown == one.topk(10).indices.tolist()
    chosen = rank_by_output(together, latents=[7, 3], **how)
    assert {x["latent"] for x in chosen["saes"][NAMES[0]]["latents"]} == {7, 3}


# --- where answers begin -----------------------------------------------------------------------


def test_answers_begin_behind_the_generation_prompt(
    together: Assembly, dialogues: list[TokenSequence], tokenizer: Any
) -> None:
    rows = [json.loads(line) for line in tiny.HELDOUT.read_text().splitlines()]
    starts = answer_starts(together.chat, dialogues, 12)
    assert len(starts) == 12
    for start in starts:
        turns = rows[int(start.dialogue[0])]["messages"]
        first = next(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        text = tokenizer.apply_chat_template(turns[:first], tokenize=False, add_generation_prompt=True)
        assert start.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(start.special) == len(start.position) == len(start)
    question = [turn for turn in rows[0]["messages"] if turn["role"] == "user"][:1]
    unanswered = tokenizer.apply_chat_template(question, tokenize=False)
    ids = tokenizer(unanswered, add_special_tokens=False)["input_ids"]
    with pytest.raises(InputError, match="none of the 1 dialogues has an assistant's answer"):
        answer_starts(together.chat, [sequence(ids)], 3)


INSTRUCTIONS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}<|im_end|>"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
"""As Mistral's: what ends a question is what begins an answer."""


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (INSTRUCTIONS, None),
        (INSTRUCTIONS.replace("<|im_start|>", "").replace("<|im_end|>", " "), "does not mark where"),
        ("{{ raise_exception('no') }}", "refuses a plain question"),
    ],
)
def test_templates_without_a_generation_prompt(tokenizer: Any, template: str, said: str | None) -> None:
    changed = deepcopy(tokenizer)
    changed.chat_template = template
    chat = ChatTokenizer(changed, recipe(data={"source": "embedded"}).data, "test model")
    ids = chat.tokenize(["<|im_start|>Where?<|im_end|>Here."])[0]
    if said:
        with pytest.raises(ModelError, match=said):
            answer_starts(chat, [chat.sequence(ids, 0)], 1)
        return
    (start,) = answer_starts(chat, [chat.sequence(ids, 0)], 1)
    assert tokenizer.decode(start.ids) == "<|im_start|>Where?<|im_end|>"


# --- command line ------------------------------------------------------------------------------


def shown(*arguments: object, exit_code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["features", *map(str, arguments)])
    if exit_code == 0 and result.exception:
        raise result.exception
    assert result.exit_code == exit_code or result.exception
    return result


def test_the_command(run: Path, together: Assembly) -> None:
    folders = [run / name for name in NAMES]
    few = ("--dialogues", 6)
    report = json.loads(shown(*folders, *few, "--top", 2, "--json").stdout)
    same = of_special_tokens(together, dialogues=6, top=2)
    assert list(report["saes"]) == list(NAMES)
    tokens = [entry["token"] for entry in report["saes"][NAMES[0]]["tokens"]]
    assert tokens == [entry["token"] for entry in same["saes"][NAMES[0]]["tokens"]]
    text = shown(*folders, *few).stdout
    assert text.count("<|im_start|>") == 2 and "with sinks" in text and "paper" not in text
    text = shown(folders[0], "--text", "Where is\nit?").stdout
    assert "\\n" in text and "user" in text and "strongest" in text
    text = shown(folders[0], *few, "--token", "<|im_end|>").stdout
    assert text.count("<|im_end|>") == 1
    best = same["saes"][NAMES[0]]["tokens"][0]["latents"][0]["latent"]
    text = shown(folders[0], *few, "--latent", best, "--latent", 3).stdout
    assert f"latent {best}: 6 dialogues" in text and "latent 3: 6" in text
    assert "raises: '" in text and "lowers: '" in text and "«" in text and "row " in text
    text = shown(folders[0], *few, "--rank", "output", "--candidates", 4).stdout
    assert "4 latents by output score at alpha 1 x mean residual norm" in text
    assert "raises" in shown(folders[0], *few, "--rank", "activation").stdout


def test_tables_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is cut: what does not fit beside each other stands below, or goes on below."""
    latents = [{"latent": k, "mean_max": 2 / 3, "dialogues": 9} for k in (28671, 1)]
    counted = {"dialogues": 10, "latents": latents}
    paper = [{"rank": 1, "latent": 13794, "mean_max": 0.5}]
    start = {"token": "<|start_header_id|>", **counted, "with_sinks": None, "paper": paper}
    silent = {"token": " ", "dialogues": 7, "latents": [], "with_sinks": None, "paper": None}
    saes = {"a": {"tokens": [{**start, "with_sinks": counted}, silent]}}
    fired = [{"latent": 20000 + k, "activation": 100 / 3} for k in range(9)]
    entry = {"token": "\n", "position": 0, "role": "assistant", "firing": 9, "latents": fired}

    def narrow(show: Any, report: Any) -> str:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "dumb")  # which has no styles, and 80 columns
        show(report)
        text = capsys.readouterr().out
        assert "…" not in text and max(map(len, text.splitlines())) <= 80
        return text

    text = narrow(print_tokens, {"split": {"used": 1}, "saes": saes})
    assert "maximum, 1 dialogue\n" in text
    assert text.count("28671") == 2 and text.count("<|start_header_id|>") == 3
    assert text.index("with sinks: latent") < text.index("paper: latent") < text.index("13794")
    assert "' '     " in text and "none" in text and "0 of 7" in text
    text = narrow(print_text, {"saes": {"a": {"tokens": [entry]}}})
    assert all(f"{x['latent']}[33.33]" in text for x in fired)


def test_the_command_says_which_rows_are_left_out(run: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Where is Paris? " * 9}]
    data = write_jsonl(tmp_path / "some.jsonl", [{"messages": turns}, {"text": "?"}])
    result = shown(run / NAMES[0], "--data", data, "--max-tokens", 9)
    assert "some.jsonl: 1 of 2 rows skipped (malformed: plain text" in result.stderr
    assert "1 of 1 dialogues truncated to 9 tokens" in result.stderr


def test_the_command_shows_the_papers_figures_in_columns_of_their_own(run: Path, tmp_path: Path) -> None:
    name = "qwen2.5-7b-L18-8x-jumprelu"
    copied = tmp_path / name
    shutil.copytree(run / NAMES[0], copied)
    record = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**record, "name": name}))
    result = shown(copied, "--dialogues", 2)
    assert "paper: latent" in result.stdout and "F.3" in result.stderr
    reported = paper_special_latents()[fastzoo.parse_name(name)]
    assert all(str(x.latent) in result.stdout for x in reported)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--latent", 256], "latent 256: tiny-chat-L1-2x-jumprelu has 256 latents"),
        (["--latent", 1, "--latent", 1], "the same latent is given twice"),
        (["--text", ""], "--text: the text is empty"),
        (["--token", "no such"], "is not a token of tiny-chat"),
        (["--token", "x", "--text", "y"], "--text and --token do not go together"),
        (["--raw"], "--raw goes with --text"),
        (["--alpha", 2], "--alpha goes with --rank output"),
        (["--rank", "activation", "--candidates", 9], "--candidates goes with --rank output"),
        (["--rank", "size"], "'size' is not one of activation, output"),
        (["--rank", "output", "--alpha", "inf"], "inf is not a finite number"),
        (["--max-tokens", 10**6], "--max-tokens: 1000000 is more than"),
    ],
)
def test_bad_input_is_one_line(run: Path, arguments: list[object], said: str) -> None:
    error = shown(run / NAMES[0], *arguments, exit_code=1).exception
    assert isinstance(error, InputError) and said in str(error) and "\n" not in str(error)


def test_an_sae_of_another_model_is_refused_before_anything_is_loaded(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "blocks.9.hook_resid_post"
    fastzoo.save_sae(JumpReLUSAE(128, 8), folder, layer=9, metadata={"model_name": "tiny-chat"})
    error = shown(folder, exit_code=1).exception
    assert isinstance(error, ModelError) and "layer 9) does not fit the model" in str(error)


def test_what_cannot_be_seen_is_written_out() -> None:
    assert visible(" a\n\t\x1b[0m é") == " a\\n\\t\\x1b[0m é"
