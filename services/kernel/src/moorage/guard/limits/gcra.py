"""The arithmetic of a limit: the generic cell rate algorithm (ITU-T I.371, as a virtual schedule).

Of each limit one number is kept: until when what has passed fills the schedule, had it come evenly. A request of a
limit of 100 a minute takes 0.6 s of it, and passes as long as no more than the whole minute is taken. So 100 pass at
once, and then one each 0.6 s; within any stretch of time t at most 100 + t / 0.6 s. There are no windows at whose edge
twice as much would pass.

All times are microseconds, as floats: they are exact to a hundredth of one for a century.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

SECOND: Final = 1_000_000.0
GRACE: Final = 1.0
"""What rounding may take from a limit: a request that is so much too early passes."""


class Charge(NamedTuple):
    """What one request takes from one limit."""

    limit: str
    """Its name, for people: ``user``, ``address``, ``rule``."""
    key: str
    """Whose count it is, inside the module."""
    requests: int
    """So many may pass in *window*."""
    window: float
    """Microseconds."""
    cost: int = 1
    """As how many requests this one counts, at most *requests*."""

    @property
    def step(self) -> float:
        """What it takes, in microseconds."""
        return self.cost * self.window / self.requests

    def divided(self, parts: int) -> "Charge":
        """Its share of the limit where *parts* processes each count by themselves, one request at least."""
        if parts <= 1:
            return self
        if self.requests >= parts:
            requests, window = self.requests // parts, self.window
        else:
            requests, window = 1, self.window * parts / self.requests
        return Charge(self.limit, self.key, requests, window, min(self.cost, requests))


class Verdict(NamedTuple):
    """Whether a request passed, and how much is taken now of each limit."""

    passed: bool
    charges: Sequence[Charge]
    """What was to be taken: what was asked for, or a part of it where a process counts by itself."""
    used: Sequence[float]
    """How much of each one's window is in use now."""


def used(until: float, now: float, window: float) -> float:
    """How much of *window* is taken *now*, of a schedule that is filled *until* then.

    More than all of it was never given: then the clock was set back, or the limit was wider before. It counts as
    full, so nobody waits longer than for one window, and nothing passes that should not.
    """
    return min(max(until - now, 0.0), window)


def fits(taken: float, charge: Charge) -> bool:
    """Whether *charge* may pass while *taken* of its window is in use."""
    return taken + charge.step <= charge.window + GRACE


def remaining(taken: float, charge: Charge) -> int:
    """How many single requests would pass at once."""
    return max(int((charge.window - taken + GRACE) * charge.requests / charge.window), 0)


def wait(taken: float, charge: Charge) -> float:
    """Microseconds until *charge* would pass, if nothing else does; 0: now."""
    return max(taken + charge.step - charge.window, 0.0)
