"""Devices, threads and determinism."""

from __future__ import annotations

import os

import torch

from fastzoo.core.errors import InputError
from fastzoo.core.files import machine_memory


def check_gpus(local_processes: int) -> None:
    """Raise InputError if the machine has GPUs, but fewer than processes."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < local_processes:
        raise InputError(
            f"{local_processes} processes on a machine with {gpus} GPUs; give accelerate launch --num_processes {gpus}"
        )


def use_deterministic_algorithms() -> None:
    """Make a GPU give the same bits every time, where torch can; call it before anything runs there.

    fastzoo's own kernels always add up in the same order.
    """
    if not torch.cuda.is_available():
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Every buffer here is written before it is read.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a GPU, or else of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_memory()


def use_threads(threads: int | None, local_processes: int) -> None:
    """Set torch's CPU threads, by default to this process's share of the cores, because
    `accelerate launch` sets a single thread on a CPU unless told otherwise."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // local_processes))
