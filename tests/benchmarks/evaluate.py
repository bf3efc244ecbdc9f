"""Evaluation of four SAEs beside the floor: the products that no evaluation can do without.

The floor is a loop written out here, over the same packs: one plain forward; per SAE its encoder and decoder
product and the layers after it; per layer the layers after it with zeros; and one product with the
unembedding for each of these. Where a pack holds sinks, an SAE that was trained on them and zeros need a
second pass. Nothing is counted, compared or summed.

With ``--model`` and ``--data`` on its own (not by ``run.py``): another model and other dialogues.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from rounds import interleave, median_seconds, ratio
from torch import Tensor

from fastzoo.config.recipe import DataSection, ModelSection
from fastzoo.data.rows import held_out_embedded, open_rows
from fastzoo.data.sequences import TokenSequence
from fastzoo.data.special_tokens import SpecialTokens
from fastzoo.data.streams import held_out_sequences
from fastzoo.data.tokenizer import ChatTokenizer
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.attention import IMPLEMENTATION
from fastzoo.lm.head import HEAD_ELEMENTS
from fastzoo.lm.load import find_model, load_model, load_tokenizer
from fastzoo.lm.packing import Pack, packs
from fastzoo.results.evaluate import evaluate, spread
from fastzoo.saes.base import SAE, Sinks
from fastzoo.saes.jumprelu import JumpReLUSAE
from fastzoo.saes.standard import StandardSAE

EXPANSION, ACTIVE = 8, 0.02
"""Of the SAEs, and the share of their latents that are active."""


def measure(
    *,
    quick: bool,
    model: str | None = None,
    data: str | None = None,
    dialogues: int = 200,
    loss_dialogues: int = 50,
    seconds: float = 60.0,
) -> dict[str, Any]:
    """All figures of this benchmark, ratios as ``Ratio``."""
    if quick:
        dialogues, loss_dialogues, seconds = 8, 4, 0.5
    source = find_model(ModelSection(name=model) if model else ModelSection())
    reader = ResidualReader(load_model(source, ModelSection(), torch.device("cpu")))
    section = DataSection(source=data) if data else DataSection()
    chat = ChatTokenizer(load_tokenizer(source), section, source.name, source.embeddings)
    sequences, _ = held_out_sequences(
        chat, open_rows(section, 0) if data else held_out_embedded(0), dialogues
    )
    saes = four_saes(reader, sequences)
    special = SpecialTokens.of(chat)

    def ours() -> None:
        evaluate(reader, saes, sequences, special, loss_dialogues=loss_dialogues)

    def least() -> None:
        floor(reader, saes, sequences, loss_dialogues)

    times = interleave({"ours": ours, "floor": least}, seconds=seconds, most=25, warm_up=not model)
    return {
        "evaluate_over_floor": ratio(times["ours"], times["floor"]),
        "evaluate_seconds": median_seconds(times["ours"]),
        "evaluate_tokens": sum(map(len, sequences)),
    }


@torch.inference_mode()
def four_saes(reader: ResidualReader, sequences: list[TokenSequence]) -> dict[str, tuple[int, SAE]]:
    """Two of each of two layers, one of them trained on sinks, with random weights and few latents active."""
    layers = (len(reader.layers) // 3, 2 * len(reader.layers) // 3)
    (pack, *_) = reader.packs(sequences[:4])
    acts, _ = reader.read_to_end(pack, layers)  # which checks the model, before anything is timed
    saes: dict[str, tuple[int, SAE]] = {}
    for layer, acts_TD in acts.items():
        x_TD = acts_TD.float()
        sinks = Sinks.of(torch.linalg.vector_norm(x_TD, dim=1), 10.0, skipped=False)
        x_TD = x_TD[~sinks.mask(x_TD)]
        for kind in (StandardSAE, JumpReLUSAE):
            torch.manual_seed(layer)
            sae = kind(x_TD.shape[1], EXPANSION * x_TD.shape[1])
            sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn_like(sae.W_dec)))
            sae.W_enc.copy_(sae.W_dec.t())
            sae.b_enc.copy_(-(x_TD @ sae.W_enc).quantile(1 - ACTIVE, dim=0))
            sae.sinks = Sinks(sinks.norm, sinks.median_norm, kind is JumpReLUSAE)
            saes[f"{kind.__name__} {layer}"] = layer, sae
    return saes


@torch.inference_mode()
def floor(
    reader: ResidualReader,
    saes: dict[str, tuple[int, SAE]],
    sequences: list[TokenSequence],
    loss_dialogues: int,
) -> None:
    """The products alone; their results go nowhere."""
    chosen = spread(len(sequences), loss_dialogues)
    others = sorted(set(range(len(sequences))).difference(chosen))
    layers, last = {layer for layer, _ in saes.values()}, len(reader.layers) - 1
    sinks = {layer: sae.sinks for layer, sae in saes.values()}
    reader.model.set_attn_implementation(IMPLEMENTATION)
    for group in packs([sequences[i] for i in others], reader.pack_tokens):
        _, acts = run(reader, Pack.of(group, reader.device), -1, max(layers))
        for layer, sae in saes.values():
            products(sae, acts[layer][0])
    for group in packs([sequences[i] for i in chosen], reader.pack_tokens):
        pack = Pack.of(group, reader.device)
        final, acts = run(reader, pack, -1, last)
        head(reader.model, final)
        twice = {i: 1 + bool(sinks[i].mask(acts[i]).any()) for i in layers}  # type: ignore[union-attr]
        passes = [(i, products(sae, acts[i][0])[None], sae.sinks.skipped) for i, sae in saes.values()]  # type: ignore[union-attr]
        passes += [(layer, torch.zeros_like(acts[layer]), False) for layer in layers]
        for layer, changed, spares in passes:
            for _ in range(1 if spares else twice[layer]):
                head(reader.model, run(reader, pack, layer, last, changed)[0])
    reader.model.set_attn_implementation("sdpa")


def run(
    reader: ResidualReader, pack: Pack, after: int, last: int, states: Tensor | None = None
) -> tuple[Tensor, dict[int, Tensor]]:
    """The layers of a Llama, Qwen2 or the like from ``after`` to ``last``: final states, and those after each."""
    base, found = reader.model.model, {}
    x = base.embed_tokens(pack.input_ids) if states is None else states
    rotary = base.rotary_emb(x, pack.position_ids)
    for index, layer in enumerate(reader.layers[after + 1 : last + 1], after + 1):
        x = layer(x, position_embeddings=rotary, attention_mask=None, segment_lengths=pack.lengths)
        found[index] = x
    return base.norm(x), found


def products(sae: SAE, x_TD: Tensor) -> Tensor:
    """Encoder, activation, decoder."""
    return sae.activate(x_TD @ sae.W_enc + sae.b_enc) @ sae.W_dec + sae.b_dec


def head(model: Any, states: Tensor) -> None:
    """Logits of all rows, some at a time."""
    weight_VD = model.get_output_embeddings().weight
    for part_RD in states[0].split(max(16, HEAD_ELEMENTS // len(weight_VD))):
        part_RD @ weight_VD.t()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure evaluation on another model.")
    parser.add_argument("--model", help="a folder")
    parser.add_argument("--data", help="a file of dialogues")
    parser.add_argument("--dialogues", type=int, default=200)
    parser.add_argument("--loss-dialogues", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    for key, value in measure(quick=False, **vars(parser.parse_args())).items():
        print(key, value, flush=True)
