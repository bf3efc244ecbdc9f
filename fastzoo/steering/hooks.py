"""Steering plain transformers models: ``with fastzoo.steer(model, sae, {latent: alpha}): ...``

Inside the block z + alpha · d takes the place of the residual stream z after the SAE's layer, d being
the latent's decoder row (Li et al. 2025, arXiv 2506.07691). Only the forward passes of the block's own
thread are changed; the model has hooks only while a block is open, and a block inside an abandoned
generator does nothing once that is closed or collected.

Shape suffixes: B rows of a batch, T tokens of a forward pass, D residual width.
"""

from __future__ import annotations

import contextvars
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastzoo.core.errors import InputError, ModelError
from fastzoo.core.text import one_line
from fastzoo.core.values import text_at
from fastzoo.lm.stack import decoder_layers, hidden_of, with_hidden
from fastzoo.loading import open_sae
from fastzoo.saes.base import SAE
from fastzoo.saes.formats import LoadedSAE
from fastzoo.steering.edits import Edit, Latents, make_edit
from fastzoo.steering.live import Live
from fastzoo.steering.positions import Positions, Tracker

_ACTIVE: contextvars.ContextVar[tuple[Steering, ...]] = contextvars.ContextVar("fastzoo_steering", default=())


class Steering:
    """The context manager that ``steer`` returns; each can be entered once."""

    def __init__(self, model: Any, edits: Sequence[Edit], positions: Positions = "all") -> None:
        self.model, self.edits = model, tuple(edits)
        self._tracker = Tracker(positions)
        self._layers = decoder_layers(model)
        self._undo = ExitStack()
        self._entered = self._live = self._acted = False

    def __enter__(self) -> Steering:
        if self._entered:
            raise InputError("this steering was entered before; make another one with steer(...)")
        self._entered = True
        with ExitStack() as undo:
            _ACTIVE.set((*_ACTIVE.get(), self))
            undo.callback(self._forget)
            undo.enter_context(uncompiled())
            if not self._tracker.everywhere:
                for depth, module in enumerate(self._path()):
                    begin, end = partial(self._begin, depth), partial(self._end, depth)
                    undo.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
                    undo.callback(module.register_forward_hook(end, always_call=True).remove)
            for edit in self.edits:
                # Before other hooks, so that these see what the next layer will see.
                layer, hook = self._layers[edit.layer], partial(self._steer, edit)
                undo.callback(layer.register_forward_hook(hook, prepend=True).remove)
            self._undo = undo.pop_all()
        self._live = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._live = False
        self._undo.close()
        if kind is None and self.edits and not self._acted:
            advice = "use steering.stream(...) or start threads with contextvars.copy_context().run"
            warnings.warn(
                f"the model did not run in this thread, so nothing was steered; {advice}", stacklevel=2
            )

    def _forget(self) -> None:
        # No token is reset: a generator may be closed in another context than where it began.
        _ACTIVE.set(tuple(other for other in _ACTIVE.get() if other is not self))

    def _path(self) -> list[Any]:
        """The modules from the model down to its layers, without these."""
        name = next(name for name, part in self.model.named_modules() if part is self._layers)
        parts = name.split(".")
        return [self.model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]

    def _acts(self) -> bool:
        return self._live and self in _ACTIVE.get()

    def _begin(self, depth: int, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if self._acts():
            self._tracker.begin(depth, args, kwargs)

    def _end(self, depth: int, module: Any, args: Any, output: Any) -> None:
        if self._acts():
            self._tracker.end(depth, output)

    def _steer(self, edit: Edit, module: Any, args: Any, output: Any) -> Any:
        if not self._acts():
            return None
        self._acted = True
        hidden_BTD = hidden_of(output)
        if hidden_BTD.ndim != 3:
            shape = tuple(hidden_BTD.shape)
            raise ModelError(
                f"layer {edit.layer} gives {shape}, not one residual stream of (batch, tokens, width)"
            )
        change_BTD = edit.change(hidden_BTD)
        if not self._tracker.everywhere:
            mask_BT = self._tracker.mask().to(hidden_BTD.device)
            change_BTD = change_BTD * mask_BT[..., None].to(hidden_BTD.dtype)
        steered_BTD = hidden_BTD + change_BTD
        return with_hidden(output, steered_BTD)

    def keep(self, places_B: Tensor) -> None:
        """Keep these rows of the batch, in this order (1-d int64), also in the blocks around this one.
        Alphas must be one for all rows or one for each."""
        for edit in self.edits:
            edit.keep(places_B)
        for steering in open_blocks(self.model):
            steering._tracker.keep(places_B)

    def stream(self, **generate: Any) -> Iterator[list[int]]:
        """``model.generate(**generate)`` steered: yields the next token of each row; rows that ended go on with
        padding. To stop listening stops the generation after its current token."""
        if not self._live:
            raise InputError("stream(...) is for inside the block: with steer(...) as steering:")

        def write(told: Callable[[list[int]], None]) -> None:
            # transformers' own streamers refuse batches.
            steps = SimpleNamespace(put=lambda ids: told(ids.reshape(-1).tolist()), end=lambda: None)
            self.model.generate(**generate, streamer=steps)

        steps = Live(write).steps()
        next(steps, None)  # the prompt
        yield from steps


def open_blocks(model: Any) -> list[Steering]:
    """The blocks that steer a model in this thread, the outermost first."""
    layers = decoder_layers(model)
    return [steering for steering in _ACTIVE.get() if steering._layers is layers]


def steer(
    model: Any,
    sae: SAE | LoadedSAE | str | Path,
    latents: Latents,
    *,
    layer: int | None = None,
    mode: str = "add",
    units: str = "raw",
    statistics: Any = None,
    positions: Positions = "all",
    force: bool = False,
) -> Steering:
    """Steer a transformers causal language model inside a ``with`` block.

    Blocks may be nested, for several SAEs and layers: all of them act, the inner first where they meet.

    Args:
        sae: a name, folder, ``hf:`` reference, what ``open_sae`` returns, or an SAE itself.
        latents: latent to alpha; an alpha is one number, or one per row of the batch.
        layer: the decoder layer, from 0, where the SAE does not say.
        mode: ``add`` alpha times the decoder row; ``clamp`` the latent to alpha; ``scale`` it by alpha; ``ablate``
            it where alpha is not 0. The last three change the residual stream by the difference that they make to
            the reconstruction, so its error stays, and leave attention sinks alone that the SAE was not trained
            on. ``add`` adds everywhere: beside the norm of a sink, that of a decoder row is next to nothing.
        units: what alpha of ``add`` counts: ``raw``; ``max``, the latent's mean maximum; ``norm``, the mean norm of
            the residual stream, the row taken at length 1. The last two need ``statistics`` (a ``LatentStatistics``
            of the SAE); ``clamp`` takes ``raw`` and ``max``.
        positions: ``all``, ``prompt`` or ``generated``; token ids; or a function from the tokens so far (B, T) to
            which of them are steered, such as ``fastzoo.roles`` returns.
        force: steer a model that the SAE was not trained on.

    Raises InputError for a latent, layer, unit or mode that does not exist and for a model that is not the SAE's;
    ModelError for a model without decoder layers, or of another width.
    """
    loaded = None
    if not isinstance(sae, SAE):
        loaded = sae if isinstance(sae, LoadedSAE) else open_sae(sae)
        layer, sae = loaded.layer if layer is None else layer, loaded.sae
    edit = make_edit(sae, latents, layer=layer, mode=mode, units=units, statistics=statistics)
    check_fits(model, sae, edit.layer)
    if loaded is not None and not force:
        check_base_model(model, loaded)
    return Steering(model, [edit], positions)


def check_fits(model: Any, sae: SAE, layer: int) -> None:
    """Raise ModelError or InputError where a model has no such layer, or another width."""
    layers = decoder_layers(model)
    width = model.config.get_text_config().hidden_size
    if sae.d_in != width:
        raise ModelError(f"the SAE is of width {sae.d_in}, the model's residual stream of width {width}")
    if not 0 <= layer < len(layers):
        raise InputError(f"layer {layer}: the model has 0 to {len(layers) - 1}")


def check_base_model(model: Any, loaded: LoadedSAE) -> None:
    """Raise InputError where an SAE says that it was trained on another model than this, or another stream of it."""
    loaded.refuse_centred(model.config)
    said = text_at(loaded.record, "base_model", "name") or loaded.model_name
    here = str(getattr(model, "name_or_path", "") or "")
    if said and here and _called(said) != _called(here):
        said, here = one_line(said, 100), one_line(here, 100)
        raise InputError(
            f"the SAE was trained on {said}, and this is {here}; force=True steers it all the same"
        )


def _called(name: str) -> str:
    """The last part of a model's name, also of one in the Hub's cache."""
    for part in Path(name).parts:
        if part.startswith("models--"):
            return part.rpartition("--")[2].lower()
    return Path(name).name.lower()


_EAGER = threading.Lock()
_eager: dict[str, Any] = {"blocks": 0, "stance": None}


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, no thread runs what torch.compile made: a model that was compiled before would pass over
    hooks. Blocks of several threads may overlap."""
    with _EAGER:
        if not _eager["blocks"]:
            _eager["stance"] = torch.compiler.set_stance("force_eager")
        _eager["blocks"] += 1
    try:
        yield
    finally:
        with _EAGER:
            _eager["blocks"] -= 1
            if not _eager["blocks"]:
                _eager["stance"].__exit__(None, None, None)
