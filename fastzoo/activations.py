"""Residual-stream activations after chosen layers, from one forward pass that stops at the last.

The hook sits on the decoder layer itself: ``hidden_states[-1]`` of transformers is after the final
norm, so it is not the residual stream after the last layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastzoo.buffer import Columns
from fastzoo.errors import ModelError, TrainingError
from fastzoo.packing import IMPLEMENTATION, Pack, packs, register
from fastzoo.streams import TokenSequence

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference between packed and alone that the check at the start accepts, relative to the
largest activation of the same token (an attention sink must not excuse the others)."""


class _Stop(Exception):
    """Ends a forward pass after the last hooked layer."""


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of decoder layers of a causal language model.

    Raises:
        ModelError: no list of modules as long as the configuration says.
    """
    wanted = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    for module in model.base_model.modules():  # type: ignore[union-attr]
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise ModelError(f"{type(model).__name__}: no stack of {wanted} decoder layers found")


def hidden_of(output: Any) -> Tensor:
    """The hidden states of a decoder layer's output: a tensor, or a tuple that starts with it."""
    return output[0] if isinstance(output, tuple) else output


class ResidualReader:
    """Reads the residual stream of a model, packed where the model allows it.

    Args:
        model: a transformers causal language model in evaluation mode.
        pack_tokens: tokens per forward pass.
    """

    def __init__(self, model: Any, *, pack_tokens: int = 2048) -> None:
        self.model, self.pack_tokens = model, pack_tokens
        self.layers = decoder_layers(model)
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self._kernel = "eager" if model.config._attn_implementation == "eager" else "sdpa"
        self._packed = True
        self._checked: set[bool] = set()
        self.computed_tokens = 0
        register()

    # --- one pack ---

    def read(self, pack: Pack, layers: Iterable[int]) -> dict[int, Tensor]:
        """Residual stream (T, D) after each of ``layers``; the model stops after the last of them."""
        wanted = set(layers)
        found: dict[int, Tensor] = {}

        def capture(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                found[layer] = hidden_of(output)[0]
                if len(found) == len(wanted):
                    raise _Stop

            return hook

        handles = [self.layers[i].register_forward_hook(capture(i)) for i in wanted]
        try:
            self._forward(pack)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        self.computed_tokens += pack.input_ids.shape[1]
        return found

    def final_states(
        self, pack: Pack, edit: tuple[int, Callable[[Tensor], Tensor]] | None = None
    ) -> Tensor:
        """Normalised hidden states (T, D) that the LM head reads.

        Args:
            edit: a layer and a function that replaces the residual stream (T, D) after it.
        """
        if edit is None:
            return self._forward(pack).last_hidden_state[0]
        layer, change = edit

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            changed = change(hidden_of(output)[0])[None].to(self.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = self.layers[layer].register_forward_hook(hook)
        try:
            return self._forward(pack).last_hidden_state[0]
        finally:
            handle.remove()

    @torch.inference_mode()
    def _forward(self, pack: Pack) -> Any:
        if not self._packed:
            # One sequence a call: no mask is needed, and use_cache=False keeps the model stateless.
            assert len(pack.lengths) == 1
            return self.model.base_model(
                input_ids=pack.input_ids, position_ids=pack.position_ids, use_cache=False
            )
        with self._segments():
            return self.model.base_model(
                input_ids=pack.input_ids,
                position_ids=pack.position_ids,
                attention_mask=None,
                use_cache=False,
                segment_lengths=pack.lengths,
                segment_kernel=self._kernel,
            )

    @contextmanager
    def _segments(self) -> Iterator[None]:
        """The model attends per segment inside this block, and as before outside it."""
        config = self.model.config
        before = config._attn_implementation
        self.model.set_attn_implementation(IMPLEMENTATION)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    # --- streams ---

    def packs(self, sequences: Iterable[TokenSequence]) -> Iterator[Pack]:
        """Packs on the model's device.

        The first pack, and the first that holds several sequences, are checked against forwards one
        by one: a sequence that is alone in its pack shows nothing about seeing its neighbours.
        """
        for group in packs(sequences, self.pack_tokens):
            self.check(group)
            for part in [group] if self._packed else [[s] for s in group]:
                yield Pack.of(part, self.device)

    def columns(
        self, sequences: Iterable[TokenSequence], layers: Iterable[int]
    ) -> Iterator[Columns]:
        """Activations ``L<layer>`` (T, D) of each pack with ``position`` and ``special`` (T,).

        Raises:
            TrainingError: an activation is NaN or infinite; names the layer.
        """
        layers = sorted(layers)
        for pack in self.packs(sequences):
            acts = self.read(pack, layers)
            for layer, acts_TD in acts.items():
                # A sum is finite only if all its terms are: one cheap pass instead of a mask.
                if not torch.isfinite(acts_TD.sum(dtype=torch.float32)):
                    raise TrainingError(
                        f"layer {layer}: the model's activations hold NaN or infinity"
                    )
            yield {f"L{layer}": acts[layer] for layer in layers} | {
                "position": pack.column("position").to(self.device),
                "special": pack.column("special").to(self.device),
            }

    def check(self, group: list[TokenSequence]) -> None:
        """Compare a pack with one-by-one forwards, if it is a first one; fall back if they differ."""
        if not self._packed or (len(group) > 1) in self._checked:
            return
        self._checked.add(len(group) > 1)
        last = len(self.layers) - 1
        try:
            together = self.read(Pack.of(group, self.device), [last])[last]
        except (RuntimeError, TypeError, ValueError) as error:
            self._packed = False
            logger.warning("dialogues go through the model one by one: %s", error)
            return
        self._packed = False
        tolerance = TOLERANCE.get(self.dtype, 1e-4)
        for sequence, part in zip(group, together.split([len(s) for s in group]), strict=True):
            alone = self.read(Pack.of([sequence], self.device), [last])[last]
            largest_T1 = alone.abs().amax(1, keepdim=True).clamp_min(1e-6)
            difference = ((alone - part).abs() / largest_T1).max().item()
            if not difference <= tolerance:
                if torch.isfinite(alone).all():
                    logger.warning(
                        "dialogues go through the model one by one: packed, they differ by a share of %.2g",
                        difference,
                    )
                return
        self._packed = True
