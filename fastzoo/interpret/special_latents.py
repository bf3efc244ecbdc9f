"""The latents that fire most strongly on each special token, as in the paper's Appendix F.3.

Shape suffixes: T tokens of a pack, F latents, G groups (the occurrences of one token in one
dialogue), S sums over groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastzoo.data.sequences import TokenSequence, column
from fastzoo.data.special_tokens import SpecialTokens
from fastzoo.interpret.statistics import strongest
from fastzoo.lm.packing import to_device

ELEMENTS = 1 << 24
"""Activations that are made float64 at once (groups x latents)."""

DEFINITION = (
    "per special token the latents with the largest mean_max (five by default): a latent's largest activation over "
    "the token's positions in a dialogue, averaged over the dialogues that contain the token "
    "(dialogues, zeros included; a latent's own dialogues: those in which it fires on the token). "
    "Special are the tokenizer's special tokens and, where the chat template writes them "
    "directly after a special token, the tokens of the role words user and assistant (Gemma's model); role_word is the "
    "word of a token that is only a part of it; in content these words do not count. "
    "Position 0 and attention sinks, whose large activations are about the place and not the "
    "token, do not count in latents, unless the token stands nowhere else in the split. In "
    "with_sinks they count, as most likely in arXiv 2506.07691, Appendix F.3 (where the SAE skips them, with "
    "latents of 0); null for tokens that are never one. Latents that never fire on the token are left out; of equal "
    "ones the lower "
    "number comes first"
)

# Dialogues in which a token is a sink are summed twice for it, apart from the other dialogues.
ELSEWHERE, WITHOUT_SINKS, WITH_SINKS = range(3)

Key = tuple[int, int]
"""Token id, and which sum: over dialogues where the token is no sink (``ELSEWHERE``), or over those
where it is, without or with its occurrences as a sink."""


class Occurrences:
    """Where the special tokens of a pack stand, in groups of one dialogue and one key each."""

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        tokens: SpecialTokens,
        device: torch.device,
        sink_T: Tensor | None = None,
    ) -> None:
        """``sequences`` are whole dialogues, laid end to end in the pack; ``sink_T`` (bool) tells which of
        their tokens are attention sinks, besides position 0."""
        ids, position, special = (column(sequences, name) for name in ("ids", "position", "special"))
        counted = tokens.among(ids, position, special)
        lengths = [len(s) for s in sequences]
        dialogue = np.repeat(np.arange(len(lengths)), lengths)
        self.role_words = tokens.parts
        """Token id, and the role word that it is a part of."""
        sink = position == 0
        if sink_T is not None:
            sink |= sink_T.cpu().numpy()
        pair = dialogue * (int(ids.max()) + 1) + ids  # one number for dialogue and token
        touched = np.isin(pair, pair[counted & sink])  # the token is a sink somewhere in the dialogue
        found = [np.flatnonzero(counted & chosen) for chosen in (~touched, touched & ~sink, touched)]
        rows = np.concatenate(found)
        kinds = np.repeat((ELSEWHERE, WITHOUT_SINKS, WITH_SINKS), [len(part) for part in found])
        labels = np.stack([dialogue[rows], ids[rows], kinds])
        groups, group, sizes = np.unique(labels, axis=1, return_inverse=True, return_counts=True)
        # Groups with most occurrences first: the n-th occurrences belong to the first few groups.
        by_size = np.argsort(-sizes, kind="stable")
        self.keys: list[Key] = list(zip(*groups[1:, by_size].tolist(), strict=True))
        place = np.argsort(by_size)[group.reshape(-1)]
        in_order = np.argsort(place, kind="stable")
        starts = np.cumsum(sizes[by_size]) - sizes[by_size]
        nth = np.empty_like(place)
        nth[in_order] = np.arange(len(rows)) - starts[place[in_order]]
        by_nth = np.lexsort((place, nth))
        flat = to_device(torch.from_numpy(rows[by_nth]), device)
        self.nth_rows: Sequence[Tensor] = flat.split(np.bincount(nth).tolist())
        """Rows in the pack of the groups' first occurrences, second occurrences, and so on."""

    def largest(self, acts_TF: Tensor) -> Tensor:
        """(G, F) largest activation of each latent in each group."""
        best_GF = acts_TF[self.nth_rows[0]]
        for rows in self.nth_rows[1:]:
            part = best_GF[: len(rows)]
            torch.maximum(part, acts_TF[rows], out=part)
        return best_GF


class SpecialLatents:
    """Sums over dialogues of one SAE's largest activations on each special token, in float64."""

    def __init__(self, d_sae: int, device: torch.device) -> None:
        self._dialogues: Counter[Key] = Counter()
        self._places: dict[Key, int] = {}
        self._role_words: Mapping[int, str] = {}
        self._sums_SF = torch.zeros(0, d_sae, dtype=torch.float64, device=device)
        self._fired_SF = self._sums_SF.clone()

    def add(self, acts_TF: Tensor, occurrences: Occurrences) -> None:
        """Add a pack's activations, none of them negative."""
        keys = occurrences.keys
        if not keys:
            return
        self._dialogues.update(keys)
        self._role_words = occurrences.role_words
        self._make_room(keys)
        best_GF = occurrences.largest(acts_TF)
        places = torch.tensor([self._places[key] for key in keys])
        belongs_SG = (places == torch.arange(len(self._places))[:, None]).double().to(best_GF.device)
        groups = max(1, ELEMENTS // best_GF.shape[1])
        for part_SG, part_GF in zip(belongs_SG.split(groups, 1), best_GF.split(groups), strict=True):
            self._sums_SF += part_SG @ part_GF.double()
            self._fired_SF += part_SG @ (part_GF > 0).double()

    def _make_room(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._places.setdefault(key, len(self._places))
        if new := len(self._places) - len(self._sums_SF):
            zeros = self._sums_SF.new_zeros(new, self._sums_SF.shape[1])
            self._sums_SF = torch.cat([self._sums_SF, zeros])
            self._fired_SF = torch.cat([self._fired_SF, zeros])

    def report(self, text: Callable[[int], str] = str, top: int = 5) -> dict[str, Any]:
        """``{"definition", "tokens"}`` as ``metrics.json`` has it, with ``top`` latents per token."""
        found = []
        for token in sorted({token for token, _ in self._places}):
            without = self._top([(token, ELSEWHERE), (token, WITHOUT_SINKS)], top)
            complete = self._top([(token, ELSEWHERE), (token, WITH_SINKS)], top)
            with_sinks = complete if (token, WITH_SINKS) in self._places else None
            chosen = without if without["dialogues"] else complete
            part = {"role_word": self._role_words[token]} if token in self._role_words else {}
            name = {"token_id": token, "token": text(token), **part}
            found.append({**name, **chosen, "with_sinks": with_sinks})
        return {"definition": DEFINITION, "tokens": found}

    def _top(self, keys: Sequence[Key], top: int) -> dict[str, Any]:
        """Dialogues and largest latents of groups taken together."""
        known = [key for key in keys if key in self._places]
        places = [self._places[key] for key in known]
        dialogues = sum(self._dialogues[key] for key in known)
        mean_F = (self._sums_SF[places].sum(0) / max(dialogues, 1)).cpu().numpy()
        fired_F = self._fired_SF[places].sum(0).cpu().numpy()
        best = strongest(mean_F, top)
        latents = [{"latent": k, "mean_max": float(mean_F[k]), "dialogues": int(fired_F[k])} for k in best]
        return {"dialogues": dialogues, "latents": latents}
