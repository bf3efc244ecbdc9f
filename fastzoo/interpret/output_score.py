"""The output score of a latent: what steering with it does to the tokens that it points to.

Shape suffixes: L latents, P prompts, K tokens of a latent, V vocabulary, R rows of a pack, T its
tokens, D residual width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fastzoo.core.errors import InputError, TrainingError
from fastzoo.data.sequences import TokenSequence
from fastzoo.interpret.statistics import statistics
from fastzoo.lm.activations import ResidualReader
from fastzoo.lm.head import check_head, log_probabilities
from fastzoo.lm.load import refuse_unfit
from fastzoo.lm.logit_lens import lens_tokens
from fastzoo.lm.packing import Pack
from fastzoo.saes.base import SAE

TOKENS = 10
"""Logit-lens tokens that stand for a latent."""

DEFINITION = (
    "output score: with h + alpha * n * d at every position (sinks too) of a prompt that ends where the "
    "assistant's answer begins (h the residual stream after the SAE's layer, d the latent's decoder "
    "row, n the mean norm of h without sinks), the rise of the joint next-token probability of the ten tokens that "
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
    """How much steering with each latent makes the model say what the latent points to, in [0, 1].

    Let S be the ``TOKENS`` tokens with the largest logit-lens logits of the decoder row d, p(S) the
    model's joint probability of them as the token after a prompt, and p'(S) the same with
    h + alpha * residual_norm * d after ``layer`` at every position of the prompt, as ``steer`` adds. The score is
    max(0, mean over prompts of p'(S) - p(S)). Choosing latents by what they do to the output is the
    idea of Arad, Mueller, Belinkov 2025: SAEs Are Good for Steering - If You Select the Right Features
    (arXiv 2505.20063); their score also weighs the tokens' ranks.

    Args:
        sequences: prompts; their last token is followed by what is scored (see ``answer_starts``).
        alpha: in multiples of ``residual_norm``.
        residual_norm: ``LatentStatistics.residual_norm``; by default that of ``sequences``.
        vocabulary: ids that stand for a token.
        progress: told how many pairs were just done.

    Raises:
        InputError: a latent that the SAE does not have, no prompts, or alpha not finite.
        DataError: no ``residual_norm``, and prompts of a single token, which have none.
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
    check_head(reader.model, torch.from_numpy(sequences[0].ids[:64]).to(reader.device))
    if residual_norm is None:
        residual_norm = statistics(reader, {"the SAE": (layer, sae)}, sequences)["the SAE"].residual_norm
    d_LD = sae.W_dec[list(latents)].to(reader.device).float()
    _, tokens_LK = lens_tokens(reader.model, d_LD, TOKENS, vocabulary=vocabulary)
    shift_LD = alpha * residual_norm * d_LD
    rise_L = _rises(reader, layer, shift_LD, tokens_LK, sequences, progress)
    if not torch.isfinite(rise_L).all():
        latent = latents[int((~torch.isfinite(rise_L)).nonzero()[0])]
        raise TrainingError(f"steered with latent {latent} at alpha {alpha:g} the model gives NaN")
    return [float(rise) for rise in rise_L.clamp(0, 1).tolist()]


def _rises(
    reader: ResidualReader,
    layer: int,
    shift_LD: Tensor,
    tokens_LK: Tensor,
    sequences: Sequence[TokenSequence],
    progress: Callable[[int], None],
) -> Tensor:
    """(L,) float64: how much a shift after ``layer`` raises the probability of its tokens."""
    before_PL = torch.cat(
        [
            log_p[:, tokens_LK].exp().sum(2)
            for pack in reader.packs(sequences)
            for log_p in _next_token(reader, pack, reader.final_states(pack))
        ]
    )
    rise_L = torch.zeros(len(shift_LD), dtype=torch.float64, device=reader.device)
    done, count = 0, len(sequences)
    for pack in reader.packs(s for _ in shift_LD for s in sequences):
        pair_R = torch.arange(done, done + len(pack.lengths), device=reader.device)
        latent_R, prompt_R = pair_R // count, pair_R % count
        lengths = torch.tensor(pack.lengths, device=reader.device)
        shift_TD = shift_LD[latent_R].repeat_interleave(lengths, 0)

        def steer(x_TD: Tensor, shift_TD: Tensor = shift_TD) -> Tensor:
            return x_TD.float() + shift_TD

        row = 0
        for log_p in _next_token(reader, pack, reader.final_states(pack, (layer, steer))):
            which, prompt = latent_R[row : row + len(log_p)], prompt_R[row : row + len(log_p)]
            after = log_p.gather(1, tokens_LK[which]).exp().sum(1)
            rise_L.index_add_(0, which, (after - before_PL[prompt, which]).double())
            row += len(log_p)
        done += row
        progress(row)
    return rise_L / count


def refuse_missing(latents: Sequence[int], d_sae: int, name: str = "the SAE") -> None:
    """Raise InputError for a latent that the SAE does not have."""
    for latent in latents:
        if not 0 <= latent < d_sae:
            raise InputError(f"latent {latent}: {name} has {d_sae:,} latents, numbered 0 to {d_sae - 1}")


def _next_token(reader: ResidualReader, pack: Pack, states_TD: Tensor) -> Iterator[Tensor]:
    """Log-probabilities (R, V) of the token after each sequence of a pack, in parts."""
    last_RD = states_TD[torch.tensor(pack.lengths, device=states_TD.device).cumsum(0) - 1]
    for _, (log_p,) in log_probabilities(reader.model, last_RD):
        yield log_p
