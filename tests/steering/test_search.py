"""``fastzoo steer --auto`` finds a latent that turns answers, among others that do not."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastzoo.config.recipe import EMBEDDED_MODEL
from fastzoo.core.errors import InputError
from fastzoo.data.dialogues import Dialogue
from fastzoo.data.special_tokens import answer_starts
from fastzoo.interpret.output_score import output_scores
from fastzoo.interpret.statistics import LatentStatistics, statistics
from fastzoo.loading import Assembly, assemble
from fastzoo.saes.formats import save_sae
from fastzoo.saes.standard import StandardSAE
from fastzoo.steering.edits import make_edit
from fastzoo.steering.generate import GenerationSettings
from fastzoo.steering.scoring.language import FUNCTION_WORDS, language_share
from fastzoo.steering.scoring.scores import concept_of_language
from fastzoo.steering.search import Round, find_pool, finer, search
from fastzoo.steering.sweep import Sweep

LAYER, LATENTS, FRENCH, WORDS = 1, 40, 17, 23
QUESTIONS = ("Tell me about the owl.", "How do I make soup?", "Where does the wolf live?")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Assembly, LatentStatistics, Any]:
    """An SAE of random latents, but for one that is what French answers have more of in the residual
    stream, and one that points to French words in the unembedding."""
    torch.manual_seed(0)
    sae = StandardSAE(128, LATENTS).requires_grad_(False)
    folder = tmp_path_factory.mktemp("saes") / "toy"
    save_sae(sae, folder, layer=LAYER)
    together = assemble([str(folder)], model_name=EMBEDDED_MODEL)
    dialogues, _ = together.dialogues(120)
    reader, tokenizer = together.reader, together.chat.tokenizer
    means: dict[bool, list[Any]] = {True: [], False: []}
    for dialogue in dialogues:
        text = tokenizer.decode(dialogue.ids.tolist()).rpartition("assistant")[2]
        (pack,) = reader.packs([dialogue])
        mean_D = reader.read(pack, [LAYER])[LAYER][1:].mean(0)
        means[language_share(text, "fr") > 0.5].append(mean_D)
    ((_, found),) = together.saes.values()
    found.W_dec.copy_(torch.randn(LATENTS, 128))
    found.W_dec[FRENCH] = torch.stack(means[True]).mean(0) - torch.stack(means[False]).mean(0)
    words = [tokenizer.encode(f" {word}")[0] for word in FUNCTION_WORDS["fr"].split()]
    head_VD = reader.model.get_output_embeddings().weight
    found.W_dec[WORDS] = head_VD[words].mean(0) - head_VD.mean(0)
    found.W_dec.div_(found.W_dec.norm(dim=1, keepdim=True))
    found.W_enc.copy_(found.W_dec.T)
    (figures,) = statistics(reader, together.saes, dialogues).values()
    return together, figures, dialogues


def test_the_latent_of_a_language_is_found(known: Any) -> None:
    together, figures, dialogues = known
    pool = find_pool(together, figures, dialogues, FUNCTION_WORDS["fr"].split(), 30)
    assert len(set(pool)) == 30 and pool[0] == WORDS and FRENCH in pool
    ((layer, sae),) = together.saes.values()
    sweep = Sweep(
        together.reader.model,
        together.chat,
        sae,
        layer,
        [0],
        [Dialogue([{"role": "user", "content": text}]) for text in QUESTIONS],
        (0.0, 0.5, 0.55, 0.6),
        "norm",
        figures,
        settings=GenerationSettings(max_new_tokens=30),
    )
    rounds = (Round(None, 2, 12, 2), Round(4))
    found = search(sweep, pool, concept_of_language("fr"), rounds)
    assert len(found) == 4 and found[0]["latent"] == FRENCH
    assert found[0]["promise"] > 0.3 > found[1]["promise"]
    one = search(sweep, [FRENCH, FRENCH], concept_of_language("fr"), rounds)
    assert one == found[:1]


def test_words_of_a_tokenizer_that_puts_a_space_before_a_text(known: Any) -> None:
    """As those of Llama 2 do: " owl" is a lone space and then the word."""
    together, figures, dialogues = known
    chat = copy.copy(together.chat)
    chat.tokenizer = copy.deepcopy(chat.tokenizer)
    spaced, plain = chat.tokenizer, together.chat.tokenizer
    (space,) = plain.encode(" ")
    spaced.encode = lambda text, **how: [space, *plain.encode(text, **how)]
    words = FUNCTION_WORDS["fr"].split()
    found = find_pool(replace(together, chat=chat), figures, dialogues, words, 30)
    assert found == find_pool(together, figures, dialogues, words, 30)


def test_latents_without_a_direction_are_left_out(known: Any) -> None:
    together, figures, dialogues = known
    ((_, sae),) = together.saes.values()
    row_D = sae.W_dec[FRENCH].clone()
    try:
        sae.W_dec[FRENCH] = 0
        for words in (("le",), ()):
            assert FRENCH not in find_pool(together, figures, dialogues, words, LATENTS)
        with pytest.raises(InputError, match=f"latent {FRENCH} has a decoder row of length 0"):
            make_edit(sae, {FRENCH: 1.0}, layer=LAYER, units="norm", statistics=figures)
    finally:
        sae.W_dec[FRENCH] = row_D


def test_without_a_concept_the_pool_has_the_highest_output_scores(known: Any) -> None:
    together, figures, dialogues = known
    pool = find_pool(together, figures, dialogues, (), 5)
    ((layer, sae),) = together.saes.values()
    starts = answer_starts(together.chat, dialogues, 16)
    norm = figures.residual_norm
    firing = [k for k in range(LATENTS) if figures.dialogue_frequency_F[k] >= 0.02]
    scores = output_scores(together.reader, sae, layer, firing, starts, 1.0, residual_norm=norm)
    assert pool == [firing[i] for i in torch.tensor(scores).argsort(descending=True)[:5]]


def test_between_the_best_alpha_and_its_neighbours() -> None:
    assert finer([0.4, 0.0, 0.8], 0.4) == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert finer([0.0, 0.4, 0.8], 0.8) == [0.0, 0.4, 0.6, 0.8]
    assert finer([0.0, 0.4], None) == [0.0, 0.4]
