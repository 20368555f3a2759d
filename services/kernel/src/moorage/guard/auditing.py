"""Recording requests of rules with `audit`: what an entry says, when it is stored, and what happens if it cannot be.

One piece for all hosts. The guard notes an `Attempt` with the facts of a request that meets such a rule; other requests
have none and pay for a comparison with ``None``. A host, for each that has one,

- asks `begin` when the guard has let it through, and does nothing for it if that raises;
- asks `answered` before the head of an answer goes out, and sends the error that it raises instead;
- asks `refused` in the place of `answered` for an error, and sends the error that it returns;
- asks `gone` when there is nobody left to answer.

An entry is stored before the client hears of the answer. What cannot be stored is kept, up to a bound, and stored when
the trail works again; till then requests of rules with ``audit: all`` are refused.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from moorage import redaction
from moorage.audit.entry import Entry
from moorage.audit.trail import Trail
from moorage.errors import AppError, Unavailable
from moorage.guard.decision import Attempt, RequestFacts
from moorage.guard.identity import ModuleCaller, User
from moorage.health import Health, NotReady
from moorage.ids import uuid7
from moorage.logs.rendering import on_one_line
from moorage.metrics import Metrics

MAX_TEXT: Final = 512
"""Characters of what a client chooses: path, id of the resource, user agent."""
MAX_OWED: Final = 1000
"""Entries that are kept while they cannot be stored; of more, the first ones."""
RETRY_S: Final = 1.0
"""A trail that does not work is tried again after so long, and not by each request."""
CLIENT_GONE: Final = 499
"""The status of a request whose client did not wait; nginx coined it."""
_FIRST_ERROR: Final = 400
_DENIED: Final = frozenset({401, 403})
_LIMITED: Final = 429
_UNCOUNTED: Final = "limits_unavailable"

logger = logging.getLogger("moorage.guard")


@dataclass(frozen=True, slots=True, eq=False)
class _Owed:
    """An entry that is not stored yet; *admitted*: of a request that the guard let through."""

    entry: Entry
    admitted: bool


class Auditing:
    """The record of one process.

    Args:
        timeout: longest wait for the trail, in seconds.
    """

    def __init__(self, trail: Trail, metrics: Metrics, *, timeout: float) -> None:
        self._trail = trail
        self._timeout = timeout
        self._stored = metrics.counter("audit_entries", "Entries of the audit record, stored.", ("outcome",))
        self._failures = metrics.counter(
            "audit_failed", "Entries that could not be stored when they were due."
        ).labels()
        self._works: bool | None = None  # nobody knows before the first try
        self._lost = metrics.counter("audit_lost", "Entries that will never be stored.").labels()
        metrics.gauge_function(
            "audit_broken",
            "1 while the audit record is known not to work, else 0.",
            lambda: float(self._works is False),
        )
        self._storing: set[asyncio.Task[bool]] = set()
        self._owed: deque[_Owed] = deque()
        self._why = ""
        self._next_try = 0.0
        self._trying = asyncio.Lock()

    @asynccontextmanager
    async def opened(self, health: Health) -> AsyncIterator[None]:
        """For the length of the block; then what is owed is tried a last time."""
        health.register("audit", self._working, required=False)
        try:
            yield
        finally:
            try:
                if self._storing:
                    await asyncio.wait(self._storing, timeout=self._timeout)
                if self._owed:
                    self._next_try = 0.0
                    with suppress(Exception):
                        await self._recover()
            finally:
                left = len(self._owed) + len(self._storing)
                if left:
                    self._lost.inc(left)
                    logger.error("audit entries are lost", extra={"entries": left, "error": self._why})
                await self._trail.close()

    async def begin(self, facts: RequestFacts) -> None:
        """Note that the guard has let the request through.

        Raises:
            Unavailable: ``audit_unavailable``, its rule has ``audit: all``, and the trail does not work.
        """
        attempt = facts.attempt
        if attempt is None:
            return
        attempt.admitted = True
        if self._works or attempt.rule.audit != "all":
            return
        try:
            await self._recover()
        except Exception as exc:
            attempt.done = True  # nothing was done that could be recorded
            raise Unavailable(
                "This cannot be recorded at the moment, so it is not done.",
                code="audit_unavailable",
                retry_after=5,
                reason=_said(exc),
            ) from exc

    async def answered(self, facts: RequestFacts, status: int, code: str | None = None) -> None:
        """Record the answer that is about to be given, if its rule wants that; once for a request.

        Args:
            code: that of the error, if it is one.

        Raises:
            Unavailable: ``audit_unavailable``, it cannot be recorded, and must not be given.
        """
        attempt = facts.attempt
        if attempt is None or attempt.done:
            return
        attempt.done = True
        if not _wanted(attempt, status, code):
            return
        owed = _Owed(_entry(facts, attempt, status, code), attempt.admitted)
        storing = asyncio.create_task(self._record(owed))
        self._storing.add(storing)
        storing.add_done_callback(self._storing.discard)
        # A client that leaves now cancels the request, not its entry.
        if not await asyncio.shield(storing) and attempt.admitted and status not in _DENIED:
            raise Unavailable(
                "This could not be recorded, so it is not answered. It may have been done.",
                code="audit_unavailable",
            )

    async def refused(self, facts: RequestFacts, error: AppError) -> AppError:
        """Record *error* as the answer; what to answer: *error*, or why it must not be given."""
        try:
            await self.answered(facts, error.status, error.code)
        except Unavailable as unrecorded:
            return unrecorded
        return error

    async def gone(self, facts: RequestFacts) -> None:
        """Record that the client went before there was an answer."""
        with suppress(Unavailable):
            await self.answered(facts, CLIENT_GONE)

    async def _record(self, owed: "_Owed") -> bool:
        """Whether its entry is stored; if not, it is owed."""
        entry = owed.entry
        try:
            if not self._works:
                await self._recover()
            await self._store(entry)
        except Exception as exc:  # noqa: BLE001 - a trail may fail in any way, and each means the same
            self._failures.inc()
            self._works, self._why = False, _said(exc)
            self._owe(owed)
            logger.error(
                "audit entry not stored",
                extra={"error": self._why, "action": entry.action, "outcome": entry.metadata["outcome"]},
            )
            return False
        return True

    def _owe(self, owed: "_Owed") -> None:
        """Keep it, up to a bound: what was done before what was refused, which any stranger can have many of."""
        if len(self._owed) >= MAX_OWED:
            self._lost.inc()
            refused = (
                next((each for each in self._owed if not each.admitted), None) if owed.admitted else None
            )
            if refused is None:
                return
            self._owed.remove(refused)
        self._owed.append(owed)

    async def _store(self, entry: Entry) -> None:
        async with asyncio.timeout(self._timeout):
            await self._trail.record(entry)
        self._stored.labels(entry.metadata["outcome"]).inc()

    async def _recover(self) -> None:
        """Try the trail, with what is owed; raises whatever it does, for a second without trying."""
        async with self._trying:
            if self._works:
                return
            now = time.monotonic()
            if now < self._next_try:
                raise NotReady(self._why)
            self._next_try = now + RETRY_S
            try:
                async with asyncio.timeout(self._timeout):
                    await self._trail.ping()
                    while self._owed:
                        first = self._owed[0]
                        await self._store(first.entry)
                        if (
                            self._owed and self._owed[0] is first
                        ):  # another may have taken its place meanwhile
                            self._owed.popleft()
            except asyncio.CancelledError:
                self._next_try = 0.0  # that says nothing about the trail
                raise
            except Exception as exc:
                # From now on: whoever waited behind this try is not to wait for one of his own.
                self._next_try = time.monotonic() + RETRY_S
                self._works, self._why = False, _said(exc)
                raise
            self._works, self._next_try = True, 0.0

    async def _working(self) -> None:
        """For readiness, which so also stores what is owed where no request comes."""
        if not self._works:
            await self._recover()


def _said(exc: Exception) -> str:
    return str(exc) if isinstance(exc, NotReady) else f"{type(exc).__name__}: {exc}"


def _wanted(attempt: Attempt, status: int, code: str | None) -> bool:
    if not attempt.admitted and (status == _LIMITED or code == _UNCOUNTED):
        return False  # of the guard's limits: who sends too much must not fill the record as well
    return attempt.rule.audit == "all" or status >= _FIRST_ERROR


def _entry(facts: RequestFacts, attempt: Attempt, status: int, code: str | None) -> Entry:
    rule, caller, document = attempt.rule, attempt.caller, attempt.policy.document
    user = caller if isinstance(caller, User) else None
    metadata = {
        "method": _plain(facts.method, 32),
        "path": _plain(redaction.request_path(facts.target, rule.path)),
        "rule": rule.name,
        "status": str(status),
        "outcome": _outcome(status),
    }
    if code is not None:
        metadata["code"] = _plain(code)
    if user is not None and user.tenant_id is not None:
        metadata["tenant"] = _plain(user.tenant_id)
    if isinstance(caller, ModuleCaller):
        metadata["module"] = f"{caller.namespace}/{caller.name}"
    return Entry(
        id=uuid7(),
        timestamp=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        user_id=str(user.id) if user is not None else "",
        action=rule.permission or f"{document.module}.{rule.name}",
        resource=f"{document.namespace}/{document.module}{rule.path}",
        resource_id=_resource_id(attempt),
        ip_address=_plain(facts.client.address or ""),
        user_agent=_plain(facts.headers.get("User-Agent", "")),
        request_id=facts.request_id,
        metadata=metadata,
    )


def _outcome(status: int) -> str:
    if status < _FIRST_ERROR:
        return "success"
    return "denied" if status in _DENIED else "failed"


def _resource_id(attempt: Attempt) -> str:
    if not attempt.params:
        return ""
    name, value = list(attempt.params.items())[-1]
    return redaction.HIDDEN if redaction.is_secret(name) else _plain(value)


def _plain(text: str, most: int = MAX_TEXT) -> str:
    """*text* as it may be kept for ever: bounded, on one line, without what looks like a token."""
    whole = (
        text[:most].encode("utf-8", "replace").decode()
    )  # aiohttp keeps bytes that are not UTF-8 as surrogates
    return on_one_line(redaction.text(whole, most))[:most]
