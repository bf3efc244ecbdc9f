"""Residual-stream activations after chosen layers, from one forward pass that stops at the last one.

The hook sits on the decoder layer itself, because ``hidden_states[-1]`` of transformers is after the
final norm and so is not the residual stream after the last layer.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastzoo.core.errors import TrainingError
from fastzoo.core.threads import workers
from fastzoo.data.sequences import TokenSequence, column
from fastzoo.lm.attention import IMPLEMENTATION, Sight, register
from fastzoo.lm.lengths import LengthRules, Proven, forget, other_mixers
from fastzoo.lm.packing import Pack, difference, difference_from_alone, packs, to_device
from fastzoo.lm.restart import Restarts
from fastzoo.lm.stack import accepted, decoder_layers, hidden_of, language_model, with_hidden

logger = logging.getLogger(__name__)

PACK_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens per forward pass: on a CPU as many as its cache takes, on a GPU enough to keep it busy."""

MOST_AT_ONCE = 4
"""Packs that a CPU computes side by side; each takes memory."""


class _Stop(Exception):
    """Ends a forward pass after the last hooked layer."""


class _Attention:
    """Which attention a model uses. Its readers share this: one that needs another kind waits for the
    forwards under way, which would go on with it halfway."""

    def __init__(self) -> None:
        self._changed, self._running = threading.Condition(), 0
        self.one_at_a_time = threading.Lock()

    @contextmanager
    def of_kind(self, model: Any, kind: str) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._running or model.config._attn_implementation == kind)
            if model.config._attn_implementation != kind:
                model.set_attn_implementation(kind)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()


# Readers of a model share these.
_ATTENTION: WeakKeyDictionary[nn.Module, _Attention] = WeakKeyDictionary()
_RESTARTS: WeakKeyDictionary[nn.Module, Restarts] = WeakKeyDictionary()


