"""What steering with a latent does to the tokens that the latent itself points to.

Shape suffixes: L latents, P prompts, K tokens of a latent, V vocabulary, R rows of a pack, T its
tokens, D residual width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastzoo.activations import ResidualReader
from fastzoo.errors import InputError, ModelError, TrainingError
from fastzoo.evaluate import HEAD_ELEMENTS, check_head, log_probabilities
from fastzoo.models import refuse_unfit
from fastzoo.packing import Pack
from fastzoo.saes.base import SAE
from fastzoo.streams import ChatTokenizer, TokenSequence
from fastzoo.unembedding import lens_tokens

TOKENS = 10
"""Logit-lens tokens that stand for a latent."""

DEFINITION = (
    "output score: with h + alpha * n * d at every position of a prompt that ends where the "
    "assistant's answer begins (h the residual stream after the SAE's layer, d the latent's decoder "
    "row, n the mean norm of h), the rise of the joint next-token probability of the ten tokens that "
    "d raises most by the logit lens; the mean over prompts, 0 where it falls. After the idea of Arad "
    "et al. 2025 (arXiv 2505.20063), by a formula of our own"
)


@torch.no_grad()
def output_scores(
    reader: ResidualReader,
    sae: SAE,
    layer: int,
    latents: Sequence[int],
    sequences: Sequence[TokenSequence],
    alpha: float,
    *,
    residual_norm: float | None = None,
    vocabulary: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[float]:
    """How far steering with each latent makes the model say what the latent points to, in [0, 1].

    Exactly: let S be the ``TOKENS`` tokens with the largest logit-lens logits of the decoder row d,
    p(S) the probability that the model gives them together as the token after a prompt, and p'(S)
    the same with h + alpha * residual_norm * d after ``layer`` at every position of the prompt. The
    score is max(0, mean over prompts of p'(S) - p(S)). The idea, to choose latents by what they do to
    the output, is that of Arad, Mueller, Belinkov 2025: SAEs Are Good for Steering - If You Select
    the Right Features (arXiv 2505.20063); their score also weighs the tokens' ranks.

    Many latents and prompts go through the model together, each pair as a sequence of its own.

    Args:
        sequences: prompts; their last token is followed by what is scored (see ``answer_starts``).
        alpha: in multiples of ``residual_norm``.
        residual_norm: ``LatentStatistics.residual_norm``; by default that of ``sequences``.
        vocabulary: ids that stand for a token.
        progress: told how many pairs were done.

    Raises:
        InputError: a latent that the SAE does not have, no prompts, or alpha not finite.
        ModelError: the SAE does not fit the model, or the model's head is not understood.
        TrainingError: the steered model gives NaN.
    """
    refuse_unfit(reader.model.config, "the SAE", layer, sae.d_in)
    refuse_missing(latents, sae.d_sae)
    if not sequences:
        raise InputError("output scores need at least one prompt")
    if not np.isfinite(alpha):
        raise InputError(f"alpha is {alpha}; it must be a finite number of residual norms")
    if not latents:
        return []
    check_head(reader, sequences[0])
    if residual_norm is None:
        residual_norm = _mean_norm(reader, layer, sequences)
    d_LD = sae.W_dec[list(latents)].to(reader.device).float()
    shift_LD = alpha * residual_norm * d_LD
    _, tokens_LK = lens_tokens(reader.model, d_LD, TOKENS, vocabulary=vocabulary)
    before_PL = torch.cat(
        [
            log_p[:, tokens_LK].exp().sum(2)
            for pack in reader.packs(sequences)
            for log_p in _next_token(reader, pack, reader.final_states(pack))
        ]
    )
    rise_L = torch.zeros(len(latents), dtype=torch.float64, device=reader.device)
    done, count = 0, len(sequences)
    for pack in reader.packs(s for _ in latents for s in sequences):
        pair_R = torch.arange(done, done + len(pack.lengths), device=reader.device)
        latent_R, prompt_R = pair_R // count, pair_R % count
        lengths = torch.tensor(pack.lengths, device=reader.device)
        shift_TD = shift_LD[latent_R].repeat_interleave(lengths, 0)

        def steer(x_TD: Tensor, shift_TD: Tensor = shift_TD) -> Tensor:
            return x_TD.float() + shift_TD

        row = 0
        states_TD = reader.final_states(pack, (layer, steer))
        for log_p in _next_token(reader, pack, states_TD):
            which, prompt = latent_R[row : row + len(log_p)], prompt_R[row : row + len(log_p)]
            after = log_p.gather(1, tokens_LK[which]).exp().sum(1)
            rise_L.index_add_(0, which, (after - before_PL[prompt, which]).double())
            row += len(log_p)
        done += row
        progress(row)
    if not torch.isfinite(rise_L).all():
        latent = latents[int((~torch.isfinite(rise_L)).nonzero()[0])]
        raise TrainingError(f"steered with latent {latent} at alpha {alpha:g} the model gives NaN")
    return [float(rise) for rise in (rise_L / count).clamp(0, 1).tolist()]


def refuse_missing(latents: Sequence[int], d_sae: int, name: str = "the SAE") -> None:
    """Raise InputError for a latent that the SAE does not have."""
    for latent in latents:
        if not 0 <= latent < d_sae:
            raise InputError(
                f"latent {latent}: {name} has {d_sae:,} latents, numbered 0 to {d_sae - 1}"
            )


def _mean_norm(reader: ResidualReader, layer: int, sequences: Sequence[TokenSequence]) -> float:
    """As ``LatentStatistics.residual_norm``."""
    total, tokens = 0.0, 0
    for pack in reader.packs(sequences):
        norm_T = torch.linalg.vector_norm(reader.read(pack, [layer])[layer].double(), dim=1)
        later_T = pack.column("position").to(reader.device) > 0
        total += norm_T[later_T].sum().item()
        tokens += int(later_T.sum())
    if not tokens:
        raise InputError("prompts of a single token have no mean residual norm; give residual_norm")
    return total / tokens


def _next_token(reader: ResidualReader, pack: Pack, states_TD: Tensor) -> Iterator[Tensor]:
    """Log-probabilities (R, V) of the token after each sequence of a pack, in parts."""
    head = reader.model.get_output_embeddings()
    cap = getattr(reader.model.config.get_text_config(), "final_logit_softcapping", None)
    last_RD = states_TD[torch.tensor(pack.lengths, device=states_TD.device).cumsum(0) - 1]
    rows = max(16, HEAD_ELEMENTS // head.weight.shape[0])
    for part in last_RD.split(rows):
        yield log_probabilities(head, part, cap)


# --- prompts -----------------------------------------------------------------------------------


def answer_starts(
    chat: ChatTokenizer, sequences: Sequence[TokenSequence], count: int
) -> list[TokenSequence]:
    """The beginnings of up to ``count`` dialogues, each up to where its first answer begins.

    Raises:
        ModelError: the chat template marks no such place.
        InputError: none of the dialogues has an answer.
    """
    opening = _opening(chat)
    found: list[TokenSequence] = []
    for sequence in sequences:
        if len(found) == count:
            break
        end = _first_end(sequence.ids, opening)
        if end is not None:
            cut = {
                name: getattr(sequence, name)[:end]
                for name in ("ids", "position", "dialogue", "special")
            }
            found.append(replace(sequence, **cut))
    if not found:
        raise InputError(f"none of the {len(sequences)} dialogues has an assistant's answer")
    return found


def _first_end(ids: np.ndarray, part: np.ndarray) -> int | None:
    """Where ``part`` ends in ``ids`` for the first time; None if it does not stand there."""
    for start in np.flatnonzero(ids == part[0]).tolist():
        if np.array_equal(ids[start : start + len(part)], part):
            return int(start) + len(part)
    return None


def _opening(chat: ChatTokenizer) -> np.ndarray:
    """Token ids that the template writes before an answer. Raises ModelError."""
    turns = [{"role": "user", "content": "?"}]
    question, prompt = (
        _rendered(chat, turns, add_generation_prompt=wanted) for wanted in (False, True)
    )
    if prompt.startswith(question) and len(prompt) > len(question):
        return chat.tokenize([prompt[len(question) :]])[0]
    # A template without a generation prompt ends its question by a special token.
    ids = chat.tokenize([prompt])[0]
    places = np.flatnonzero(chat.is_special(ids))
    if not len(places) or places[-1] == 0:
        raise ModelError(
            f"the chat template of {chat.model_name} marks no place where an answer begins"
        )
    return ids[places[-1] :]


def _rendered(
    chat: ChatTokenizer, turns: list[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    try:
        return str(
            chat.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                date_string=chat.data.date,
            )
        )
    except Exception:  # a template is a program and can fail in any way
        raise ModelError(
            f"the chat template of {chat.model_name} refuses a plain question"
        ) from None
