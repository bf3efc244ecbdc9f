"""Compiled models, for as long as they must run as they were written."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import torch


class Uncompiled:
    """Until it is removed nothing runs as torch.compile left it, in any thread: of a model that was
    compiled before, hooks would be passed over."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _open: ClassVar[int] = 0
    _stance: ClassVar[Any] = None

    def __init__(self) -> None:
        with Uncompiled._lock:
            if not Uncompiled._open:
                Uncompiled._stance = torch.compiler.set_stance("force_eager")
            Uncompiled._open += 1

    def remove(self) -> None:
        with Uncompiled._lock:
            Uncompiled._open -= 1
            if not Uncompiled._open:
                Uncompiled._stance.__exit__(None, None, None)
