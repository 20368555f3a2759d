"""What is left to the process of its machine: space on the disk, memory of its container."""

import os
import tempfile
from pathlib import Path
from typing import Final

from moorage.health import Health, NotReady

LEAST_DISK: Final = 0.03
"""Part of the disk that has to be free; kubelet evicts pods below 10 % of the node's."""
MOST_MEMORY: Final = 0.95
"""Part of the container's memory beyond which the kernel may end the process soon."""
_V2: Final = ("memory.max", "memory.current", "inactive_file")
_V1: Final = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file")
_NO_LIMIT: Final = 2**60
"""Version 1 says a limit near 2**63 where there is none."""


def register(health: Health) -> None:
    """Let readiness tell of too little disk or memory. Requests still come: who is full everywhere helps nobody."""
    health.register("disk", disk, required=False)
    health.register("memory", memory, required=False)


async def disk() -> None:
    """Raise `NotReady` if the disk with temporary files is nearly full."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:
        return  # a root file system that nobody may write to
    space = os.statvfs(folder)
    if space.f_blocks and space.f_bavail < space.f_blocks * LEAST_DISK:
        free = space.f_bavail * space.f_frsize // 2**20
        raise NotReady(f"{free} MiB are free in {folder}, less than {LEAST_DISK:.0%}")


async def memory() -> None:
    """Raise `NotReady` if the container is about to reach its memory limit; without a limit there is nothing to say."""
    found = usage(Path("/sys/fs/cgroup"))
    if found is not None and found[0] > found[1] * MOST_MEMORY:
        used, limit = (number // 2**20 for number in found)
        raise NotReady(f"{used} MiB of {limit} MiB are used, more than {MOST_MEMORY:.0%}")


def usage(root: Path) -> tuple[int, int] | None:
    """Bytes that are used, and that may be; ``None``: there is no limit that can be read.

    As kubelet counts them: without files that the kernel keeps in memory only while nobody needs it.
    """
    names = _V2 if (root / _V2[0]).exists() else _V1
    try:
        limit, used = (root / names[0]).read_text().strip(), int((root / names[1]).read_text())
        stat = (root / names[1]).with_name("memory.stat").read_text()
        idle = dict(line.split(" ", 1) for line in stat.splitlines()).get(names[2], "0")
        if limit == "max" or int(limit) >= _NO_LIMIT:
            return None
        return max(used - int(idle), 0), int(limit)
    except (OSError, ValueError):
        return None
