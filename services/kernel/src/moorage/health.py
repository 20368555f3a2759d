"""Whether the process lives and is ready: readiness is computed from registered pings."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from moorage import redaction

Ping = Callable[[], Awaitable[None]]

_PING_TIMEOUT: Final = 2.0
_FRESH: Final = 1.0
_LONGEST_TEXT: Final = 500


class NotReady(Exception):  # noqa: N818 - a ping raises it to say so
    """Raised by a ping whose dependency answers, but cannot be used; the text is shown."""


State = Literal["ok", "degraded", "waiting", "failed"]


@dataclass
class Dependency:
    """What is known of one dependency.

    ``waiting``: the start waits for it; ``degraded``: it does not work, but requests can do without; ``failed``: it
    does not work, and no request should come. ``since`` is when that began, ``error`` why; ``last_error`` is the most
    recent error, which stays when it is well again. Times are seconds since the epoch.
    """

    state: State
    since: float
    error: str = ""
    last_error: str = ""
    last_error_at: float | None = None


@dataclass
class Health:
    """The state of one process: what it waits for, what it depends on, whether it is about to stop."""

    draining: bool = False
    started: bool = False
    dependencies: dict[str, Dependency] = field(default_factory=dict)
    """As of the last `check`."""
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
        elif self._degraded.pop(name, None) is not None and name not in self._pings:
            self._note(name, "ok", "")

    def waiting(self, name: str, why: str) -> None:
        """Show that the start waits for *name*; an empty *why*: no longer."""
        if why:
            self._waiting[name] = why
            self._note(name, "waiting", why)
        elif self._waiting.pop(name, None) is not None:
            self._note(name, "ok", "")

    async def check(self) -> dict[str, str]:
        """The problem of each dependency; empty texts for those that are well. A second old at most."""
        checked, problems = self._last
        if time.monotonic() - checked > _FRESH:
            asked = dict(self._pings)  # a port that opens meanwhile adds its own
            answers = await asyncio.gather(*(_ask(ping) for ping in asked.values()))
            problems = dict(zip(asked, answers, strict=True))
            self._last = (time.monotonic(), problems)
        found = {**problems, **self._degraded, **self._waiting}
        for name, problem in found.items():
            self._note(name, self._state(name, problem), problem)
        return found

    async def ready(self) -> tuple[bool, dict[str, str]]:
        """Whether requests should come here, and `check`'s answer."""
        problems = await self.check()
        down = any(self._state(name, problem) in ("waiting", "failed") for name, problem in problems.items())
        return self.started and not self.draining and not down, problems

    def _state(self, name: str, problem: str) -> State:
        if not problem:
            return "ok"
        if name in self._waiting:
            return "waiting"
        tolerated = name in self._optional or name not in self._pings
        return "degraded" if tolerated else "failed"

    def _note(self, name: str, state: State, problem: str) -> None:
        now = time.time()
        known = self.dependencies.get(name)
        if known is None:
            known = self.dependencies[name] = Dependency(state, now)
        elif known.state != state:
            known.state, known.since = state, now
        known.error = problem
        if problem:
            known.last_error, known.last_error_at = problem, now


async def _ask(ping: Ping) -> str:
    try:
        async with asyncio.timeout(_PING_TIMEOUT):
            await ping()
    except TimeoutError:
        return f"no answer within {_PING_TIMEOUT:g} s"
    except NotReady as exc:
        return str(exc)
    except Exception as exc:  # noqa: BLE001 - a ping may fail in any way, and each means the same
        return redaction.text(f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}", _LONGEST_TEXT)
    return ""
