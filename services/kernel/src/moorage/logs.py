"""Logs: JSON lines for machines, colours for people; never a secret, never a line that a stranger has written.

Everything that is logged in this process, by structlog or by the standard library, takes the same way: what the
context knows is added, `moorage.redaction` hides and shortens, lines that only repeat are counted instead of written.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import ExcInfo, Processor

from moorage import redaction, trace, who
from moorage.config.settings import Settings
from moorage.redaction import HIDDEN as HIDDEN

Event = MutableMapping[str, Any]

_WRITE_S: Final = 0.02
_MOST_WAITING: Final = 64
REPEAT_WINDOW: Final = 10.0
"""Seconds in which identical lines are counted."""
_NOISY: Final = (
    "asyncio",
    "aiohttp.access",
    "sqlalchemy",
    "moorage.database.engine.Connections",  # SQLAlchemy names a pool's logger after the pool's class
    "aiokafka",
    "kafka",
    "opentelemetry",
    "urllib3",
)
"""Libraries that are chatty at debug, about things that are not the developer's."""
_NOT_COMPARED: Final = frozenset(
    {"time", "request_id", "trace_id", "span_id", "_record", "_from_structlog", "_logger", "_name"}
)
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS_BUT_LINES: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_FRAMES: Final = 25
_MAX_TRACEBACK: Final = 32 * 1024


def configure(settings: Settings, *, service: str, for_good: bool = True) -> None:
    """Send everything that is logged in this process to standard output.

    Each line has time, level, message (``event``), logger, service and version; within a request also
    request_id, trace_id, span_id, user_id and tenant_id (`moorage.who`, `structlog.contextvars`).
    """
    form = form_of(settings)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        who.log_fields,
        trace.log_fields,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _service(service, settings.moorage.version),
        redact,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=for_good,
    )
    handler: logging.StreamHandler[TextIO]
    if form == "json":
        handler = Lines(sys.stdout, service=service, version=settings.moorage.version)
    else:
        handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(form)],
        )
    )
    handler.addFilter(Repeats(settings.logging.repeats))
    root = logging.getLogger()
    for before in root.handlers:
        with contextlib.suppress(Exception):  # whose stream may be closed
            before.flush()
    root.handlers[:] = [handler]
    set_level(settings)


class Lines(logging.StreamHandler[TextIO]):
    """Where lines of JSON go; also lines that somebody has made himself, see `lines`."""

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
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if len(self._waiting) == 1 or loop is not self._loop:
            self._loop = loop
            loop.call_later(_WRITE_S, self.flush)

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


def lines(logger: logging.Logger) -> Lines | None:
    """Where *logger* may write lines of JSON that it makes itself.

    ``None`` where they would not be what everybody expects: another format, or a handler or filter that somebody has
    added and that is to see every record.
    """
    handlers = logging.root.handlers
    if len(handlers) != 1 or logger.handlers or logger.filters or not logger.propagate:
        return None
    (output,) = handlers
    return output if isinstance(output, Lines) and len(output.filters) == 1 else None


def form_of(settings: Settings) -> Literal["json", "console"]:
    """In which form this process writes lines."""
    if settings.logging.format is not None:
        return settings.logging.format
    return "console" if settings.development or sys.stdout.isatty() else "json"


def set_level(settings: Settings) -> None:
    """Show what *settings* ask for, from the next line on."""
    level: str = settings.logging.level
    if settings.development and "level" not in settings.logging.model_fields_set:
        level = "debug"
    number = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    root.setLevel(number)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    for handler in root.handlers:
        for each in handler.filters:
            if isinstance(each, Repeats):
                each.most = settings.logging.repeats


def redact(_: object, __: str, event: Event) -> Event:
    """Hide values whose type or name says that they are secret, and cut what is huge."""
    try:
        redaction.mask(event)
    except Exception as exc:  # noqa: BLE001 - somebody's __str__; whoever logs must not fail for it
        for name in event.keys() - redaction.OURS - {"event"}:
            event[name] = f"(not shown: {type(exc).__name__})"
    return event


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


def _service(service: str, version: str) -> Processor:
    def add(_: object, __: str, event: Event) -> Event:
        event.setdefault("service", service)
        event.setdefault("version", version)
        return event

    return add


def _rendering(form: str) -> list[Processor]:
    if form == "json":
        return [
            # Without local variables: they hold bodies, tokens and passwords.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=_MAX_FRAMES)
            ),
            _masked_exception,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(serializer=_json),
        ]
    return [
        _on_one_line,
        structlog.dev.ConsoleRenderer(
            timestamp_key="time",
            colors=sys.stdout.isatty(),
            # Not rich's, the default where it is installed: it prints local variables, and takes seconds for them in
            # the event loop.
            exception_formatter=_traceback,
        ),
    ]


def _masked_exception(_: object, __: str, event: Event) -> Event:
    """The text of an exception may quote what it is about: an address with its password, a statement's values."""
    for name in ("exception", "stack"):
        if name in event:
            event[name] = redaction.shown(event[name])
    return event


def _json(event: Event, **options: Any) -> str:
    try:
        return json.dumps(event, allow_nan=False, **options)
    except ValueError:  # NaN and infinity, which JSON has not
        return json.dumps({name: _finite(value) for name, value in event.items()}, **options)


def _finite(value: object) -> object:
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    return str(value)


def _on_one_line(_: object, __: str, event: Event) -> Event:
    """Neutralise line ends and escape sequences: a value must not be able to write lines of its own, nor to the
    terminal.
    """
    for name, value in event.items():
        if isinstance(value, str):
            if name == "stack":
                event[name] = _CONTROLS_BUT_LINES.sub(_escaped, value)
            elif _CONTROLS.search(value):
                event[name] = on_one_line(value)
    return event


def on_one_line(text: str) -> str:
    """*text* with its line ends and escape sequences written out, as a terminal may show it whoever wrote it."""
    return _CONTROLS.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    lines = "".join(traceback.format_exception(*exc_info, limit=-_MAX_FRAMES))
    stream.write("\n" + _CONTROLS_BUT_LINES.sub(_escaped, redaction.text(lines, _MAX_TRACEBACK)).rstrip("\n"))
