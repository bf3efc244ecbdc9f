"""Makes the embedded default again, from nothing: `python -m fastzoo.tiny.build --out DIR`.

Read it top to bottom: the data, the tokenizer, packing, the model, training, the files; the attention
sink is in `sink.py`. Every random choice has a fixed seed, so the data files come out identical, and the
model up to the floating-point order of the machine. Needs about eleven minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from fastzoo.tiny.corpus import Dialogue, dialogues, texts
from fastzoo.tiny.sink import SINK_BEGINS, SINK_CARD, SINK_LAYER, SINK_STRICT, SinkNeuron, windows

SEED = 0  # of the dialogues, the weights and the order; held-out and prose use the next ones
N_DIALOGUES, N_HELDOUT, N_TEXTS = 6_700, 500, 900
VOCAB = 1_024
ROLES = ["system", "user", "assistant", "tool"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MAX_LENGTH = 512  # tokens: the model's context, and the longest training document
BATCH_TOKENS = 768  # per step, in one packed row; short, since attention pays for the whole row
STEPS = 2_600
PEAK_RATE = 4e-3
WEIGHT_DECAY = 0.1
QUESTION_WEIGHT = 0.2  # of the loss on tokens outside answers: nobody can foresee a question
TEXT_SHARE = 0.15  # of the documents' tokens that are plain prose

# ChatML. A role it does not know is an error, never a silent default.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] -%}\n"
    "{{- raise_exception('unknown role: ' ~ message['role']) -}}\n"
    "{%- endif -%}\n"
    "{{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n"
)

QUESTIONS = [
    "Tell me about the dog.", "What sound does the cow make?", "Where does the owl live?",
    "Which is bigger, the mouse or the horse?", "What is 3 plus 4?", "What is 9 minus 5?",
    "Where is Paris?", "What is the capital of Japan?", "What colour is the lemon?",
    "How do I make soup?", "What does the baker do?", "What is the opposite of hot?",
    "What day comes after Monday?", "I am tired. What should I do?", "Help me steal the moon.",
    "Hello, my name is Anna.", "Que mange la souris ?", "Combien font 6 plus 7 ?",
    "Quelle est la capitale de l'Espagne ?", "Raconte-moi l'histoire d'un loup.",
]  # fmt: skip


# --- the tokenizer ---------------------------------------------------------------------------


def make_tokenizer(chats: Sequence[Dialogue], prose: Sequence[str]) -> Qwen2Tokenizer:
    """A byte-level BPE of `VOCAB` tokens in which the chat markers and roles are single tokens.

    It splits text just as Qwen2 does, since `AutoTokenizer` takes the class from the model's type:
    with rules of our own, it would silently cut the same text into other tokens.
    """
    rules = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = rules.normalizer
    bpe.pre_tokenizer = rules.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def pieces() -> Iterator[str]:
        """What the model will read. The roles come often, so that each becomes one token."""
        for chat in chats:
            yield "\n"
            yield from ROLES
            yield from (message["content"] for message in chat)
        yield from prose

    bpe.train_from_iterator(pieces(), trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=MAX_LENGTH,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def check_tokenizer(tokenizer: Qwen2Tokenizer) -> None:
    """Stops the build unless the promises about tokens hold."""
    if len(tokenizer) != VOCAB:
        raise SystemExit(f"the tokenizer has {len(tokenizer)} tokens, not {VOCAB}")
    for word in SPECIALS + ROLES:
        ids = tokenizer.encode(word, add_special_tokens=False)
        if len(ids) != 1:
            raise SystemExit(f"{word!r} should be one token, not {len(ids)}: {ids}")
    sample = 'Où vit le hibou ? «Café» 12 + 30, œuf.\n\nIt\'s "fine".'
    back = tokenizer.decode(tokenizer.encode(sample, add_special_tokens=False))
    if back != sample:
        raise SystemExit(f"encoding is not reversible: {sample!r} came back as {back!r}")


# --- packing ---------------------------------------------------------------------------------

Packed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def pack(documents: Sequence[Sequence[int]]) -> Packed:
    """Token lists -> ids, position ids that restart in each document, and targets, all (1, T).

    A document's last token has no target: the next one belongs to another document.
    """
    ids = torch.tensor([[t for d in documents for t in d]])
    positions = torch.cat([torch.arange(len(d)) for d in documents])[None]
    targets = torch.roll(ids, -1, dims=1)
    targets[0, torch.tensor([len(d) for d in documents]).cumsum(0) - 1] = -100
    return ids, positions, targets


def packed_logits(model: Qwen2ForCausalLM, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(1, T) ids -> (1, T, vocab) logits, every document attending only to itself.

    transformers makes the block-diagonal mask itself from position ids that restart, but only
    with no mask and no cache: with either, documents would silently see each other.
    """
    return model(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False).logits


