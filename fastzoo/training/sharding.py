"""Several processes: each owns some of the SAEs, and all share the language model's forward.

Every process reads the same token stream and cuts it into the same packs. Pack k goes through the
language model on rank k mod N; once a round of N packs is computed, the activations of each layer
travel to the ranks that own an SAE of it. Every rank then sees the columns of all packs in their
order, so its SAEs learn from the same batches however many processes there are. Activations
travel, gradients never do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fastzoo.core.errors import InputError, ModelError
from fastzoo.core.processes import talking
from fastzoo.data.sequences import TokenSequence
from fastzoo.lm.activations import Columns, ResidualReader
from fastzoo.saes.names import SAEName

Group = list[TokenSequence]
"""Sequences that go through the model on the same rank, in this order: one pack."""

LONGEST_NAP = 0.002
"""Most seconds between two looks at whether an exchange is done."""


def assign(names: Sequence[SAEName], d_in: int, processes: int) -> list[list[SAEName]]:
    """Share SAEs out: for each rank, those it owns, in the order of ``names``.

    The most expensive ones (d_in x d_sae) come first, each for the rank with least to do. Among equally
    expensive ones a rank gets those of layers that it has anyway, so that fewer activations travel.
    Ranks beyond the number of SAEs own none.
    """
    cost = {name: d_in * d_in * name.expansion for name in names}
    load = [0] * processes
    layers: list[set[int]] = [set() for _ in range(processes)]
    owner: dict[SAEName, int] = {}
    for amount in sorted(set(cost.values()), reverse=True):
        same = [name for name in names if cost[name] == amount]
        # Balance alone decides how many of these each rank gets.
        free = [0] * processes
        for _ in same:
            least = load.index(min(load))
            load[least] += amount
            free[least] += 1
        # First those of layers that have an owner; a new layer goes where most places are left.
        owned = set().union(*layers)
        for name in sorted(same, key=lambda n: (n.layer not in owned, n.layer)):
            rank = max(
                (r for r in range(processes) if free[r]), key=lambda r: (name.layer in layers[r], free[r], -r)
            )
            free[rank] -= 1
            layers[rank].add(name.layer)
            owner[name] = rank
    return [[name for name in names if owner[name] == rank] for rank in range(processes)]


def check_same_run(settings: Sequence[Mapping[str, Any]]) -> None:
    """Check that all ranks read the same stream: none tells the others how long its packs are.

    Raises InputError, which names the ranks whose settings differ from rank 0's, and what differs.
    """
    others = [rank for rank, each in enumerate(settings) if each != settings[0]]
    if others:
        keys = [key for key, value in settings[0].items() if settings[others[0]].get(key) != value]
        raise InputError(
            f"not every process has the same recipe, model and data: rank "
            f"{', '.join(map(str, others))} differs from rank 0 ({', '.join(keys[:3])})"
        )


@dataclass
class _Round:
    """A round in transit: what this rank receives, and what must not be freed before it is sent."""

    groups: list[Group]
    received: Tensor
    """uint8: this rank's layers, one after another, of each group."""
    sent: Tensor
    work: Any


class SharedForward:
    """The language model's forward, shared among the processes of the default process group.

    Every rank, each with its SAEs in ``owners``, must iterate ``columns`` over the same groups. ``idle``
    is called now and then while one waits. A single process does not use torch.distributed.
    """

    def __init__(
        self,
        reader: ResidualReader,
        owners: Sequence[Sequence[SAEName]],
        rank: int,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._idle = idle
        self.reader, self.rank, self.processes = reader, rank, len(owners)
        self.layers = [sorted({name.layer for name in names}) for names in owners]
        """The layers that each rank needs."""
        self.all_layers = sorted(set().union(*self.layers))
        self.tokens = 0
        """Tokens that this rank sent through the model, without those of the reader's check."""
        self._width = int(reader.model.config.get_text_config().hidden_size)

    def columns(self, groups: Iterable[Group]) -> Iterator[Columns]:
        """``L<layer>`` (T, D) of this rank's layers, ``position`` and ``special`` (T,), in order.

        Raises TrainingError on the rank that computed an activation which is NaN or infinite, and
        PeerEnded on one that waits for a process which ended.
        """
        if self.processes == 1:
            for columns in self.reader.columns(groups, self.all_layers):
                self.tokens += len(columns["position"])
                yield columns
            return
        before: _Round | None = None
        remaining = iter(groups)
        while members := list(islice(remaining, self.processes)):
            # While a round travels the next one is computed.
            sent = self._send(members)
            if before:
                yield from self._receive(before)
            before = sent
        if before:
            yield from self._receive(before)

    def _send(self, groups: list[Group]) -> _Round:
        """Compute this rank's group of a round, if there is one, and start the exchange."""
        parts: dict[int, Tensor] = {}
        for rank, group in enumerate(groups):
            # Every rank checks every group: all must come to the same decision.
            self.reader.check(group)
            if rank == self.rank:
                parts = self._compute(group)
        sizes = [sum(map(len, g)) * self._width * self.reader.dtype.itemsize for g in groups]
        sizes += [0] * (self.processes - len(groups))
        to_each = [sizes[self.rank] * len(layers) for layers in self.layers]
        from_each = [size * len(self.layers[self.rank]) for size in sizes]
        flat = [parts[layer] for layers in self.layers for layer in layers] if parts else []
        nothing = torch.empty(0, dtype=torch.uint8, device=self.reader.device)
        sent = torch.cat(flat) if flat else nothing
        received = nothing.new_empty(sum(from_each))
        with talking():
            work = torch.distributed.all_to_all_single(received, sent, from_each, to_each, async_op=True)
        return _Round(groups, received, sent, work)

    def _compute(self, group: Group) -> dict[int, Tensor]:
        """The activations of a group by layer, as flat bytes: gloo does not support every dtype."""
        self.tokens += sum(map(len, group))
        (columns,) = self.reader.columns([group], self.all_layers, side_by_side=False)
        found = {}
        for layer in self.all_layers:
            acts_TD = columns[f"L{layer}"]
            if acts_TD.dtype != self.reader.dtype or acts_TD.shape[1] != self._width:
                raise ModelError(
                    f"layer {layer} gives {acts_TD.dtype} of width {acts_TD.shape[1]}, the model's "
                    f"weights have {self.reader.dtype} and its configuration says {self._width}; "
                    "train it in one process"
                )
            found[layer] = acts_TD.contiguous().view(-1).view(torch.uint8)
        return found

    def _receive(self, round_: _Round) -> Iterator[Columns]:
        """Wait for a round and yield the columns of its groups."""
        with talking():
            # Poll instead of waiting: Python handles no signal inside a wait, and the GPU's
            # stream never gets stuck behind an exchange with a process that is gone.
            nap = 0.0001
            while not round_.work.is_completed():
                self._idle()
                time.sleep(nap)
                nap = min(LONGEST_NAP, 2 * nap)
            round_.work.wait()
        start = 0
        for group in round_.groups:
            rows = sum(map(len, group))
            size = rows * self._width * self.reader.dtype.itemsize
            columns = {}
            for layer in self.layers[self.rank]:
                flat = round_.received[start : start + size].view(self.reader.dtype)
                columns[f"L{layer}"] = flat.view(rows, self._width)
                start += size
            for name in ("position", "special"):
                column = torch.cat([torch.from_numpy(getattr(s, name)) for s in group])
                columns[name] = column.to(self.reader.device)
            yield columns
