"""The columns that SAEs are trained on: residual activations of the training tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from fastzoo.data.sequences import ResumePoint, TokenSequence
from fastzoo.data.streams import TokenStream
from fastzoo.lm.activations import Columns, ResidualReader
from fastzoo.lm.packing import packs
from fastzoo.results.evaluate import spread
from fastzoo.training.sharding import SharedForward

HELD_OUT_TOKENS, HELD_OUT_ROWS = 16_384, 4_096
"""About how many held-out tokens are read for ``training.l0``, and at least so many of them kept. L0 differs more between
dialogues (13% on a real model) than within them: those of 16,384 tokens tell it to 3%, of 4,096 to 6%."""


@torch.inference_mode()
def held_out_columns(
    reader: ResidualReader,
    sequences: Sequence[TokenSequence],
    layers: Iterable[int],
    idle: Callable[[], None] = lambda: None,
) -> Columns:
    """Activations (N, D) of ``layers``, as columns ``L<layer>``: ``HELD_OUT_ROWS`` tokens or some more, evenly from
    the about ``HELD_OUT_TOKENS`` of dialogues that are spread evenly over ``sequences``.

    What the reader finds out about the model decides how it reads. So all processes call this, also with no layers,
    and a run that goes on does so with a reader as new as at the beginning. ``idle`` is called now and then.
    """
    wanted = set(layers)
    mean = max(1, sum(map(len, sequences)) // len(sequences))
    chosen = spread(len(sequences), max(1, HELD_OUT_TOKENS // mean))
    step = max(1, sum(len(sequences[i]) for i in chosen) // HELD_OUT_ROWS)
    kept: dict[int, list[Tensor]] = {layer: [] for layer in wanted}
    for pack in reader.packs([sequences[i] for i in chosen]):
        idle()
        for layer, acts_TD in reader.read(pack, wanted).items() if wanted else ():
            kept[layer].append(acts_TD[step // 2 :: step].clone())  # a view would keep all of them
    return {f"L{layer}": torch.cat(acts) for layer, acts in kept.items()}


class TrainingColumns:
    """Activations of the first ``budget`` tokens of a stream, to the token.

    ``position`` is where the stream goes on after the columns that were given last.
    """

    def __init__(self, forward: SharedForward, stream: TokenStream, budget: int) -> None:
        self.forward, self.stream, self.budget = forward, stream, budget
        self.position = stream.start
        self._ahead: deque[ResumePoint] = deque()

    def __iter__(self) -> Iterator[Columns]:
        left = self.budget - self.position.counts.tokens
        for columns in self.forward.columns(self._groups(left)):
            self.position = self._ahead.popleft()
            rows = len(columns["position"])
            if rows >= left:
                # Do not count the dialogue that was read to find that it does not fit.
                self.stream.counts = self.position.counts.copy()
                yield {name: column[:left] for name, column in columns.items()}
                return
            left -= rows
            yield columns

    def _groups(self, tokens: int) -> Iterator[list[TokenSequence]]:
        """Packs that hold ``tokens``: nothing after those is read or computed.

        The forward takes packs some time before it gives their activations: hence ``_ahead``.
        """
        if tokens <= 0:
            return
        for group in packs(self.stream, self.forward.reader.pack_tokens):
            assert group[-1].after is not None
            self._ahead.append(group[-1].after)
            yield group
            tokens -= sum(map(len, group))
            if tokens <= 0:
                return
