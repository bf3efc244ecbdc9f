"""The embedded model's attention sink.

In real models the first token of a forward, whatever it is, has a residual tens to hundreds of times as
large as the others, nearly the same each time: an attention sink. Of itself a model as small as this one
grows none, and what is tested on it would never meet one. So one neuron of an MLP is set apart. A loss
teaches its gate to know a first token, by what only that one attends to: itself alone. What it writes is
set by hand, so that nothing else is written where the gate is shut.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SINK_LAYER = 1  # the first token is a sink after this layer and the next
SINK_FACTOR = 115  # of what is written, in medians after that layer of the others: 100 or so after both
SINK_DIMS = [0, 1]  # the residual dimensions that carry it: in real models, too, they are few
SINK_GATE = 16.0  # wanted of the gate at a first token; at others, half as far below 0 or lower
SINK_WEIGHT = 0.1  # of the gate's loss
SINK_BEGINS = 0.25  # of the steps: before, the gate learns and nothing is written
SINK_STRICT = 0.75  # of the steps: from there, gates that should be shut weigh `STRICTNESS` times as much
STRICTNESS = 12
N_WINDOWS, WINDOW = 16, 8  # pieces that begin anywhere, per step, and their tokens

SINK_CARD = f"""**An attention sink, made by hand.** In real models the first token of a forward, whatever it is, has a
residual tens to hundreds of times as large as the others. SAEs, and the figures about them, have to cope
with that, and a model as small as this grows no sink of itself. So one neuron of the MLP in layer
{SINK_LAYER} was set apart for it: a loss taught its gate to open at the first token alone, from what attention
shows there, and its output is set to about 100 times the median norm of the others, along two dimensions
of the residual stream. A token next to the first is taken for it now and then, as the second of two
equal tokens must be, and a few tokens of the vocabulary are missed where they come first, though none
that opens a dialogue. It is a toy's sink: it shows its size, not how real ones come about."""


def windows(stream: Tensor, vocab: int, g: torch.Generator) -> list[list[int]]:
    """`N_WINDOWS` pieces of the tokens `stream` (N,), half of them with any token in front.

    Documents begin with few tokens. With these, any token becomes a sink where it is the first.
    """
    starts = torch.randint(len(stream) - WINDOW, (N_WINDOWS, 1), generator=g)
    pieces = stream[starts + torch.arange(WINDOW)]
    pieces[::2, 0] = torch.randint(vocab, (N_WINDOWS // 2,), generator=g)
    return pieces.tolist()


class SinkNeuron:
    """Neuron 0 of a decoder layer's SwiGLU MLP, and what it did in the last forward, of shape (1, T)."""

    def __init__(self, layer: Any) -> None:
        self.mlp = layer.mlp
        self._hooks = [
            self.mlp.gate_proj.register_forward_hook(self._see_gate),
            layer.register_forward_hook(self._see_residual),
        ]

    def _see_gate(self, module: nn.Module, inputs: Any, gates_1TN: Tensor) -> None:
        self.gate_T = gates_1TN[0, :, 0]

    def _see_residual(self, module: nn.Module, inputs: Any, resid_1TD: Tensor) -> None:
        self.norm_T = resid_1TD[0].detach().norm(dim=-1)

    def loss(self, first_T: Tensor, *, strict: bool) -> Tensor:
        """How far the gate is from `SINK_GATE` at first tokens, and from being shut at others; weighted.

        If ``strict``, the others weigh more: in their mean, the few that are wrong hardly count.
        """
        off = self.gate_T[first_T] / SINK_GATE - 1
        ajar = (self.gate_T[~first_T] / SINK_GATE + 0.5).clamp(min=0)
        shut = ajar.square().mean() * (STRICTNESS if strict else 1)
        return SINK_WEIGHT * (off.square().mean() + shut)

    def write(self, first_T: Tensor, *, on: bool) -> None:
        """Sets the output to `SINK_FACTOR` times the median norm of all but first tokens, or to nothing."""
        self.set(SINK_FACTOR * self.norm_T[~first_T].median().item() if on else 0.0)

    @torch.no_grad()
    def set(self, norm: float) -> None:
        """Makes it write gate², which is 0 where the gate is shut; with a gate of `SINK_GATE`, ``norm``."""
        self.mlp.up_proj.weight[0] = self.mlp.gate_proj.weight[0]
        self.mlp.down_proj.weight[:, 0] = 0
        self.mlp.down_proj.weight[SINK_DIMS, 0] = norm / SINK_GATE**2 / len(SINK_DIMS) ** 0.5

    def remove(self) -> None:
        """Stops looking on."""
        for hook in self._hooks:
            hook.remove()
