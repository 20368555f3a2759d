"""What counts: the interface of the backends."""

from collections.abc import Sequence
from typing import Protocol

from moorage.errors import Unavailable
from moorage.guard.limits.gcra import Charge, Verdict


class LimitsUnavailable(Unavailable):
    """503: a request that has to be counted together with those of other processes, and cannot be."""

    code = "limits_unavailable"
    default_message = "This is not let pass uncounted, and cannot be counted at the moment."


class Buckets(Protocol):
    """Keeps how much of each limit is taken."""

    async def take(self, charges: Sequence[Charge], parts: int = 1, *, together: bool = False) -> Verdict:
        """Take all of *charges* if every one of them fits, else nothing.

        So who is held off by one limit does not use up the others meanwhile.

        Args:
            parts: among how many processes a limit is divided where each has to count by itself.
            together: never by itself, where others are meant to be counted as well.

        Raises:
            LimitsUnavailable: only with *together*.
        """
        ...
