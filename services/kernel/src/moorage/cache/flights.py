"""Single-flight: of all who want one result in this process, one works for it and the others wait."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from typing import Final

_leading: ContextVar[frozenset[bytes]] = ContextVar("moorage_cache_leading", default=frozenset())
_ABANDONED: Final = None
_MOST_ROUNDS: Final = 2
"""How often a result is waited for anew that was outdated before it was there."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was computed; ``outdated``: something that it was computed from has changed since it was begun."""

    value: bytes
    outdated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    tags: frozenset[bytes]
    result: asyncio.Future[Result | None]


class Elsewhere(Exception):  # noqa: N818 - it says where the result is being made
    """Another process is at it, and whoever began here did not want to wait for that."""


def apart() -> Context:
    """The current context for work that nobody here waits for: so it cannot wait for itself by way of us."""
    context = copy_context()
    context.run(_leading.set, frozenset())
    return context


class Flights:
    """What is being computed in this process.

    Whoever comes first computes within his own request, so that it has his unit of work, his deadline and his
    trace. If he is cancelled, the next in line begins anew with what is his; nobody else is cancelled with him. An
    exception is everybody's who waits, and is not kept.
    """

    def __init__(self) -> None:
        self._under_way: dict[bytes, _Flight] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._under_way

    def leave(self, keys: Collection[bytes] = (), tags: Collection[bytes] = ()) -> None:
        """Something of *keys* or *tags* has changed: whoever comes from now on joins nobody who began before.

        The store finds that out, too, and for other processes; but not while it is away.
        """
        for key in keys:
            self._under_way.pop(key, None)
        if tags:
            for key in [key for key, flight in self._under_way.items() if not flight.tags.isdisjoint(tags)]:
                del self._under_way[key]

    async def once(
        self, key: bytes, work: Callable[[], Awaitable[Result]], tags: Collection[bytes] = ()
    ) -> bytes:
        """What *work* makes, or what another's makes who is at it already.

        Whoever waited for an outdated result may have come after the change: for him it is made anew.

        Raises:
            RuntimeError: *work* asks for its own result, and would wait for itself.
        """
        rounds = 0
        while True:
            if key in _leading.get():
                raise RuntimeError(f"the computation of the cache's entry {key!r} asks for that entry")
            flight = self._under_way.get(key)
            if flight is None:
                return (await self._lead(key, work, frozenset(tags))).value
            try:
                result = await asyncio.shield(flight.result)
            except Elsewhere:
                continue
            if result is _ABANDONED:
                continue
            if not result.outdated or rounds == _MOST_ROUNDS:
                return result.value
            rounds += 1

    async def _lead(
        self, key: bytes, work: Callable[[], Awaitable[Result]], tags: frozenset[bytes]
    ) -> Result:
        future: asyncio.Future[Result | None] = asyncio.get_running_loop().create_future()
        self._under_way[key] = flight = _Flight(tags, future)
        token = _leading.set(_leading.get() | {key})
        try:
            result = await work()
        except Exception as exc:
            future.set_exception(exc)
            future.exception()  # nobody may have waited: that is not worth a warning
            raise
        except BaseException:
            future.set_result(_ABANDONED)
            raise
        else:
            future.set_result(result)
            return result
        finally:
            if self._under_way.get(key) is flight:
                del self._under_way[key]
            _leading.reset(token)
