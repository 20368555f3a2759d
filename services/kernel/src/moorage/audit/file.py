"""A trail of lines in a file of its own, which something else may rotate."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from moorage.audit.entry import Entry
from moorage.audit.lines import Writer

_MODE: Final = 0o600
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class FileTrail:
    """Entries as JSON, a line each, at the end of the file *path*.

    Written in a thread of its own, so that a slow disk does not hold the event loop. Stored means taken by the system:
    the end of this process loses nothing, that of the machine may lose the last seconds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = Writer()
        self._descriptor: int | None = None
        # One thread: lines follow each other, and a disk that hangs holds no more than one.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit")

    async def record(self, entry: Entry) -> None:
        """Append the line; raises `OSError`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._append, entry.encode())

    async def ping(self) -> None:
        """Raise `OSError` if the file cannot be opened."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._current)

    async def close(self) -> None:
        """Close the file, without waiting for a write that hangs."""
        self._thread.submit(self._let_go)
        self._thread.shutdown(wait=False)

    def _append(self, line: bytes) -> None:
        self._writer.write(self._current(), line)

    def _current(self) -> int:
        """The descriptor of what *path* names now: after a rotation that is another file."""
        if self._descriptor is not None:
            if self._is_current(self._descriptor):
                return self._descriptor
            self._let_go()
        self._descriptor = os.open(self._path, _FLAGS, _MODE)
        self._writer = Writer()
        return self._descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
