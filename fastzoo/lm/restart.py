"""Forward passes that begin after a layer, from states that were kept or changed.

What comes before the layers and after them runs as always; the layers up to that one return at once.
The list of layers stays whole, because models choose masks and caches by a layer's place in it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


class Restarts:
    """Layers of one model that return at once in threads that ask for it, and compute in all others."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        self._lock, self._users = threading.Lock(), 0
        self._thread = threading.local()
        self._own: list[dict[str, Any]] = []
        """Per layer its forward, if it is one of that layer alone."""

    @contextmanager
    def after(self, layer: int, output: Any) -> Iterator[None]:
        """Within, in this thread, every layer up to ``layer`` returns ``output``."""
        with self._lock:
            if not self._users:
                self._put_in()
            self._users += 1
        self._thread.layer, self._thread.output = layer, output
        try:
            yield
        finally:
            self._thread.layer = self._thread.output = None
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._take_out()

    def _put_in(self) -> None:
        self._own = [{k: v for k, v in vars(layer).items() if k == "forward"} for layer in self._layers]
        for index, layer in enumerate(self._layers):
            layer.forward = self._or_at_once(index, layer.forward)

    def _or_at_once(self, index: int, forward: Any) -> Any:
        def either(*args: Any, **kwargs: Any) -> Any:
            last = getattr(self._thread, "layer", None)
            return forward(*args, **kwargs) if last is None or index > last else self._thread.output

        return either

    def _take_out(self) -> None:
        for layer, own in zip(self._layers, self._own, strict=True):
            del layer.forward
            vars(layer).update(own)
