"""What outlasts the decision that let it through is ended when that no longer holds: WebSockets, long answers."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from moorage.errors import AppError, Unauthenticated
from moorage.guard.decision import Decision
from moorage.guard.lasting import Lasting

End = Callable[[AppError], object]
"""Ends it; told why."""
Held = Callable[[End], AbstractContextManager[None]]
"""A block for whose length it may be ended."""


@contextmanager
def held_by(lasting: Lasting, decision: Decision, end: End) -> Iterator[None]:
    """For the length of the block, call *end* when the token expires, or *decision* would not be made again."""
    expiry = None
    if decision.expires is not None:
        left = max(decision.expires - time.time(), 0.0)
        expiry = asyncio.get_running_loop().call_later(left, end, _expired())
    try:
        with lasting.watching(decision, end):
            yield
    finally:
        if expiry is not None:
            expiry.cancel()


def _expired() -> AppError:
    return Unauthenticated("the token has expired", code="token_expired")
