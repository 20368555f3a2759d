"""The keys that issuers publish, as one guard has them: fetched regularly, and on sight of a name that is not known.

- **Regularly**, so that a key that its issuer withdrew ends. If that fails, the keys that were fetched last count on.
- **On demand**, for a request whose token names an unknown key. All that come meanwhile wait for the same fetch, and
  the next one of this kind begins `WINDOW_S` later at the earliest, failed or not: names that are made up cost no more.

A regular fetch does not take up the window of those on demand: a key that is published a moment after one would be
known half a minute late. The other way round nothing is asked twice: a fetch on demand puts the next regular one off.
"""

import asyncio
import datetime
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import aiohttp

from moorage.guard.jwks import KeySet, KeySetError, read_keys
from moorage.guard.jwks_client import FetchError, fetch
from moorage.guard.policy import KeySource
from moorage.guard.sealing import elapsed
from moorage.guard.snapshot import Fetched, Policy
from moorage.guard.tokens import Wanted
from moorage.metrics import Metrics

logger = logging.getLogger("moorage.guard")

WINDOW_S: Final = 30.0
"""Seconds between two fetches on demand."""
WAIT_S: Final = 4.0
"""Seconds that a request waits at most: a little more than one fetch may take."""
REFRESH_S: Final = 300.0
"""Seconds between two regular fetches, if nothing else is set."""
_FIRST_PAUSE_S: Final = 2.0
"""Seconds until a source without any key is tried again; twice as many each time, up to `WINDOW_S`."""
_SPREAD: Final = 0.1
"""Part of them by which each pause is shorter or longer, so that processes that began together do not stay together."""

_EXPECTED: Final = (FetchError, KeySetError, aiohttp.ClientError, OSError, TimeoutError, ValueError)


class Enforcer(Protocol):
    """What a key ring needs of a guard."""

    @property
    def policy(self) -> Policy | None:
        """The policy in force."""
        ...

    def keys(self, fetched: Fetched) -> None:
        """Let the keys in *fetched* count, and no other fetched ones."""
        ...


@dataclass
class _Place:
    """One source: times are those of the clock that only rises."""

    flight: asyncio.Task[None] | None = None
    demanded: float = float("-inf")
    due: float = float("-inf")
    failures: int = 0
    fetched_at: str | None = None
    error: str | None = None


