"""A queue of keys: each key is worked on by one worker at a time, events coalesce, failures come back later.

The shape is that of client-go's workqueue: a key that is added while it is worked on is worked on once more after.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from moorage_operator.reconcile.store import Key

FIRST_DELAY: Final = 0.5
MAX_DELAY: Final = 60.0
"""Seconds until a key that failed is tried again, doubled with each failure in a row."""


@dataclass(slots=True)
class _Later:
    due: float
    handle: asyncio.TimerHandle


class KeyedQueue:
    """Keys to reconcile. Not thread-safe: all of it happens in one event loop."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._ready: OrderedDict[Key, None] = OrderedDict()
        self._active: set[Key] = set()
        self._dirty: set[Key] = set()
        self._later: dict[Key, _Later] = {}
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()
        self._closed = False
        self._jitter = jitter

    def __len__(self) -> int:
        return len(self._ready) + len(self._dirty)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being worked on (what is due later does not count)."""
        return not (self._ready or self._active or self._dirty)

    def add(self, key: Key) -> None:
        """Work on *key* as soon as possible; a delayed turn of it is given up."""
        later = self._later.pop(key, None)
        if later is not None:
            later.handle.cancel()
        if key in self._active:
            self._dirty.add(key)
        elif key not in self._ready:
            self._ready[key] = None
            self._wake.set()

    def add_later(self, key: Key, delay: float) -> None:
        """Work on *key* in *delay* seconds, or earlier if it is due earlier already."""
        if key in self._ready or key in self._dirty:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        known = self._later.get(key)
        if known is not None:
            if known.due <= due:
                return
            known.handle.cancel()
        self._later[key] = _Later(due, loop.call_later(delay, self.add, key))

    def failed(self, key: Key, at_least: float = 0.0) -> float:
        """Bring *key* back after a delay that grows with each failure in a row; returns the delay."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay: float = min(FIRST_DELAY * 2.0 ** min(count, 16), MAX_DELAY)
        delay = max(delay * (0.75 + self._jitter() / 2), at_least)
        self.add_later(key, delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """Forget the failures of *key*."""
        self._failures.pop(key, None)

    async def next(self) -> Key | None:
        """The next key, which the caller has to give back with `done`; ``None``: the queue is closed."""
        while not self._closed:
            if self._ready:
                key, _ = self._ready.popitem(last=False)
                self._active.add(key)
                return key
            self._wake.clear()
            await self._wake.wait()
        return None

    def done(self, key: Key) -> None:
        """End the turn of *key*; if it was added meanwhile, it gets another."""
        self._active.discard(key)
        if key in self._dirty:
            self._dirty.discard(key)
            self._ready[key] = None
            self._wake.set()

    def close(self) -> None:
        """Give out no more keys. What is being worked on goes on to its end."""
        self._closed = True
        for later in self._later.values():
            later.handle.cancel()
        self._later.clear()
        self._wake.set()
