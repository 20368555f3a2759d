"""What the processes write: kept in bounded files, shown with a prefix, remembered to report a crash."""

import asyncio
import logging
import logging.handlers
from collections import deque
from pathlib import Path
from typing import Final, Protocol

from moorage_operator.local.processes import read_line

_MAX_BYTES: Final = 10 * 1024 * 1024
_BACKUPS: Final = 2
_REMEMBERED: Final = 30


class Sink(Protocol):
    """Where lines are shown."""

    @property
    def open(self) -> bool:
        """Whether lines are shown now."""

    def log(self, name: str, line: str) -> None:
        """Show *line* of the process *name*."""


class Log:
    """The log of one module over all its processes: ``logs/<name>.log``, 10 MiB and two older files."""

    def __init__(self, name: str, folder: Path, sink: Sink) -> None:
        self._name = name
        self._sink = sink
        self._recent: deque[str] = deque(maxlen=_REMEMBERED)
        self.path = folder / f"{name}.log"
        self._file = logging.handlers.RotatingFileHandler(
            self.path, maxBytes=_MAX_BYTES, backupCount=_BACKUPS, encoding="utf-8", delay=True
        )
        self._file.setFormatter(logging.Formatter("%(message)s"))

    def line(self, text: str) -> None:
        """Keep and show one line."""
        self._recent.append(text)
        self._file.handle(logging.makeLogRecord({"msg": text}))
        self._sink.log(self._name, text)

    async def follow(self, output: asyncio.StreamReader) -> None:
        """Take lines until the process and all that share its output are gone."""
        while (line := await read_line(output)) is not None:
            self.line(line)

    @property
    def shown(self) -> bool:
        """Whether a person sees the lines as they come."""
        return self._sink.open

    def recent(self, count: int) -> list[str]:
        """The last *count* lines (at most 30)."""
        return list(self._recent)[-count:]

    def forget(self) -> None:
        """Begin a new process's lines."""
        self._recent.clear()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
