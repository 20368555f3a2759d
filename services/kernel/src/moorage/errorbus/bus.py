"""The error bus: `publish` never blocks and never raises; sinks are told by a task of its own.

Equal errors (the same type at the same place) within a window are one report, so that a broken dependency that fails
every request neither floods the log with tracebacks nor the sinks. The log hears of each at once, in `publish`; what
waits for a slow sink is bounded in number, and what did not fit is counted.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol

from prometheus_client import Counter
from structlog.contextvars import get_contextvars

from moorage import trace, who
from moorage.config.loading import ConfigError
from moorage.metrics import Family, Metrics

logger = logging.getLogger("moorage.errors")

_SEND_TIMEOUT: Final = 5.0
_MINUTE: Final = 60.0
_MOST_KNOWN: Final = 1000
_LEAST_CLOSE: Final = 0.1
_LONGEST_SWEEP: Final = 5.0
_FRAMES: Final = 5
_CONTEXT: Final = ("request_id", "trace_id", "span_id", "user_id", "tenant_id")


@dataclass(frozen=True, slots=True)
class Report:
    """One error as sinks are told it.

    ``count`` is how many equal errors it stands for: 1 for the first of its kind, which is told at once; at the end
    of the window another report may follow with those that came after. ``context`` has what is known of the request
    or event: ``request_id``, ``trace_id``, ``user_id``, ``tenant_id``, and what the publisher added.
    """

    error: BaseException
    fingerprint: str
    time: float
    """Seconds since the epoch."""
    count: int
    module: str
    version: str
    environment: str
    context: Mapping[str, object]


class Sink(Protocol):
    """Somebody who is told of errors. Its calls are bounded in time, and a failing one harms no other."""

    @property
    def name(self) -> str:
        """For logs and metrics."""
        ...

    async def send(self, report: Report) -> None:
        """Tell *report*; may raise anything."""
        ...

    async def close(self, seconds: float) -> None:
        """Finish what is under way within *seconds*; called once."""
        ...


@dataclass(slots=True)
class _Known:
    """Errors of one fingerprint in the present window.

    ``first`` keeps the error, and with it the frames that it came through: only where there is somebody to tell.
    """

    until: float
    first: Report | None
    repeated: int = 0


class _Lane:
    """One sink with the reports that wait for it: a slow one holds up no other."""

    def __init__(self, sink: Sink, longest: int, send_timeout: float, reports: Family[Counter]) -> None:
        self.sink = sink
        self._longest = longest
        self._send_timeout = send_timeout
        self._reports = reports
        self._waiting: deque[Report] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def offer(self, report: Report) -> bool:
        """Let *report* wait; False: there is no room."""
        if len(self._waiting) >= self._longest or self._closing:
            return False
        self._waiting.append(report)
        return True

    def open(self) -> None:
        self._task = asyncio.create_task(self._work(), name=f"errors-to-{self.sink.name}")

    def wake(self) -> None:
        self._wake.set()

    async def close(self, deadline: float) -> int:
        """Tell what waits, until *deadline* (monotonic), and let the sink go; gives how many were not told."""
        self._closing = True
        if self._task is not None:
            self._wake.set()
            await asyncio.wait({self._task}, timeout=max(0.0, deadline - time.monotonic()))
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        left = max(_LEAST_CLOSE, deadline - time.monotonic())
        try:
            async with asyncio.timeout(left):
                await self.sink.close(left)
        except Exception as exc:  # noqa: BLE001 - it is the last thing that it is asked for
            logger.warning("a sink of errors did not close", extra={"sink": self.sink.name, "why": _why(exc)})
        return len(self._waiting)

    async def _work(self) -> None:
        while True:
            while self._waiting:
                await self._tell(self._waiting.popleft())
            if self._closing:
                return
            self._wake.clear()
            await self._wake.wait()

    async def _tell(self, report: Report) -> None:
        try:
            async with asyncio.timeout(self._send_timeout):
                await self.sink.send(report)
        except Exception as exc:  # noqa: BLE001 - whatever ails one sink must not end its lane
            self._reports.labels("failed").inc()
            logger.warning("a sink of errors failed", extra={"sink": self.sink.name, "why": _why(exc)})
        else:
            self._reports.labels("sent").inc()


class ErrorBus:
    """One process's bus.

    Args:
        queue: reports that may wait, for each sink.
        window: seconds in which equal errors are one report.
        rate: reports in a minute, of all kinds together.
        send_timeout: seconds that a sink has for one report.
    """

    def __init__(
        self,
        *,
        module: str,
        version: str,
        environment: str,
        metrics: Metrics,
        queue: int = 1000,
        window: float = 60.0,
        rate: int = 60,
        send_timeout: float = _SEND_TIMEOUT,
    ) -> None:
        self.window, self.rate = window, rate
        self._about = {"module": module, "version": version, "environment": environment}
        self._reports = metrics.counter(
            "error_reports", "Reports of errors, by what became of them.", ("outcome",)
        )
        self._queue, self._send_timeout = queue, send_timeout
        self._lanes: list[_Lane] = []
        self._known: dict[str, _Known] = {}
        self._told: deque[float] = deque()
        self._lock = threading.Lock()  # errors may come from threads; held for microseconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._closed = False
        self.dropped = 0

    def add(self, sink: Sink) -> None:
        """Tell *sink*, too; before `open`."""
        self._lanes.append(_Lane(sink, self._queue, self._send_timeout, self._reports))

    def publish(self, error: BaseException, **context: object) -> str:
        """Report *error*; returns at once, from any thread, whatever state the sinks are in, and never raises.

        Args:
            context: what is known besides the logging context, such as ``user_id``, ``trace_id``, ``module``,
                ``where``; ``None`` counts as not known.

        Returns:
            its fingerprint: equal for errors of one type that come from the same place.
        """
        try:
            known = trace.log_fields(None, "", who.log_fields(None, "", get_contextvars()))
            around: dict[str, object] = {name: known[name] for name in _CONTEXT if name in known}
            around |= {name: value for name, value in context.items() if value is not None}
            mark = fingerprint(error)
            with self._lock:
                first = self._take(error, mark, around)
            _log(error, mark, around, first=first)
        except Exception:  # somebody's __str__, a full memory: whoever reports must not fail for it
            with contextlib.suppress(Exception):
                logger.exception("an error could not be reported")
            return ""
        return mark

    def _take(self, error: BaseException, mark: str, around: Mapping[str, object]) -> bool:
        """Whether it is the first of its kind in the window; then it is offered to the sinks."""
        now = time.monotonic()
        entry = self._known.get(mark)
        if entry is not None and now < entry.until:
            entry.repeated += 1
            self._reports.labels("repeated").inc()
            return False
        if entry is not None:
            self._end(entry)
        report = Report(
            error=error,
            fingerprint=mark,
            time=time.time(),
            count=1,
            module=str(around.get("module", self._about["module"])),
            version=self._about["version"],
            environment=self._about["environment"],
            context={name: value for name, value in around.items() if name != "module"},
        )
        self._remember(mark, _Known(now + self.window, report if self._lanes else None))
        self._offer(report)
        return True

    def _remember(self, mark: str, entry: _Known) -> None:
        if mark not in self._known and len(self._known) >= _MOST_KNOWN:
            self._forget_ended()
            if len(self._known) >= _MOST_KNOWN:
                self._end(self._known.pop(next(iter(self._known))))  # the oldest
        self._known[mark] = entry

    def _forget_ended(self) -> None:
        now = time.monotonic()
        for mark in [mark for mark, entry in self._known.items() if entry.until <= now]:
            self._end(self._known.pop(mark))

    def _end(self, entry: _Known) -> None:
        """Report those that came after the first of a window."""
        if entry.repeated and entry.first is not None:
            repeated, entry.repeated = entry.repeated, 0
            self._offer(dataclasses.replace(entry.first, time=time.time(), count=repeated, context={}))

    def _offer(self, report: Report) -> None:
        """Let the sinks have *report*, if there is room and it is not too many in a minute."""
        if not self._lanes or self._closed:
            return
        now = time.monotonic()
        while self._told and self._told[0] <= now - _MINUTE:
            self._told.popleft()
        if len(self._told) >= self.rate:
            self._drop("limited", 1)
            return
        self._told.append(now)
        self._drop("dropped", [lane.offer(report) for lane in self._lanes].count(False))
        if self._loop is not None:
            for lane in self._lanes:  # also right from the loop's own thread
                self._loop.call_soon_threadsafe(lane.wake)

    def _drop(self, why: str, number: int) -> None:
        if number:
            self.dropped += number
            self._reports.labels(why).inc(number)

    async def open(self) -> None:
        """Begin to tell the sinks; what was published before is told now."""
        if not self._lanes:
            return
        self._loop = asyncio.get_running_loop()
        for lane in self._lanes:
            lane.open()
        self._sweeping = asyncio.create_task(self._sweep(), name="errors-sweep")

    async def close(self, seconds: float = 5.0) -> None:
        """Tell what waits, within *seconds*, and let the sinks go. A second call does nothing.

        Errors that are published later still reach the log.
        """
        if self._closed:
            return
        deadline = time.monotonic() + seconds
        with self._lock:
            for entry in self._known.values():
                self._end(entry)
            self._closed = True
            self._loop = None
        if self._sweeping is not None:
            self._sweeping.cancel()
        left = await asyncio.gather(*(lane.close(deadline) for lane in self._lanes))
        self._drop("dropped", sum(left))

    async def _sweep(self) -> None:
        """Report what came again in a window, once it has ended."""
        while True:
            await asyncio.sleep(min(max(self.window / 4, 0.05), _LONGEST_SWEEP))
            with self._lock:
                self._forget_ended()


def fingerprint(error: BaseException) -> str:
    """16 hex digits that are equal for errors of one type (and one cause's type) from one place in the code.

    The text is no part of it: it often holds an id or a value.
    """
    parts: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        kind = type(link)
        parts += [f"{kind.__module__}.{kind.__qualname__}", *_places(link.__traceback__)]
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _places(trace: TracebackType | None) -> list[str]:
    """The innermost frames: file, function, line."""
    places: deque[str] = deque(maxlen=_FRAMES)
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename}:{code.co_qualname}:{trace.tb_lineno}")
        trace = trace.tb_next
    return list(places)


def _log(error: BaseException, mark: str, context: Mapping[str, Any], *, first: bool) -> None:
    """Write it to the log: the first of a window with its traceback."""
    extra = {name: value for name, value in context.items() if name not in _RESERVED} | {"fingerprint": mark}
    if first:
        logger.error("unexpected error", exc_info=error, extra=extra)
    else:
        logger.error("unexpected error, again", extra={**extra, "error": error})


_RESERVED: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""Names that the standard library's records use; ``module`` is one, and it is the process's own anyway."""


def _why(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"


def sinks_from(dsn: str | None, *, users: bool, release: str, environment: str) -> Sequence[Sink]:
    """The sinks that the settings ask for.

    Raises:
        ConfigError: the DSN is none, or the extra ``moorage[sentry]`` is not installed.
    """
    if dsn is None:
        return ()
    try:
        from moorage.errorbus.sentry import SentrySink  # only where it is configured: 6 MiB
    except ImportError:
        raise ConfigError(
            "errors.sentry_dsn is set, but the Sentry SDK is not installed; install moorage[sentry], or leave it unset"
        ) from None

    return (SentrySink(dsn, users=users, release=release, environment=environment),)
