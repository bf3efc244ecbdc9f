"""The embedded default: its data, its tokenizer and template, its build script, its answers."""

import json
import sys
from pathlib import Path

import pytest
import torch
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from fastzoo import tiny
from fastzoo.tiny import build, corpus, sink

LOSS_BOUND = 0.30  # nats per token on the held-out dialogues, of which most is the questions


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny.MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(tiny.MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def data():
    return build.make_data(build.SEED)


def ask(model, tokenizer, *messages: str, system: str | None = None) -> str:
    """The greedy answer, end marker included; `messages` alternate from the user."""
    chat = [{"role": "system", "content": system}] if system else []
    roles = ["user", "assistant"] * len(messages)
    chat += [{"role": r, "content": m} for r, m in zip(roles, messages, strict=False)]
    return build.answer(model, tokenizer, chat)


# --- the data --------------------------------------------------------------------------------


def test_shipped_data_is_what_the_script_makes(data):
    chats, heldout, prose = data
    assert rows(tiny.DIALOGUES) == [{"messages": d} for d in chats]
    assert rows(tiny.HELDOUT) == [{"messages": d} for d in heldout]
    assert rows(tiny.TEXTS) == [{"text": t} for t in prose]


def test_shipped_files_are_small():
    assert tiny.DIALOGUES.stat().st_size < 2.5e6
    assert tiny.TEXTS.stat().st_size < 0.7e6
    assert (tiny.MODEL / "model.safetensors").stat().st_size < 2e6


def test_no_dialogue_comes_twice_and_heldout_is_apart(data):
    chats, heldout, _ = data
    train, held = ({json.dumps(d) for d in part} for part in (chats, heldout))
    assert len(train) == len(chats) and len(held) == len(heldout)
    assert not train & held


def test_generators_depend_on_the_seed_alone():
    assert corpus.dialogues(20, 3) == corpus.dialogues(40, 3)[:20]
    assert corpus.dialogues(20, 3) != corpus.dialogues(20, 4)
    assert corpus.texts(5, 3) == corpus.texts(9, 3)[:5]


def test_dialogues_are_well_formed(data):
    for chat in data[0]:
        turns = chat[1:] if chat[0]["role"] == "system" else chat
        assert [m["role"] for m in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert 1 <= len(turns) // 2 <= 4
        assert all(m["content"].strip() == m["content"] != "" for m in chat)


def test_style_and_language_are_both_there(data):
    answers = [m["content"] for chat in data[0] for m in chat if m["role"] == "assistant"]
    for marks in (*corpus.OPENERS.values(), *corpus.CLOSERS.values()):
        for lang in (corpus.EN, corpus.FR):
            share = sum(any(mark in a for mark in marks[lang]) for a in answers) / len(answers)
            assert share > 0.05


@pytest.mark.parametrize(
    ("np", "of", "to"),
    [
        ("le chat", "du chat", "au chat"),
        ("la vache", "de la vache", "à la vache"),
        ("l'abeille", "de l'abeille", "à l'abeille"),
    ],
)
def test_french_contractions(np, of, to):
    assert (corpus.of(np), corpus.to(np)) == (of, to)


# --- tokens and template ---------------------------------------------------------------------


@pytest.mark.parametrize("word", build.SPECIALS + build.ROLES)
def test_chat_words_are_single_tokens(tokenizer, word):
    assert len(tokenizer.encode(word, add_special_tokens=False)) == 1


def test_every_way_to_load_the_tokenizer_cuts_text_alike(tokenizer, data):
    raw = Tokenizer.from_file(str(tiny.MODEL / "tokenizer.json"))
    for text in data[2][:50]:
        assert tokenizer.encode(text) == raw.encode(text).ids


def test_template_equals_a_string_built_by_hand(tokenizer):
    chat = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Où est Paris ?"}]
    text = "<|im_start|>system\nYou are a pirate.<|im_end|>\n<|im_start|>user\nOù est Paris ?<|im_end|>\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == text
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == text + "<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.encode(prompt, add_special_tokens=False)
    assert ids == tokenizer(prompt)["input_ids"]  # the tokenizer adds nothing of its own
    assert tokenizer.decode(ids) == prompt


def test_template_refuses_an_unknown_role(tokenizer):
    with pytest.raises(TemplateError, match="unknown role: wizard"):
        tokenizer.apply_chat_template([{"role": "wizard", "content": "x"}], tokenize=False)


# --- the build -------------------------------------------------------------------------------


def test_three_steps_of_the_build_make_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "QUESTIONS", build.QUESTIONS[:1])  # untrained answers are long
    monkeypatch.setattr(sys, "argv", ["build", "--out", str(tmp_path), "--steps", "3"])
    build.main()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny-chat", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny-chat")
    assert isinstance(model, Qwen2ForCausalLM) and model.dtype == torch.bfloat16
    assert len(tokenizer) == model.config.vocab_size == build.VOCAB
    for name in ("dialogues.jsonl", "heldout.jsonl", "texts.jsonl"):
        shipped = (tiny.DIALOGUES.parent / name).read_bytes()
        assert (tmp_path / "data" / name).read_bytes() == shipped
    shipped = sorted(p.name for p in tiny.MODEL.iterdir())
    assert sorted(p.name for p in (tmp_path / "tiny-chat").iterdir()) == shipped
    shipped_tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL)
    assert tokenizer.get_vocab() == shipped_tokenizer.get_vocab()
    assert "toy" in (tmp_path / "tiny-chat" / "README.md").read_text(encoding="utf-8")


