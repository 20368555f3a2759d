"""What counts: the interface of the backends."""

from collections.abc import Sequence
from typing import Protocol

from moorage.guard.limits.gcra import Charge, Verdict


class Buckets(Protocol):
    """Keeps how much of each limit is taken."""

    async def take(self, charges: Sequence[Charge], parts: int = 1) -> Verdict:
        """Take all of *charges* if every one of them fits, else nothing.

        So who is held off by one limit does not use up the others meanwhile.

        Args:
            parts: among how many processes a limit is divided where each has to count by itself.
        """
        ...
