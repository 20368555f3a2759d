"""Server-sent events as a guard reads them (WHATWG HTML, 9.2), with bounds, and strict where the standard repairs.

Refused instead of repaired: bytes that are not UTF-8, lines and events that are too large.
"""

import re
from typing import Final, NamedTuple

_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_BOM: Final = b"\xef\xbb\xbf"


class SseError(ValueError):
    """Bytes that are no stream of events, or one beyond its bounds."""


class Event(NamedTuple):
    """One event; ``id`` is its own, not the last one that the stream had."""

    name: str
    data: str
    id: str | None


class EventParser:
    """Makes events of bytes, however they are cut. After `SseError` it is of no further use.

    Args:
        max_event: bytes of one event, and of one line.
    """

    def __init__(self, max_event: int) -> None:
        self._max = max_event
        self._buffer = bytearray()
        self._looked = 0
        self._began = False
        self._skip_newline = False
        self._name = ""
        self._data: list[str] = []
        self._id: str | None = None
        self._size = 0

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that *chunk* completes; raises `SseError`."""
        if not chunk:
            return []
        if self._skip_newline:
            # The line had ended with CR; now we know that it was CRLF.
            chunk = chunk.removeprefix(b"\n")
            self._skip_newline = False
        buffer = self._buffer
        buffer += chunk
        events: list[Event] = []
        start = 0
        for end in _LINE_END.finditer(buffer, self._looked):
            self._line(bytes(buffer[start : end.start()]), events)
            start = end.end()
        self._skip_newline = start == len(buffer) and buffer.endswith(b"\r")
        del buffer[:start]
        self._looked = len(buffer)
        self._check(len(buffer))
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        self._check(len(line))
        if not self._began:
            self._began = True
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(Event(self._name or "message", "\n".join(self._data), self._id))
            self._clear()
            return
        try:
            field, _, value = line.decode("utf-8").partition(":")
        except UnicodeDecodeError:
            raise SseError("the stream is not UTF-8") from None
        value = value.removeprefix(" ")
        if field == "data":
            self._size += len(line)
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self._id = value
        # Comments have an empty name; `retry` is not the server's to say; others are to be ignored.

    def _check(self, more: int) -> None:
        if self._size + more > self._max:
            raise SseError(f"an event has more than {self._max} bytes")

    def _clear(self) -> None:
        self._name, self._data, self._id, self._size = "", [], None, 0