class Keyring:
    """Follows the key sources of one guard's policy, whichever they are at the moment.

    Args:
        refresh: seconds between two regular fetches of a source.
        alone: never wait for keys to be ready.
        degraded: told what does not work at the moment; an empty text: all does.
        get: gives the bytes at an address.
        clock: seconds since the epoch, for what is shown.
        rising: seconds that only rise; windows and pauses are told by these alone.
        chance: gives numbers from 0 to 1, for pauses.
    """

    def __init__(
        self,
        guard: Enforcer,
        *,
        metrics: Metrics,
        refresh: float = REFRESH_S,
        alone: bool = False,
        degraded: Callable[[str], object] = lambda _: None,
        get: Callable[[str], Awaitable[bytes]] = fetch,
        clock: Callable[[], float] = time.time,
        rising: Callable[[], float] = elapsed,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._guard = guard
        self._refresh = refresh
        self._degraded = degraded
        self._get = get
        self._clock = clock
        self._rising = rising
        self._chance = chance
        self._places: dict[KeySource, _Place] = {}
        self._flights: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._complete = alone
        self._fetches = metrics.counter(
            "guard_key_fetches", "Fetches of an issuer's keys, by what came of them.", ("result",)
        )
        self.changed()

    # ---- asked by the guard

    def changed(self) -> None:
        """Follow the sources of the policy that is in force now."""
        policy = self._guard.policy
        sources = policy.sources if policy is not None else ()
        if sources != tuple(self._places):
            self._places = {source: self._places.get(source) or _Place() for source in sources}
            self._wake.set()
            self._tell()
        self._complete = self._complete or (policy is not None and not self._without_keys())

    @property
    def waiting(self) -> str:
        """Why the process is not ready yet; empty: it is, and stays so once every issuer had a key."""
        if self._complete:
            return ""
        return "; ".join(
            f"no keys of {source.issuer} yet{f': {place.error}' if place.error else ''}"
            for source, place in self._without_keys().items()
        )

    async def seek(self, wanted: Wanted) -> bool:
        """Wait, `WAIT_S` at most, for a fetch that may bring a key; False: there was none to wait for.

        The fetch belongs to no request: it goes on when who waits for it goes away.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + WAIT_S
        waited = False
        # Twice: a regular fetch that was under way may have been answered before the key was published.
        for _ in range(2):
            flight = self._on_demand(wanted.source)
            if flight is None:
                break
            waited = True
            await asyncio.wait({flight}, timeout=max(until - loop.time(), 0))
            if not flight.done() or self._has(wanted):
                break
        return waited

    def status(self) -> list[dict[str, Any]]:
        """The part ``keys`` of the guard's status. Nothing in it is secret."""
        return [
            {
                "issuer": source.issuer,
                "jwks_uri": source.address,
                "kids": sorted(self._kids(source)),
                "fetched_at": place.fetched_at,
                "error": place.error,
            }
            for source, place in self._places.items()
        ]

    # ---- run by the host

    async def run(self) -> None:
        """Fetch what is due, at first and then regularly, until cancelled."""
        try:
            while True:
                self._wake.clear()
                for source, place in self._places.items():
                    if place.flight is None and place.due <= self._rising():
                        self._begin(source, place)
                try:
                    async with asyncio.timeout(self._pause()):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            for flight in self._flights:
                flight.cancel()
            await asyncio.gather(*self._flights, return_exceptions=True)

    def _pause(self) -> float | None:
        """Seconds until something is due; ``None``: nothing will be, unless something ends or changes."""
        times = [place.due for place in self._places.values() if place.flight is None]
        return max(min(times) - self._rising(), 0) if times else None

    # ---- fetching

    def _on_demand(self, source: KeySource) -> asyncio.Task[None] | None:
        """The fetch under way, else one that begins now, else ``None``: it is too early for another."""
        place = self._places.get(source)
        if place is None:
            return None
        if place.flight is not None:
            return place.flight
        if self._rising() - place.demanded < WINDOW_S:
            return None
        place.demanded = self._rising()
        return self._begin(source, place)

    def _begin(self, source: KeySource, place: _Place) -> asyncio.Task[None]:
        flight = asyncio.create_task(self._fly(source, place), name=f"keys of {source.issuer}")
        place.flight = flight
        # The loop itself holds tasks by weak references alone.
        self._flights.add(flight)
        flight.add_done_callback(self._flights.discard)
        return flight

    async def _fly(self, source: KeySource, place: _Place) -> None:
        try:
            keys = read_keys(await self._get(source.address), source.algorithms)
            self._take(source, place, keys)
        except _EXPECTED as exc:
            self._failed(source, place, str(exc) or type(exc).__name__)
        except Exception as exc:
            logger.exception("keys of an issuer")
            self._failed(source, place, f"{type(exc).__name__}: {exc}")
        else:
            self._succeeded(source, place)
        finally:
            place.flight = None
            self._wake.set()

    def _take(self, source: KeySource, place: _Place, keys: KeySet) -> None:
        policy = self._guard.policy
        # Meanwhile another policy or overlay may have come, which trusts the source no longer, or does so again: then
        # there is a later fetch, of what its issuer says by now.
        if policy is None or source not in policy.sources or self._places.get(source) is not place:
            return
        if policy.fetched.get(source) == keys:
            return
        self._guard.keys({**policy.fetched, source: keys})
        logger.info(
            "keys of an issuer in force",
            extra={"issuer": source.issuer, "kids": sorted(self._kids(source))},
        )

    def _succeeded(self, source: KeySource, place: _Place) -> None:
        self._fetches.labels("ok").inc()
        place.due, place.failures = self._rising() + self._spread(self._refresh), 0
        place.fetched_at = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).isoformat(
            timespec="seconds"
        )
        if place.error is not None:
            logger.info("keys of an issuer are fetched again", extra={"issuer": source.issuer})
        place.error = None
        self._tell()

    def _failed(self, source: KeySource, place: _Place, error: str) -> None:
        """Note it; the log has a line only where it did not fail before."""
        self._fetches.labels("failed").inc()
        # Without a key nothing works; with some there is time.
        pause = WINDOW_S if self._kids(source) else min(_FIRST_PAUSE_S * 2**place.failures, WINDOW_S)
        place.due, place.failures = self._rising() + self._spread(pause), min(place.failures + 1, 16)
        if place.error is None:
            logger.warning(
                "keys of an issuer cannot be fetched, those that are known count on",
                extra={"issuer": source.issuer, "jwks_uri": source.address, "error": error},
            )
        place.error = error
        self._tell()

    def _spread(self, pause: float) -> float:
        return pause * (1 + _SPREAD * (2 * self._chance() - 1))

    def _tell(self) -> None:
        self._degraded(
            "; ".join(
                f"keys of {source.issuer}: {place.error}"
                for source, place in self._places.items()
                if place.error is not None
            )
        )

    # ---- what is there

    def _kids(self, source: KeySource) -> set[str]:
        policy = self._guard.policy
        return set(policy.verifier.kids(source.issuer)) if policy is not None else set()

    def _has(self, wanted: Wanted) -> bool:
        return wanted.kid in self._kids(wanted.source)

    def _without_keys(self) -> dict[KeySource, _Place]:
        """The sources whose issuers have no key at all."""
        return {source: place for source, place in self._places.items() if not self._kids(source)}