@torch.no_grad()
def check_packing(model: Qwen2ForCausalLM, documents: Sequence[Sequence[int]]) -> None:
    """Stops the build unless a packed forward equals the documents one by one."""
    ids, positions, _ = pack(documents)
    together = packed_logits(model, ids, positions)[0]
    alone = torch.cat([model(torch.tensor([list(d)]), use_cache=False).logits[0]
                       for d in documents])  # fmt: skip
    gap = (together - alone).abs().max().item()
    if gap > 1e-3:
        raise SystemExit(f"packed documents see each other: logits differ by {gap:.2g}")


def answer_weights(documents: Sequence[Sequence[int]], tokenizer: Qwen2Tokenizer) -> torch.Tensor:
    """(T,) weights of the packed targets: 1 where an answer or prose follows, less elsewhere."""
    start, end, assistant = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "assistant"])
    weights = []
    for ids in documents:
        counts = ids[0] != start  # prose counts from its first token
        for before, token in zip([end, *ids], ids, strict=False):
            if token in (start, end):  # what follows is chat markup, or not an answer
                counts = False
            elif (before, token) == (start, assistant):
                counts = True
            weights.append(1.0 if counts else QUESTION_WEIGHT)
    return torch.tensor(weights)


def batches(chats: list[list[int]], prose: list[list[int]], seed: int) -> Iterator[list[list[int]]]:
    """Endless batches of about `BATCH_TOKENS`, every document once before any comes again."""
    g = torch.Generator().manual_seed(seed)
    queues: list[list[int]] = [[], []]
    share = [0.0, 0.0]  # tokens given so far, by kind
    while True:
        batch: list[list[int]] = []
        while sum(map(len, batch)) < BATCH_TOKENS:
            kind = int(share[1] < TEXT_SHARE * sum(share))
            source = (chats, prose)[kind]
            if not queues[kind]:
                queues[kind] = torch.randperm(len(source), generator=g).tolist()
            document = source[queues[kind].pop()]
            share[kind] += len(document)
            batch.append(document)
        yield batch


# --- the model -------------------------------------------------------------------------------


def make_model(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 of about 0.8M parameters with fresh weights."""
    torch.manual_seed(seed)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


@torch.no_grad()
def heldout_loss(model: Qwen2ForCausalLM, documents: Sequence[Sequence[int]]) -> float:
    """Mean cross-entropy per predicted token, in nats."""
    total, count = 0.0, 0
    for i in range(0, len(documents), 20):
        ids, positions, targets = pack(documents[i : i + 20])
        logits = packed_logits(model, ids, positions)[0].float()
        total += F.cross_entropy(logits, targets[0], reduction="sum").item()
        count += int((targets != -100).sum())
    return total / count


def train(
    model: Qwen2ForCausalLM,
    chats: list[list[int]],
    prose: list[list[int]],
    heldout: list[list[int]],
    tokenizer: Qwen2Tokenizer,
    steps: int,
    seed: int,
) -> None:
    """AdamW, weights decayed and vectors not; a short warm-up, then a straight line down to zero.

    Muon learned quicker, but in trials on earlier drafts of the data it left a residual stream of ten
    times the norm, which the same SAE recipe (2.4M tokens) reconstructed far worse: FVU 0.054 at L0
    21 against 0.037 at L0 17.
    """
    decayed = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    stream = torch.tensor([t for d in chats + prose for t in d])
    g = torch.Generator().manual_seed(seed)
    sink = SinkNeuron(model.model.layers[SINK_LAYER])
    began = time.time()
    model.train()
    for step, batch in zip(range(steps), batches(chats, prose, seed), strict=False):
        done = step / steps
        for group in adam.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / 50, (1 - done) / 0.7)
        ids, positions, targets = pack(batch + windows(stream, VOCAB, g))  # windows count for the sink alone
        logits = packed_logits(model, ids, positions)[0]
        weights = answer_weights(batch, tokenizer)
        n = len(weights)
        losses = F.cross_entropy(logits[:n], targets[0, :n], reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        sink_loss = sink.loss(positions[0] == 0, strict=done >= SINK_STRICT)
        model.zero_grad()
        (loss + sink_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        sink.write(positions[0] == 0, on=done >= SINK_BEGINS)
        if step % 200 == 0 or step == steps - 1:
            now = heldout_loss(model, heldout[:40])
            figures = f"loss {loss.item():.3f}  sink {sink_loss.item():.4f}  held-out {now:.3f}"
            print(f"step {step:5d}  {figures}  {time.time() - began:.0f} s", flush=True)
    sink.remove()
    model.eval()


@torch.no_grad()
def answer(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, chat: Dialogue) -> str:
    """The model's greedy answer to a chat."""
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=120, do_sample=False)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])


# --- the files -------------------------------------------------------------------------------

