"""Lines that only repeat are counted instead of written."""

import logging
import time
from typing import Any, Final

REPEAT_WINDOW: Final = 10.0
"""Seconds in which identical lines are counted."""
_NOT_COMPARED: Final = frozenset(
    {"time", "request_id", "trace_id", "span_id", "_record", "_from_structlog", "_logger", "_name"}
)


class Repeats(logging.Filter):
    """Lets a line pass at most *most* times in `REPEAT_WINDOW`; 0: without a bound.

    What was left out is said by the next such line (``repeated``), at the latest by a line of its own when
    anything is logged after the window. Lines are identical if logger, level, message and fields are; the request
    and its trace may differ. The access log is no part of it: each of its lines is a request.
    """

    _MOST_KEPT: Final = 1000

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self._seen: dict[object, list[int]] = {}
        self._until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether *record* is to be written."""
        if self.most == 0 or record.name == "moorage.access":
            return True
        now = time.monotonic()
        if now >= self._until:
            self._sweep(now)
        key = _identity(record)
        counts = self._seen.get(key)
        if counts is None:
            if len(self._seen) < self._MOST_KEPT:
                self._seen[key] = [1, 0]
            return True
        if counts[0] < self.most:
            counts[0] += 1
            return True
        counts[1] += 1
        return False

    def _sweep(self, now: float) -> None:
        """Begin a new window, and say what the last one left out."""
        self._until = now + REPEAT_WINDOW
        ended, self._seen = self._seen, {}
        for key, (_, left_out) in ended.items():
            if left_out:
                name, level, message = key[:3]  # type: ignore[index]  # of _identity
                logging.getLogger(name).log(level, message, extra={"repeated": left_out})


def _identity(record: logging.LogRecord) -> tuple[Any, ...]:
    if isinstance(record.msg, dict):
        event = record.msg
        fields = tuple(str(value) for name, value in event.items() if name not in _NOT_COMPARED)
        return (record.name, record.levelno, str(event.get("event")), fields)
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit; the handler will say so
        message = str(record.msg)
    return (record.name, record.levelno, message)
