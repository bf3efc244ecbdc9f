"""Which tokens of a forward pass are steered: by their place in the sequence, or by what they are.

A forward pass with a cache shows only its own tokens, so earlier ones are remembered, per thread.

Shape suffixes: B rows of a batch, T tokens of a forward pass, or of the sequence so far.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line

Positions = str | Iterable[int] | Callable[[Tensor], Tensor]
"""One of ``PLACES``, token ids, or a function from the tokens so far (B, T) to a mask of the steered ones."""

Mask = Callable[[Tensor, int], Tensor]
"""From the tokens so far (B, T), and how many of them are the prompt, to which of them are steered."""


def _in_prompt(known_BT: Tensor, prompt: int) -> Tensor:
    return (torch.arange(known_BT.shape[1], device=known_BT.device) < prompt).expand_as(known_BT)


PLACES: dict[str, Mask] = {
    "all": lambda known_BT, prompt: torch.ones_like(known_BT, dtype=torch.bool),
    "prompt": _in_prompt,
    "generated": lambda known_BT, prompt: ~_in_prompt(known_BT, prompt),
}


class _Pass(threading.local):
    """What a thread's forward pass tells its layers, and what the next one may go on from."""

    outermost: int | None = None
    """Depth of the module that it entered first."""
    mask_BT: Tensor | None = None
    known_BT: Tensor | None = None
    """The tokens so far, of which ``prompt`` are the prompt."""
    prompt = 0
    cache: Any = None


class Tracker:
    """Follows the forward passes of a model, in any number of threads."""

    def __init__(self, positions: Positions) -> None:
        self._mask = mask_of(positions)
        self._pass = _Pass()
        self.everywhere = self._mask is PLACES["all"]

    def mask(self) -> Tensor:
        """(B, T) bool of the forward pass that runs. Raises InputError."""
        if self._pass.mask_BT is None:
            raise InputError("positions other than 'all' need input_ids; embeddings have no token ids")
        return self._pass.mask_BT

    def begin(self, depth: int, args: Any, kwargs: dict[str, Any]) -> None:
        """Note which tokens of a forward pass are steered, as it enters a module. Raises InputError.

        The model has depth 0. Which modules a pass enters depends on the family and on the caller; the first that
        is given tokens says what they are.
        """
        if self._pass.outermost is None or depth <= self._pass.outermost:
            self._pass.outermost, self._pass.mask_BT = depth, None
        elif self._pass.mask_BT is not None:
            return
        ids_BT = kwargs.get("input_ids", args[0] if args else None)
        if ids_BT is not None:
            known_BT = self._history(ids_BT, kwargs.get("past_key_values"), kwargs.get("logits_to_keep"))
            mask_BT = self._mask(known_BT, self._pass.prompt)
            self._pass.mask_BT = mask_BT[:, known_BT.shape[1] - ids_BT.shape[1] :]

    def end(self, depth: int, output: Any) -> None:
        """Note that a forward pass has left a module."""
        if self._pass.outermost == depth:
            self._pass.outermost = None
            # The model makes the cache itself where it is given none.
            self._pass.cache = getattr(output, "past_key_values", None)

    def keep(self, places_B: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        known_BT = self._pass.known_BT
        if known_BT is not None:
            self._pass.known_BT = known_BT[places_B.to(known_BT.device)]

    def _history(self, ids_BT: Tensor, cache: Any, logits_to_keep: Any) -> Tensor:
        """The tokens so far, and how many of them are the prompt, noted as ``prompt``.

        A forward pass goes on with what came before it where the cache that it fills is the same or,
        without a cache, where its tokens begin with the same prompt and are one more than before.

        ``logits_to_keep`` says of how many of the last tokens the logits are wanted: all but one of these are
        guesses that assisted decoding has checked; 0 or None: of all.
        """
        before_BT, prompt = self._pass.known_BT, self._pass.prompt
        past = 0 if cache is None else int(cache.get_seq_length())
        same = cache is not None and self._pass.cache is cache
        asked = logits_to_keep if isinstance(logits_to_keep, int) else 0
        if past and same and before_BT is not None and past <= before_BT.shape[1]:
            # Beams exchange their pasts; their tokens before are those of the rows they came from.
            known_BT = torch.cat([before_BT[:, :past].to(ids_BT.device), ids_BT], 1)
            # More tokens than are asked about are the next piece of a prompt that comes in pieces.
            new = 0 < asked < ids_BT.shape[1]
        else:
            # A cache that was filled before this block holds unknown tokens.
            known_BT = torch.nn.functional.pad(ids_BT, (past, 0), value=-1)
            new = (
                bool(past)
                or before_BT is None
                or before_BT.shape != (ids_BT.shape[0], ids_BT.shape[1] - 1)
                # After the prompt beams exchange their tokens.
                or not torch.equal(before_BT[:, :prompt].to(ids_BT.device), ids_BT[:, :prompt])
            )
        if new:
            self._pass.prompt = known_BT.shape[1] - max(0, asked - 1)
        self._pass.known_BT, self._pass.cache = known_BT, cache
        return known_BT


def mask_of(positions: Positions) -> Mask:
    """What says which tokens are steered. Raises InputError for positions of no known kind."""
    if isinstance(positions, str):
        if positions not in PLACES:
            known = f"{', '.join(PLACES)}; token ids and roles(...) can be given too"
            raise InputError(f"positions '{one_line(positions, 40)}' is not one of {known}")
        return PLACES[positions]
    if callable(positions):
        return partial(_chosen, positions)
    with suppress(TypeError):
        ids = frozenset(positions)
        if ids and all(isinstance(token, int) and token >= 0 for token in ids):
            wanted = torch.tensor(sorted(ids))
            return lambda known_BT, prompt: torch.isin(known_BT, wanted.to(known_BT.device))
    raise InputError("positions are 'all', 'prompt', 'generated', token ids or a function")


def _chosen(choose: Callable[[Tensor], Tensor], known_BT: Tensor, prompt: int) -> Tensor:
    mask_BT = choose(known_BT).bool()
    if mask_BT.shape != known_BT.shape:
        shape, tokens = tuple(mask_BT.shape), tuple(known_BT.shape)
        raise InputError(f"positions gave a mask of shape {shape} for tokens of shape {tokens}")
    return mask_BT
