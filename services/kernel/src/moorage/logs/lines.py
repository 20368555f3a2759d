"""Where lines of JSON go: those of every logger, and those that somebody makes himself, in batches."""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, TextIO

_WRITE_S: Final = 0.02
_MOST_WAITING: Final = 64


class Lines(logging.StreamHandler[TextIO]):
    """Where lines of JSON go; also lines that somebody has made himself, see `lines_of`."""

    def __init__(self, stream: TextIO, *, service: str, version: str) -> None:
        super().__init__(stream)
        self._waiting: list[tuple[Callable[..., str], tuple[Any, ...]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.torn = False
        """Whether the last line may have been broken off."""
        self._end = f', "service": {json.dumps(service)}, "version": {json.dumps(version)}}}\n'

    def later(self, make: Callable[..., str], *facts: Any) -> None:
        """Write the line that *make* gives for *facts*, a JSON object without its final brace; service and version come
        behind it.

        It is made and written within 20 ms: what waits for an answer does not wait for the log, and lines that are made
        together and written at once take half the time. Any other line, and the interpreter's end, has those that wait
        written before; who is killed, or blocks the event loop for ever, takes them with him.
        """
        self._waiting.append((make, facts))
        if len(self._waiting) >= _MOST_WAITING:
            self.flush()
            return
        # Not asked for by each line: the answer costs a call of the system.
        if len(self._waiting) > 1 and self._loop is not None and self._loop.is_running():
            return
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        self._loop.call_later(_WRITE_S, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        with self.lock or contextlib.nullcontext():
            waiting, self._waiting = self._waiting, []
            try:
                if waiting:
                    self.stream.write("".join([self._made(make, facts) for make, facts in waiting]))
                super().flush()
                if waiting:
                    self.torn = False
            except Exception:  # noqa: BLE001 - as `emit` has it: who logs must not fail for it
                self.handleError(logging.makeLogRecord({"msg": f"{len(waiting)} lines"}))

    def _made(self, make: Callable[..., str], facts: tuple[Any, ...]) -> str:
        try:
            return make(*facts) + self._end
        except Exception:  # noqa: BLE001 - one that cannot be made is no reason to lose the others
            self.handleError(logging.makeLogRecord({"msg": f"a line of {make.__module__}"}))
            return ""

    def forget(self) -> None:
        """Leave what waits to another process, from which this one was forked."""
        self._waiting, self._loop = [], None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say so on standard error, as logging does; and remember that a line may have been broken off."""
        self.torn = True
        super().handleError(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*'s line behind those that wait."""
        if self._waiting:
            self.flush()
        super().emit(record)


def _forget() -> None:
    for handler in logging.root.handlers:
        if isinstance(handler, Lines):
            handler.forget()


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def undisturbed() -> Iterator[bool]:
    """A block for whose length no thread writes a line of the log, for who writes to standard output past it; what
    waits is written before. Gives whether the last line was broken off, as by a full disk.
    """
    with contextlib.ExitStack() as stack:
        ours: list[Lines] = []
        for handler in logging.root.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.lock is not None:
                stack.enter_context(handler.lock)
                handler.flush()
                if isinstance(handler, Lines):
                    ours.append(handler)
        yield any(handler.torn for handler in ours)
        for handler in ours:
            handler.torn = False


def lines_of(logger: logging.Logger) -> Lines | None:
    """Where *logger* may write lines of JSON that it makes itself.

    ``None`` where they would not be what everybody expects: another format, or a handler or filter that somebody has
    added and that is to see every record.
    """
    handlers = logging.root.handlers
    if len(handlers) != 1 or logger.handlers or logger.filters or not logger.propagate:
        return None
    (output,) = handlers
    return output if isinstance(output, Lines) and len(output.filters) == 1 else None