class ResidualReader:
    """Reads the residual stream of a transformers model in evaluation mode, packed where that is proven
    exact; ``pack_tokens`` at once, by default what suits the device."""

    def __init__(self, model: Any, *, pack_tokens: int | None = None) -> None:
        self.model = model
        self.layers, self._base = decoder_layers(model), language_model(model)
        self.device = next(model.parameters()).device
        self.pack_tokens = pack_tokens or PACK_TOKENS.get(self.device.type, 2048)
        self.dtype = next(model.parameters()).dtype
        self._attention = _ATTENTION.setdefault(model, _Attention())
        self._restarts = _RESTARTS.setdefault(model, Restarts(list(self.layers)))
        self._restartable: dict[int, bool] = {}
        self._outputs = 0  # length of the tuple that a layer returns; 0: it returns a tensor
        # Of the language model alone: a tower beside it may know other kinds.
        base: Any = self._base
        self._attending = base if hasattr(base, "set_attn_implementation") else model
        self._own_kind: str = self._attending.config._attn_implementation
        self._kernel = "eager" if self._own_kind == "eager" else "sdpa"
        self.alone: str | None = other_mixers(self.layers)
        """Why dialogues go through the model one by one."""
        self._said = self._attention_kept = False
        self.rules = LengthRules.of(model.config)
        self._proven = Proven(self.rules)
        self._sights: dict[Any, Sight] = {}
        self._thread = threading.local()  # what the forward in this thread is to capture
        self.computed_tokens = 0
        register()

    def state(self) -> dict[str, Any]:
        """What was found out about the model so far, as plain data."""
        return {"alone": self.alone, "proven": self._proven.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what another reader of the same model found out."""
        self.alone = state["alone"]
        self._proven.restore(state["proven"])

    def read(self, pack: Pack, layers: Iterable[int]) -> dict[int, Tensor]:
        """Residual stream (T, D) after each of ``layers``; the model stops after the last of them."""
        wanted = set(layers)
        self.computed_tokens += pack.input_ids.shape[1]
        with self._hooks(wanted):
            return self._read(pack, wanted)

    def read_to_end(self, pack: Pack, layers: Iterable[int]) -> tuple[dict[int, Tensor], Tensor]:
        """As ``read``, and the normalised final states (T, D) that the LM head reads, from one forward.

        For each of ``layers`` the first one also finds out whether ``restarted`` can leave layers out.
        """
        wanted = set(layers)
        self.computed_tokens += pack.input_ids.shape[1]
        with self._hooks(wanted):
            acts, final_TD = self._run(pack, wanted, to_end=True)
            assert final_TD is not None
            for layer in wanted - self._restartable.keys():
                self._restartable[layer] = self._restart_is_exact(pack, layer, acts[layer], final_TD)
        return acts, final_TD

    def restarted(self, pack: Pack, layer: int, states_TD: Tensor) -> Tensor:
        """Normalised final states (T, D) with ``states_TD`` as the residual stream after ``layer``; once
        ``read_to_end`` found that exact, the layers up to it are not computed again."""
        states_TD = states_TD.to(self.dtype)
        if not self._restartable.get(layer):
            return self.final_states(pack, (layer, lambda x_TD: states_TD))
        try:
            return self._restart(pack, layer, states_TD)
        finally:
            self._reset_attention()

    def _restart(self, pack: Pack, layer: int, states_TD: Tensor) -> Tensor:
        states: Any = states_TD[None]
        if self._outputs:  # layers return a tuple; what else is in it (attention weights) nobody reads
            states = (states, *[None] * (self._outputs - 1))
        with self._restarts.after(layer, states):
            return self._forward(pack).last_hidden_state[0]

    def _restart_is_exact(self, pack: Pack, layer: int, acts_TD: Tensor, final_TD: Tensor) -> bool:
        """Whether a forward restarted from its own states ends as it did; if not, a warning says so."""
        said = f"the model cannot go on from layer {layer}, and is computed whole for every SAE there"
        try:
            found_TD = self._restart(pack, layer, acts_TD)
        except Exception as error:  # whatever a model does that keeps more than states
            logger.warning("%s: %s", said, error)
            return False
        share, allowed = difference(final_TD, found_TD)
        if not share <= allowed and torch.isfinite(final_TD).all():
            logger.warning("%s: restarted, states differ by a share of %.2g", said, share)
        return share <= allowed

    @contextmanager
    def _hooks(self, layers: Iterable[int]) -> Iterator[None]:
        """Inside, ``_read`` finds the layers' outputs; other forwards of the model are not affected.
        Afterwards the model attends as before."""

        def capture(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                found = getattr(self._thread, "found", None)
                if found is None or layer not in self._thread.wanted:
                    return
                found[layer] = hidden_of(output)[0]
                self._outputs = len(output) if isinstance(output, (tuple, list)) else 0
                if len(found) == len(self._thread.wanted) and not self._thread.to_end:
                    raise _Stop

            return hook

        handles = [self.layers[i].register_forward_hook(capture(i)) for i in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._reset_attention()

    def _read(self, pack: Pack, layers: set[int]) -> dict[int, Tensor]:
        return self._run(pack, layers, to_end=False)[0]

    def _run(self, pack: Pack, layers: set[int], *, to_end: bool) -> tuple[dict[int, Tensor], Tensor | None]:
        found: dict[int, Tensor] = {}
        final_TD = None
        self._thread.found, self._thread.wanted, self._thread.to_end = found, layers, to_end
        try:
            final_TD = self._forward(pack).last_hidden_state[0]
        except _Stop:
            pass
        finally:
            self._thread.found = None
        return found, final_TD

    def final_states(self, pack: Pack, edit: tuple[int, Callable[[Tensor], Tensor]] | None = None) -> Tensor:
        """Normalised hidden states (T, D) that the LM head reads.

        Args:
            edit: a layer and a function that replaces the residual stream (T, D) after it.
        """

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            assert edit is not None
            changed = edit[1](hidden_of(output)[0])[None].to(self.dtype)
            return with_hidden(output, changed)

        handle = self.layers[edit[0]].register_forward_hook(hook) if edit else None
        try:
            return self._forward(pack).last_hidden_state[0]
        finally:
            if handle:
                handle.remove()
            self._reset_attention()

    @torch.inference_mode()
    def _forward(self, pack: Pack) -> Any:
        # Without a cache the model is stateless.
        inputs = {"input_ids": pack.input_ids, "position_ids": pack.position_ids, "use_cache": False}
        if self.alone is None:
            inputs |= {"segment_lengths": pack.lengths, "segment_kernel": self._kernel}
            inputs["segment_sights"] = self._sights
        else:
            assert len(pack.lengths) == 1  # so no mask is needed
            inputs = accepted(self._base, inputs)
        kind = self._own_kind if self.alone else IMPLEMENTATION
        with self._attention.of_kind(self._attending, kind), self._undisturbed():
            return self._base(**inputs)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Within, what the model remembers of one forward for the next is as at its start."""
        if not self.rules.remembers:
            yield
            return
        with self._attention.one_at_a_time:
            forget(self._base)
            yield

    @contextmanager
    def attention_kept(self) -> Iterator[None]:
        """Within, the model attends as the last pass had it, which spares changing that for every pass."""
        self._attention_kept = True
        try:
            yield
        finally:
            self._attention_kept = False
            self._reset_attention()

    def _reset_attention(self) -> None:
        if self._attention_kept:
            return
        with self._attention.of_kind(self._attending, self._own_kind):
            pass

    def packs(self, sequences: Iterable[TokenSequence]) -> Iterator[Pack]:
        """Packs on the model's device, each proven like those before it (see ``check``)."""
        for group in packs(sequences, self.pack_tokens):
            self.check(group)
            for part in self._parts(group):
                yield Pack.of(part, self.device)

    def _parts(self, group: list[TokenSequence]) -> list[list[TokenSequence]]:
        """What goes through the model together."""
        return [[s] for s in group] if self.alone else self.rules.together(group)

    def columns(
        self, groups: Iterable[list[TokenSequence]], layers: Iterable[int], *, side_by_side: bool = True
    ) -> Iterator[Columns]:
        """Activations ``L<layer>`` (T, D) of each group with ``position`` and ``special`` (T,).

        Args:
            groups: the sequences of each pack, as ``packing.packs`` cuts them.
            side_by_side: on a CPU, read some groups ahead and compute them at the same time, each on
                its share of the threads, which then need not wait for each other at every operation.

        Raises:
            TrainingError: an activation is NaN or infinite; names the layer.
        """
        wanted = set(layers)
        with self._hooks(wanted):
            for group, acts in self._in_order(groups, wanted, side_by_side):
                self.computed_tokens += sum(map(len, group))
                yield {f"L{layer}": acts[layer] for layer in sorted(wanted)} | {
                    name: to_device(torch.from_numpy(column(group, name)), self.device)
                    for name in ("position", "special")
                }

    def _in_order(
        self, groups: Iterable[list[TokenSequence]], layers: set[int], side_by_side: bool
    ) -> Iterator[tuple[list[TokenSequence], dict[int, Tensor]]]:
        """Each group with its activations, which are computed some groups ahead."""
        ahead = 0
        submit: Callable[..., Future[tuple[dict[int, Tensor], Tensor]]] = _at_once
        if self.device.type != "cpu":
            ahead = 1  # a GPU computes the next group while this one's finiteness is waited for
        elif side_by_side and (threads := torch.get_num_threads()) > 1:
            ahead = min(threads, MOST_AT_ONCE)
            submit = workers(ahead, threads).submit
        waiting: deque[tuple[list[TokenSequence], Future[tuple[dict[int, Tensor], Tensor]]]] = deque()
        try:
            for group in chain(groups, [None] * ahead):  # None: only hand out what was read ahead
                if group is not None:
                    if self._unchecked(group):  # the check changes the model's attention
                        wait([future for _, future in waiting])
                        self.check(group)
                    waiting.append((group, submit(self._activations, group, layers)))
                if len(waiting) > ahead or (group is None and waiting):
                    first, future = waiting.popleft()
                    acts, finite = future.result()
                    _refuse_unless(finite, layers)
                    yield first, acts
        finally:
            for _, future in waiting:
                future.cancel()
            wait([future for _, future in waiting])

    def _activations(self, group: list[TokenSequence], layers: set[int]) -> tuple[dict[int, Tensor], Tensor]:
        """(T, D) of each layer, the tokens of the group in order; and whether each, in order, is finite."""
        parts = [self._read(Pack.of(p, self.device), layers) for p in self._parts(group)]
        found = parts[0]
        if len(parts) > 1:
            found = {layer: torch.cat([part[layer] for part in parts]) for layer in layers}
        # A sum is finite only if all its terms are: one cheap pass instead of a mask.
        sums = [found[layer].sum(dtype=torch.float32) for layer in sorted(found)]
        return found, torch.isfinite(torch.stack(sums))

    def _unchecked(self, group: list[TokenSequence]) -> bool:
        return not (self.alone and self._said) and not all(map(self._proven.knows, self._parts(group)))

    def check(self, group: list[TokenSequence]) -> None:
        """Compare a pack unlike those before it, or longer, with forwards one by one; read one by one from now
        on if they differ, and say so."""
        if not self._unchecked(group):
            return
        for part in self._parts(group):
            if self.alone is None and not self._proven.knows(part):
                self._proven.add(part)
                self.alone = difference_from_alone(part, self._read_last)
        if self.alone and not self._said:
            self._said = True
            logger.warning("dialogues go through the model one by one: %s", self.alone)

    def _read_last(self, group: list[TokenSequence], together: bool) -> Tensor:
        last, before = len(self.layers) - 1, self.alone
        self.alone = None if together else "compared"
        try:
            acts_TD = self.read(Pack.of(group, self.device), [last])[last]
        finally:
            self.alone = before
        for index, layer in enumerate(self.layers if together else ()):
            if not any(module in self._sights for module in layer.modules()):
                raise RuntimeError(f"layer {index} mixes tokens without attention, or by one of its own")
        return acts_TD


def _at_once(compute: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """As ``ThreadPoolExecutor.submit``, in this thread."""
    future: Future[Any] = Future()
    future.set_result(compute(*arguments))
    return future


def _refuse_unless(finite: Tensor, layers: set[int]) -> None:
    for layer, fine in zip(sorted(layers), finite.tolist(), strict=True):
        if not fine:
            raise TrainingError(f"layer {layer}: the model's activations hold NaN or infinity")


Columns = dict[str, Tensor]
"""Tensors with the same number of rows, one row per token."""