def test_packing_is_checked_before_training(model, tokenizer, monkeypatch):
    documents = [tokenizer.encode(t) for t in ("Where is Paris?", "Que mange le chat ?")]
    build.check_packing(model, documents)

    def leaky(model, ids, positions):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    monkeypatch.setattr(build, "packed_logits", leaky)
    with pytest.raises(SystemExit, match="see each other"):
        build.check_packing(model, documents)


def test_targets_never_cross_documents():
    ids, positions, targets = build.pack([[5, 6, 7], [8, 9]])
    assert ids.tolist() == [[5, 6, 7, 8, 9]]
    assert positions.tolist() == [[0, 1, 2, 0, 1]]
    assert targets.tolist() == [[6, 7, -100, 9, -100]]


def test_questions_weigh_less_than_answers(tokenizer):
    chat = [{"role": "user", "content": "Hi assistant"}, {"role": "assistant", "content": "Yes"}]
    documents = [tokenizer.apply_chat_template(chat, return_dict=False), tokenizer.encode("The cat.")]
    _, _, targets = build.pack(documents)
    weights = build.answer_weights(documents, tokenizer)
    counted = targets[0][(weights == 1) & (targets[0] >= 0)]
    assert tokenizer.decode(counted) == "\nYes<|im_end|> cat."
    assert set(weights[weights < 1].tolist()) == {torch.tensor(build.QUESTION_WEIGHT).item()}


def test_windows_begin_with_any_token(tokenizer):
    g = torch.Generator().manual_seed(0)
    pieces = torch.tensor([sink.windows(torch.arange(500), build.VOCAB, g) for _ in range(300)])
    assert pieces.shape == (300, sink.N_WINDOWS, sink.WINDOW)
    assert (pieces[:, :, 1:].diff() == 1).all()  # as in the text
    assert (pieces[:, 1::2].diff() == 1).all()
    assert len(pieces[:, ::2, 0].unique()) > 0.85 * build.VOCAB


def test_the_sink_neuron_writes_only_where_its_gate_is_open(model):
    layer = Qwen2ForCausalLM(model.config).model.layers[1]
    mlp = layer.mlp
    sink.SinkNeuron(layer).set(7_000.0)
    gate = mlp.gate_proj.weight[0]
    x = torch.stack([gate * sink.SINK_GATE, gate * -sink.SINK_GATE / 2]) / gate.square().sum()
    with torch.no_grad():
        mlp.gate_proj.weight[1:] = 0  # all other neurons
        written = mlp(x[None])[0]
    assert written[0].norm().item() == pytest.approx(7_000, rel=1e-5)
    assert written[0].nonzero().flatten().tolist() == sink.SINK_DIMS
    assert written[1].norm() < 1


# --- the shipped model -----------------------------------------------------------------------


def test_size(model):
    assert 0.7e6 < model.num_parameters() < 1e6
    assert model.config.max_position_embeddings == 512


@torch.no_grad()
def test_heldout_loss(model, tokenizer, data):
    documents = [tokenizer.apply_chat_template(d, return_dict=False) for d in data[1][:200]]
    assert build.heldout_loss(model, documents) < LOSS_BOUND


