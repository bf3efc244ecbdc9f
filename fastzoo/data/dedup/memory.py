"""Memory of the table of n-grams: how much there is, and words that grow where they are."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from pathlib import Path

import numpy as np

from fastzoo.core.files import machine_memory

RESERVE = 1 << 21
"""From so many bytes on, addresses are reserved ahead, and large pages asked for: lookups would wait for page tables, too."""

SHARE = 16
"""Of the machine's memory, what addresses are reserved for: as many parts as a table has."""


class Words:
    """Zeros that can become more zeros, where they are: what they took stays taken, and nothing is left over elsewhere.

    Addresses are reserved ahead; memory is taken where words are written. Of a common heap, growing would leave holes,
    which stay resident, and maps that the system moves lose their large pages.
    """

    array: np.ndarray
    """(size,) uint64."""

    def __init__(self, size: int) -> None:
        self._map: mmap.mmap | None = None
        self._take(size)

    def _take(self, size: int) -> None:
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
        wanted = 8 * max(1, size)
        if wanted < RESERVE:
            self._map, self.array = None, np.zeros(size, np.uint64)
            return
        try:
            if sys.platform != "linux":
                raise OSError
            reserved = max(wanted, min(machine_memory(), 1 << 44) // SHARE)
            reserved += -reserved % (1 << 21)  # else it does not begin where a large page does
            self._map = mmap.mmap(-1, reserved, flags=private["flags"] | 0x4000)  # MAP_NORESERVE
        except OSError:  # addresses are limited, too
            self._map = mmap.mmap(-1, wanted, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self.array = np.frombuffer(self._map, np.uint64, size)

    def grow(self, size: int) -> None:
        """Become ``size`` zeros, no fewer than before. What was there must have been saved."""
        if self._map is not None and 8 * size <= len(self._map):
            self.array.fill(0)
            self.array = np.frombuffer(self._map, np.uint64, size)
        else:
            self._take(size)


def free_memory() -> int:
    """Bytes that this process can still take without swapping, by the machine and the control groups it is in."""
    limits = [machine_memory()]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:
        pass
    for group in _control_groups():
        for most, used, idle in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                left = int((group / most).read_text()) - int((group / used).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                limits.append(left + int(stat.get(idle, 0)))  # files in memory make way
            except (OSError, ValueError):  # not limited ("max"), or no such group
                pass
    return max(0, min(limits))


def _control_groups() -> list[Path]:
    """Folders of this process's groups and of those that they are in, in which memory may be limited."""
    root = Path("/sys/fs/cgroup")
    found = [root, root / "memory"]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, kinds, name = line.split(":", 2)
        if kinds == "" or "memory" in kinds.split(","):
            top = root / "memory" if kinds else root
            own = Path(name.lstrip("/"))
            found += [top / part for part in (own, *own.parents)]
    return list(dict.fromkeys(found))