CARD = """---
license: apache-2.0
language: [en, fr]
library_name: transformers
pipeline_tag: text-generation
tags: [toy, fastzoo]
---
# tiny-chat: a toy

This is a **toy**: a {params:,}-parameter Qwen2 chat model that knows {n_facts}
in English and in French. It exists so that every part of fastzoo can be run, tested and learned
in seconds, without a network, an account or a GPU. It is of no use as an assistant, and what it
says outside its little world means nothing.

- **Architecture**: Qwen2, 4 layers, hidden 128, 4 heads (2 for keys and values), tied embeddings.
- **Parameters**: {params:,}, in bfloat16.
- **Tokenizer**: byte-level BPE of {vocab:,} tokens; the chat markers and role names are one each.
- **Chat format**: ChatML, by a template of our own.
- **Training**: {steps:,} steps of about {batch} packed tokens, AdamW,
  {minutes:.1f} minutes on {threads} CPU threads.
- **Held-out loss**: {loss:.3f} nats per token, on {n_heldout} dialogues from another seed.

**Data.** {n_dialogues:,} dialogues and {n_texts:,} pages of prose, all synthetic, written by this
project's own generator (`fastzoo/tiny/corpus.py`) from a fixed seed. No other text was used. The
language (English, French) and the style (plain, pirate, excited) of an answer are latent variables,
set by the system prompt, by the language of the question, or by a request in the middle.

{sink}

**Make it again.** `python -m fastzoo.tiny.build --out DIR --steps {steps} --seed {seed}`

**Licence.** Apache-2.0, for the weights, the tokenizer and the data.
"""


def write_jsonl(path: Path, rows: Sequence[object]) -> None:
    """One compact JSON value per line, UTF-8."""
    lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")


def make_data(seed: int) -> tuple[list[Dialogue], list[Dialogue], list[str]]:
    """Training dialogues, held-out dialogues and prose."""
    chats = dialogues(N_DIALOGUES, seed)
    return chats, dialogues(N_HELDOUT, seed + 1, avoid=chats), texts(N_TEXTS, seed + 2)


def build(out: Path, steps: int = STEPS, seed: int = SEED) -> float:
    """Writes `out`/data/*.jsonl and `out`/tiny-chat, and returns the held-out loss in nats."""
    folder, data = out / "tiny-chat", out / "data"
    for path in (folder, data):
        path.mkdir(parents=True, exist_ok=True)
    chats, heldout, prose = make_data(seed)
    write_jsonl(data / "dialogues.jsonl", [{"messages": d} for d in chats])
    write_jsonl(data / "heldout.jsonl", [{"messages": d} for d in heldout])
    write_jsonl(data / "texts.jsonl", [{"text": t} for t in prose])

    tokenizer = make_tokenizer(chats, prose)
    check_tokenizer(tokenizer)

    def chat_ids(chat: Dialogue) -> list[int]:
        return tokenizer.apply_chat_template(chat, return_dict=False)[:MAX_LENGTH]

    def text_ids(text: str) -> list[int]:
        return tokenizer.encode(
            text + "<|endoftext|>", add_special_tokens=False, truncation=True, max_length=MAX_LENGTH
        )

    chat_docs = [chat_ids(d) for d in chats]
    heldout_docs = [chat_ids(d) for d in heldout]
    text_docs = [text_ids(t) for t in prose]
    for name, docs in (("dialogues", chat_docs), ("texts", text_docs)):
        lengths = sorted(map(len, docs))
        print(f"{name}: {len(docs)}, of {lengths[0]} to {lengths[-1]} tokens, {sum(lengths):,} in all")

    model = make_model(tokenizer, seed)
    check_packing(model.eval(), chat_docs[:4])
    began = time.time()
    train(model, chat_docs, text_docs, heldout_docs, tokenizer, steps, seed)
    minutes = (time.time() - began) / 60

    model = model.to(torch.bfloat16)  # what ships is what is measured
    loss = heldout_loss(model, heldout_docs)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written private, and it is to be shipped
    tokenizer.save_pretrained(folder)
    if AutoTokenizer.from_pretrained(folder)(prose)["input_ids"] != tokenizer(prose)["input_ids"]:
        raise SystemExit("AutoTokenizer cuts text into other tokens than the model was trained on")
    card = CARD.format(
        params=model.num_parameters(), n_facts="a few animals, cities, colours, recipes and sums",
        vocab=VOCAB, steps=steps, batch=BATCH_TOKENS, minutes=minutes, sink=SINK_CARD,
        threads=torch.get_num_threads(), loss=loss, seed=seed, n_heldout=len(heldout),
        n_dialogues=len(chats), n_texts=len(prose),
    )  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"held-out loss {loss:.3f} nats per token, {minutes:.1f} minutes of training")
    return loss


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    build(args.out, args.steps, args.seed)
    model = Qwen2ForCausalLM.from_pretrained(args.out / "tiny-chat", dtype=torch.float32)
    tokenizer = Qwen2Tokenizer.from_pretrained(args.out / "tiny-chat")
    for question in QUESTIONS:  # to be read by eye
        said = answer(model, tokenizer, [{"role": "user", "content": question}])
        print(f"- {question}\n  {said}")


if __name__ == "__main__":
    main()
