"""Whether the process lives and is ready: readiness is computed from registered pings."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

Ping = Callable[[], Awaitable[None]]

_PING_TIMEOUT: Final = 2.0
_FRESH: Final = 1.0


class NotReady(Exception):  # noqa: N818 - a ping raises it to say so
    """Raised by a ping whose dependency answers, but cannot be used; the text is shown."""


@dataclass
class Health:
    """The state of one process: what it waits for, what it depends on, whether it is about to stop."""

    draining: bool = False
    started: bool = False
    _pings: dict[str, Ping] = field(default_factory=dict)
    _optional: set[str] = field(default_factory=set)
    _waiting: dict[str, str] = field(default_factory=dict)
    _degraded: dict[str, str] = field(default_factory=dict)
    _last: tuple[float, dict[str, str]] = (0.0, {})

    def register(self, name: str, ping: Ping, *, required: bool = True) -> None:
        """Ask *ping* whenever readiness is asked for; it raises if *name* cannot be used.

        What is not *required* degrades the process when it is away: requests still come.
        """
        self._pings[name] = ping
        if not required:
            self._optional.add(name)
        self._waiting.pop(name, None)

    def degraded(self, name: str, why: str) -> None:
        """Show that *name*, which requests can do without, does not work; an empty *why*: it does again."""
        if why:
            self._degraded[name] = why
        else:
            self._degraded.pop(name, None)

    def waiting(self, name: str, why: str) -> None:
        """Show that the start waits for *name*; an empty *why*: no longer."""
        if why:
            self._waiting[name] = why
        else:
            self._waiting.pop(name, None)

    async def check(self) -> dict[str, str]:
        """The problem of each dependency; empty texts for those that are well. A second old at most."""
        checked, problems = self._last
        if time.monotonic() - checked > _FRESH:
            answers = await asyncio.gather(*(_ask(ping) for ping in self._pings.values()))
            problems = dict(zip(self._pings, answers, strict=True))
            self._last = (time.monotonic(), problems)
        return {**problems, **self._degraded, **self._waiting}

    async def ready(self) -> tuple[bool, dict[str, str]]:
        """Whether requests should come here, and `check`'s answer."""
        problems = await self.check()
        tolerated = self._optional | (self._degraded.keys() - self._pings.keys())
        down = any(problem for name, problem in problems.items() if name not in tolerated)
        return self.started and not self.draining and not down, problems


async def _ask(ping: Ping) -> str:
    try:
        async with asyncio.timeout(_PING_TIMEOUT):
            await ping()
    except TimeoutError:
        return f"no answer within {_PING_TIMEOUT:g} s"
    except NotReady as exc:
        return str(exc)
    except Exception as exc:  # noqa: BLE001 - a ping may fail in any way, and each means the same
        return f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"
    return ""
