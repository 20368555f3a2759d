"""Limits in this process's memory: bounded, the least recently asked for goes first."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from moorage.guard.limits import gcra
from moorage.guard.limits.gcra import Charge, Verdict

_SWEPT: Final = 2
"""Old keys that are looked at for each new one: so memory follows the load down again."""


class MemoryBuckets:
    """The backend; nothing in it waits.

    Users, addresses and rules are kept apart, so that a flood of addresses cannot push out what is known of users.

    Args:
        max_keys: how many of each are kept. Whose count is forgotten has his whole limit again.
        clock: seconds that only rise; if they do not, see `gcra.used`.
    """

    def __init__(self, max_keys: int = 20_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_keys = max_keys
        self._clock = clock
        self._until: dict[str, OrderedDict[str, float]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._until.values()))

    async def take(self, charges: Sequence[Charge], parts: int = 1, *, together: bool = False) -> Verdict:
        """As `Buckets.take`; there are no others."""
        return self.take_now(charges)

    def take_now(self, charges: Sequence[Charge]) -> Verdict:
        """`take`, for who cannot wait.

        `gcra.used` and `gcra.fits` are written out here: this is on the way of every request.
        """
        now = self._clock() * gcra.SECOND
        taken: list[float] = []
        passed = True
        for limit, key, requests, window, cost in charges:
            known = self._until.get(limit)
            until = known.get(key) if known is not None else None
            used = 0.0
            if known is not None and until is not None:
                known.move_to_end(key)  # also of who is refused: he is the last who should be forgotten
                used = until - now
                if used < 0.0:
                    used = 0.0
                elif used > window:
                    used = window
                    known[key] = now + window  # or a clock that was set back would hold it full for as long
            taken.append(used)
            passed = passed and used + cost * window / requests <= window + gcra.GRACE
        if passed:
            for at, charge in enumerate(charges):
                taken[at] += charge.cost * charge.window / charge.requests
                self._write(charge, now + taken[at], now)
        return Verdict(passed, charges, taken)

    def used(self, charge: Charge) -> float:
        """How much of the charge's window is taken, without taking anything."""
        known = self._until.get(charge.limit)
        until = known.get(charge.key) if known is not None else None
        return 0.0 if until is None else gcra.used(until, self._clock() * gcra.SECOND, charge.window)

    def _write(self, charge: Charge, until: float, now: float) -> None:
        known = self._until.get(charge.limit)
        if known is None:
            known = self._until[charge.limit] = OrderedDict()
        if charge.key not in known:
            self._make_room(known, now)
        known[charge.key] = until

    def _make_room(self, known: OrderedDict[str, float], now: float) -> None:
        for _ in range(_SWEPT):
            if known and known[next(iter(known))] <= now:
                known.popitem(last=False)
        if len(known) >= self._max_keys:
            known.popitem(last=False)
