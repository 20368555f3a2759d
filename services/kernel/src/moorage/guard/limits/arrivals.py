"""A count of everything that an address sends, in this process's memory, before anything is decided about it.

The same arithmetic as `gcra`, for one limit that all addresses have: it stands before every request, so it keeps no
more and asks for no more than that needs.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from moorage.errors import RateLimited
from moorage.guard.limits.addresses import address_key

_NAME: Final = "requests"
_MINUTE: Final = 60.0
_SWEPT: Final = 2
"""Addresses at rest that are forgotten for each new one."""


class Arrivals:
    """Bounded; of whom nothing was heard for longest is forgotten first, and has his whole limit again.

    Args:
        per_minute: so many at once, after that one whenever its share of the minute has passed.
        max_keys: how many addresses are kept.
        limited: told the limit's name for each request that is refused.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        per_minute: int,
        max_keys: int = 20_000,
        *,
        limited: Callable[[str], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._step = _MINUTE / per_minute
        self._most = _MINUTE - self._step + 1e-6  # what rounding may take, as `gcra.GRACE`
        self._max_keys = max_keys
        self._limited = limited
        self._clock = clock
        self._until: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def take(self, address: str | None) -> None:
        """Count a request of *address*; a Unix socket has none, and sends as much as it likes.

        Raises:
            RateLimited: it has sent too much; nothing is charged.
        """
        if address is None:
            return
        key, known, now = address_key(address), self._until, self._clock()
        until = known.get(key)
        if until is None:
            self._make_room(now)
            until = now
        else:
            known.move_to_end(key)  # also of who is refused: he is the last who should be forgotten
            if until < now:
                until = now
            elif until - now > self._most:
                self._limited(_NAME)
                raise RateLimited(_NAME, max(math.ceil(until - now - self._most), 1))
        known[key] = until + self._step

    def _make_room(self, now: float) -> None:
        known = self._until
        for _ in range(_SWEPT):
            if known and known[next(iter(known))] <= now:
                known.popitem(last=False)
        if len(known) >= self._max_keys:
            known.popitem(last=False)
