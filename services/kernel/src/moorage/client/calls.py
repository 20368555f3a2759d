"""One call: tries, pauses between them, and an end before the deadline.

The loop is our own. stamina, which was meant for it, decides by exception whether and when to try again; here that
hangs on the target's budget and breaker, on ``Retry-After`` and on the deadline, so all that would be left for it is
the loop, for 2 MiB, metrics in a registry that nobody scrapes, and jitter added to a pause instead of a pause drawn
at random (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
"""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver
from multidict import CIMultiDict
from yarl import URL

from moorage.client.answers import Answer, TooLarge, read, refusal, retry_after
from moorage.client.breaker import Breaker, Open, Permit
from moorage.client.bulkhead import Bulkhead, Full, RetryBudget
from moorage.client.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from moorage.client.headers import IDEMPOTENCY_HEADER, TIMEOUT_HEADER
from moorage.client.identity import Identity
from moorage.client.observed import Counts
from moorage.client.targets import Places
from moorage.config.settings import Client as ClientSettings
from moorage.scope import Scope
from moorage.tracing import Tracer, inject

log = structlog.get_logger("moorage.client")

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""Methods that may be repeated without harm (RFC 9110, 9.2.2)."""
_TRANSIENT: Final = frozenset({502, 503, 504})
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
_LEAST_LEFT: Final = 0.005
"""Seconds; with less than this, another try would not come back in time."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent. ``path`` is encoded and may have a query; ``template`` is the same without values, for spans."""

    method: str
    template: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None
    retries: int

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does no more than sending it once."""
        return self.method in IDEMPOTENT or any(name.lower() == _KEY for name in self.headers)


_KEY: Final = IDEMPOTENCY_HEADER.lower()


class Target:
    """What this process knows of one module that it calls."""

    def __init__(self, namespace: str, name: str, settings: ClientSettings) -> None:
        self.namespace = namespace
        self.name = name
        self.key = f"{namespace}/{name}"
        self.budget = RetryBudget(settings.retry_ratio)
        self.bulkhead = Bulkhead(most=settings.max_connections, waiting=settings.max_waiting)
        self.breaker = Breaker(
            ratio=settings.breaker_ratio,
            calls=settings.breaker_calls,
            window=settings.breaker_window,
            pause=settings.breaker_pause,
        )


class _Failed(Exception):  # noqa: N818 - it says what became of a try
    """A try that failed; *again*: another one may go better, *after* so many seconds at least."""

    def __init__(self, error: UpstreamError, outcome: str, *, again: bool, after: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.outcome = outcome
        self.again = again
        self.after = after


class Caller:
    """Makes calls; one for each process.

    Args:
        resolver: from a host's name to addresses; ``None``: the system's.
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        places: Places,
        identity: Identity,
        counts: Counts,
        tracer: Tracer,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self.settings = settings
        self._resolver = resolver
        self._places = places
        self._identity = identity
        self._counts = counts
        self.tracer = tracer
        self._session: aiohttp.ClientSession | None = None

    async def call(self, target: Target, request: Request, seconds: float, scope: Scope | None) -> Answer:
        """The good answer to *request*.

        Raises:
            UpstreamError: there is none within *seconds*, or before the deadline of *scope*.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadline = began + seconds
        if scope is not None and scope.deadline is not None:
            deadline = min(deadline, scope.deadline)
        in_flight = self._counts.in_flight.labels(target.key)
        in_flight.inc()
        outcome = "cancelled"
        attempts = _Attempts(self, target, request, deadline, scope)
        try:
            answer = await attempts.run()
            outcome = f"{answer.status // 100}xx"
            return answer
        except _Failed as failed:
            outcome = failed.outcome
            raise failed.error from failed.__cause__
        finally:
            in_flight.dec()
            self._counts.calls.labels(target.key, outcome).inc()
            self._counts.seconds.labels(target.key).observe(loop.time() - began)

    def retried(self, target: Target, request: Request, failed: _Failed, pause: float) -> None:
        """Count and log a retry."""
        self._counts.retries.labels(target.key).inc()
        log.info(
            "calling again",
            target=target.key,
            method=request.method,
            path=request.template,
            reason=failed.error.reason,
            pause_ms=round(pause * 1000),
        )

    async def exchange(
        self, target: Target, request: Request, deadline: float, scope: Scope | None, attempt: int
    ) -> Answer:
        """Send it once and read the answer, whatever its status; raises what aiohttp raises, and `TooLarge`."""
        base = self._places.url(target.namespace, target.name)
        if base is None:
            error = UpstreamUnavailable(target.key, "it is not in the registry of modules (client.registry)")
            raise _Failed(error, "unknown", again=False)
        headers = CIMultiDict(await self._identity.headers(target.key, scope))
        headers.update(request.headers)
        attributes: dict[str, str | int] = {
            "http.request.method": request.method,
            "server.address": target.key,
            "url.template": request.template,
        }
        if attempt:
            attributes["http.request.resend_count"] = attempt
        name = f"{request.method} {request.template}"
        with self.tracer.span(name, kind="client", attributes=attributes) as span:
            inject(headers, span.trace)
            left = deadline - asyncio.get_running_loop().time()
            headers[TIMEOUT_HEADER] = str(max(1, int(left * 1000)))
            async with (
                self._open().request(
                    request.method,
                    URL(base + request.path, encoded=True),
                    data=request.body,
                    headers=headers,
                    allow_redirects=False,  # where to is for the other module to know, and the token is for it alone
                ) as response
            ):
                span.set("http.response.status_code", response.status)
                if response.status >= 500:
                    span.failed(str(response.status))
                body = await read(response, self.settings.max_body)
                return Answer(response.status, response.headers, body)

    def unreachable(self) -> None:
        """Nobody is where the target was thought to be."""
        self._places.failed()

    def _open(self) -> aiohttp.ClientSession:
        """The pool of connections; made by the first call, as many modules make none."""
        if self._session is None:
            connect = self.settings.connect_timeout
            self._session = aiohttp.ClientSession(
                # Places are given out by the bulkhead; here nobody waits.
                connector=aiohttp.TCPConnector(
                    limit=0,
                    limit_per_host=0,
                    ttl_dns_cache=10,
                    keepalive_timeout=30.0,
                    resolver=self._resolver,
                ),
                timeout=aiohttp.ClientTimeout(total=None, connect=connect),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
            # aiohttp repeats by itself what breaks off before an answer: past our budget, and twice the load on a
            # target that resets everything. It has no argument for that; its own test client sets this, too.
            self._session._retry_connection = False
        return self._session

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()


class _Attempts:
    """The tries of one call."""

    def __init__(
        self, caller: Caller, target: Target, request: Request, deadline: float, scope: Scope | None
    ) -> None:
        self._caller = caller
        self._target = target
        self._request = request
        self._deadline = deadline
        self._scope = scope
        self._permit: Permit | None = None
        self._began = 0.0

    async def run(self) -> Answer:
        """Try until there is a good answer; raises `_Failed`."""
        self._target.budget.earn()
        try:
            async with asyncio.timeout_at(self._deadline) as limit:
                return await self._tries()
        except TimeoutError:
            if not limit.expired():
                raise
            self._timed_out()
            error = UpstreamTimeout(self._target.key, "no answer before the deadline")
            raise _Failed(error, "timeout", again=False) from None
        finally:
            if self._permit is not None:
                self._permit.dropped()  # unless it was told already

    async def _tries(self) -> Answer:
        attempt = 0
        while True:
            try:
                return await self._try(attempt)
            except _Failed as failed:
                pause = self._pause(failed, attempt)
                if pause is None:
                    raise
                self._caller.retried(self._target, self._request, failed, pause)
            attempt += 1
            await asyncio.sleep(pause)

    def _pause(self, failed: _Failed, attempt: int) -> float | None:
        """Seconds until the next try; None: it is not tried again."""
        if not failed.again or attempt >= self._request.retries or not self._request.repeatable:
            return None
        most = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)
        pause = max(random.uniform(0, most), failed.after)  # noqa: S311 - spreads load, hides nothing
        if pause + _LEAST_LEFT > self._left() or not self._target.budget.spend():
            return None
        return pause

    async def _try(self, attempt: int) -> Answer:
        target = self._target
        try:
            async with target.bulkhead.place():
                self._check_time()
                self._permit = permit = target.breaker.admit()
                self._began = asyncio.get_running_loop().time()
                answer = await self._exchanged(permit, attempt)
        except Full as exc:
            error = UpstreamUnavailable(target.key, f"too many calls to it: {exc}", retry_after=1)
            raise _Failed(error, "full", again=False) from None
        except Open as exc:
            error = UpstreamUnavailable(target.key, str(exc), retry_after=exc.retry_after)
            raise _Failed(error, "open", again=False) from None
        if answer.status in _TRANSIENT:
            after = retry_after(answer.headers) or 0.0
            raise _Failed(refusal(target.key, answer), "5xx", again=True, after=after)
        if not 200 <= answer.status < 300:
            raise _Failed(refusal(target.key, answer), f"{answer.status // 100}xx", again=False)
        return answer

    async def _exchanged(self, permit: Permit, attempt: int) -> Answer:
        """One exchange, with the breaker told how it went."""
        target = self._target
        try:
            answer = await self._caller.exchange(target, self._request, self._deadline, self._scope, attempt)
        except TooLarge as exc:
            permit.succeeded()
            raise _Failed(
                UpstreamError(target.key, f"its answer is too large: {exc}"), "too_large", again=False
            ) from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            permit.failed()
            self._caller.unreachable()
            raise _Failed(
                UpstreamUnavailable(target.key, f"cannot be reached: {_said(exc)}"), "connect", again=True
            ) from exc
        except (aiohttp.ClientError, OSError) as exc:
            permit.failed()
            raise _Failed(
                UpstreamError(target.key, f"broke off: {_said(exc)}"), "broken", again=True
            ) from exc
        # A bug in one of its handlers (500) does not mean that the others should be left alone.
        (permit.failed if answer.status in _TRANSIENT else permit.succeeded)()
        return answer

    def _timed_out(self) -> None:
        """It is the target's fault only if it had a fair time to answer, and not just what was left of ours."""
        if self._permit is None:
            return
        had = asyncio.get_running_loop().time() - self._began
        if had >= min(self._caller.settings.connect_timeout, self._caller.settings.timeout):
            self._permit.failed()

    def _check_time(self) -> None:
        """The timeout strikes at the next wait only; what cannot come back in time should not be sent."""
        if self._left() <= 0:
            error = UpstreamTimeout(self._target.key, "no time was left to call it")
            raise _Failed(error, "timeout", again=False)

    def _left(self) -> float:
        return self._deadline - asyncio.get_running_loop().time()


def _said(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"[:200] if str(exc) else type(exc).__name__
