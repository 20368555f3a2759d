"""A trail of lines on standard output, among those of the log, past everything that leaves out lines of the log."""

import json
import os
import re
import select
from collections.abc import Callable
from typing import Any, Final

from moorage.audit.entry import Entry
from moorage.logs.lines import undisturbed

LOGGER: Final = "moorage.audit"
"""What such a line says under ``logger``."""
STDOUT: Final = 1
_WORD = re.compile(r"[!#-<>-~]+")

Render = Callable[[Entry], bytes]


class Writer:
    """Writes whole lines to a file descriptor, each by one call where the system takes it as a whole.

    A line that was broken off, as by a full disk, is ended before the next one is begun.
    """

    def __init__(self) -> None:
        self._torn = False

    def write(self, descriptor: int, line: bytes, *, torn: bool = False) -> None:
        """Write *line* and its end; raises `OSError`.

        Args:
            torn: whether somebody else has broken off a line there.
        """
        data = (b"\n" if torn or self._torn else b"") + line + b"\n"
        done = 0
        try:
            while done < len(data):
                done += os.write(descriptor, data[done:])
        except OSError:
            self._torn = self._torn or done > 0
            raise
        self._torn = False


class LinesTrail:
    """Entries as lines of *descriptor*, written in the event loop as the log's are.

    Past `logging`, which filters by level, leaves out what repeats, cuts what is long, and never says that a line
    could not be written.
    """

    def __init__(self, render: Render, descriptor: int = STDOUT) -> None:
        self._render = render
        self._descriptor = descriptor
        self._writer = Writer()

    async def record(self, entry: Entry) -> None:
        """Write the line, while no other thread writes one of the log; raises `OSError`."""
        line = self._render(entry)
        with undisturbed() as torn:
            self._writer.write(self._descriptor, line, torn=torn)

    async def ping(self) -> None:
        """Raise `OSError` if nobody reads the other end any more, or the descriptor is closed."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        for _, event in poll.poll(0):
            if event & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                raise OSError(f"file descriptor {self._descriptor} is not open for writing")

    async def close(self) -> None:
        """Nothing: the descriptor is the process's."""


def json_line(service: str, version: str) -> Render:
    """A line with the fields that every line of the log has, and the whole entry as ``entry``."""

    def render(entry: Entry) -> bytes:
        line: dict[str, Any] = {
            "time": entry.timestamp,
            "level": "info",
            "logger": LOGGER,
            "message": "audit",
            "request_id": entry.request_id,
            "service": service,
            "version": version,
            "entry": entry.as_dict(),
        }
        return json.dumps(line).encode("ascii")

    return render


def console_line(entry: Entry) -> bytes:
    """A line for people, as the log's are on a terminal."""
    fields = entry.as_dict()
    fields.update(fields.pop("metadata"))
    time = fields.pop("timestamp")
    told = " ".join(f"{name}={_word(str(value))}" for name, value in fields.items() if value)
    return f"{time} [info     ] audit [{LOGGER}] {told}".encode("ascii")


def _word(value: str) -> str:
    return value if _WORD.fullmatch(value) else json.dumps(value)