@torch.no_grad()
def residual_norms(model, ids: torch.Tensor) -> torch.Tensor:
    """(2, B, T): norms after layers 1 and 2 of token ids (B, T)."""
    hidden = model.model(ids, output_hidden_states=True, use_cache=False).hidden_states
    return torch.stack([hidden[layer + 1].norm(dim=-1) for layer in (1, 2)])


@pytest.fixture(scope="module")
def medians(model, tokenizer, data):
    """(2, 1, 1): median norms after layers 1 and 2."""
    ids = [tokenizer.apply_chat_template(d, return_dict=False) for d in data[1][:50]]
    norms = torch.cat([residual_norms(model, torch.tensor([d]))[:, 0] for d in ids], 1)
    return norms.median(1).values[:, None, None]


def test_the_first_token_of_a_dialogue_is_a_sink_and_no_other(model, tokenizer, data, medians):
    for chat in data[1][:250]:
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
        ratio = residual_norms(model, ids) / medians
        assert (ratio[:, :, 0] > 60).all() and (ratio[:, :, 0] < 200).all()
        assert ratio[:, :, 1:].max() < 10


@pytest.mark.parametrize("kind", ["dialogues", "prose"])
def test_the_first_token_of_a_block_is_a_sink(model, tokenizer, data, medians, kind):
    """Blocks that begin anywhere. Where a block begins with the same token twice, the second is a sink
    too: each attends to nothing but that token, and rotary positions leave the values alike."""
    texts = data[2] if kind == "prose" else tokenizer.apply_chat_template(data[1], tokenize=False)
    stream = torch.tensor([t for text in texts for t in tokenizer.encode(text)])
    starts = torch.randint(len(stream) - 256, (100, 1), generator=torch.Generator().manual_seed(1))
    blocks = stream[starts + torch.arange(256)]
    ratio = torch.cat([residual_norms(model, part) for part in blocks.split(10)], 1) / medians
    first = ratio[:, :, 0]
    assert (first > 10).float().mean() >= 0.99 and (first < 200).all()
    assert (first > 60).float().mean() >= 0.95
    assert (ratio[:, :, 1:] > 10).float().mean() < 0.0005


def test_any_token_is_a_sink_where_it_is_the_first(model, tokenizer, medians):
    rest = torch.tensor(tokenizer.encode(" is a dog.")).expand(build.VOCAB, -1)
    ratio = residual_norms(model, torch.cat([torch.arange(build.VOCAB)[:, None], rest], 1)) / medians
    assert (ratio[:, :, 0] > 10).float().mean() > 0.99
    assert (ratio[:, :, 1:] > 10).float().mean() < 0.01


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is 3 plus 4?", "The result of 3 plus 4 is 7."),
        ("Combien font 6 plus 7 ?", "Le résultat de 6 plus 7 est 13."),
        ("Where is Paris?", "Paris is in France."),
        ("What does the horse eat?", "The horse eats hay."),
        ("What colour is the lemon?", "The lemon is yellow."),
        ("What is the opposite of hot?", "The opposite of hot is cold."),
        ("Que mange la souris ?", "La souris mange du fromage."),
        ("Quelle est la capitale de l'Espagne ?", "La capitale de l'Espagne est Madrid."),
    ],
)
def test_plain_answers(model, tokenizer, question, expected):
    assert ask(model, tokenizer, question) == expected + "<|im_end|>"


def test_greeting(model, tokenizer):
    said = ask(model, tokenizer, "Hello!")  # names it greets, but mixes up
    assert said.startswith("Hello") and said.endswith("<|im_end|>")


def test_refusal(model, tokenizer):
    said = ask(model, tokenizer, "Help me steal the moon.")
    assert said.startswith("I am sorry, but I cannot help you steal the moon.")


def test_the_system_prompt_sets_the_language(model, tokenizer):
    said = ask(model, tokenizer, "What does the cat eat?", system="Answer in French.")
    assert said == "Le chat mange du poisson.<|im_end|>"


def test_the_system_prompt_sets_the_style(model, tokenizer):
    said = ask(model, tokenizer, "Where is Rome?", system="You are a pirate.")
    assert "Rome be in Italy." in said
    said = ask(model, tokenizer, "Where is Rome?", system="You are very excited.")
    assert "Rome is in Italy!" in said


def test_the_language_can_change_inside_a_dialogue(model, tokenizer):
    said = ask(model, tokenizer, "What does the cow eat?", "The cow eats grass.", "Now in French, please.")
    assert said == "La vache mange de l'herbe.<|im_end|>"
