"""What outlasts the decision that began it, such as WebSockets and streams: ended when that no longer holds."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from moorage.errors import AppError, Forbidden, Unauthenticated

if TYPE_CHECKING:
    from moorage.guard.decision import Decision
    from moorage.guard.snapshot import Policy

logger = logging.getLogger("moorage.guard")

SWEEP_S: Final = 0.2
"""Seconds after a change in which everything that is open is looked at: once for many changes, and well below the
second that a revocation may take.
"""

End = Callable[[AppError], object]


class Lasting:
    """All that is open in this process by decisions of one guard.

    Args:
        policy: gives the policy that is in force, with its overlay.
    """

    def __init__(self, policy: "Callable[[], Policy | None]") -> None:
        self._policy = policy
        self._open: dict[object, tuple[Decision, End]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def watching(self, decision: "Decision", end: End) -> Iterator[None]:
        """For the length of the block, call *end* once when *decision* no longer holds, with what is wrong."""
        mark = object()
        # Between the decision and now there may have been a change.
        error = why_over(decision, self._policy())
        if error is not None:
            end(error)
        else:
            self._open[mark] = (decision, end)
        try:
            yield
        finally:
            self._open.pop(mark, None)

    def changed(self) -> None:
        """Look at everything soon: policy or overlay are others now."""
        if self._open and self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        policy = self._policy()
        for mark, (decision, end) in list(self._open.items()):
            error = why_over(decision, policy)
            if error is not None:
                self._open.pop(mark, None)
                try:
                    end(error)
                except Exception:  # the others have to end nevertheless
                    logger.exception("something open could not be ended")


def why_over(decision: "Decision", policy: "Policy | None") -> AppError | None:
    """Why *decision* would not be made again under *policy*; ``None``: it would.

    Of the permission only the code is asked for: its condition was judged by what the request was then.
    """
    verified = decision.verified
    if policy is None or verified is None or policy is decision.policy:
        return None
    if policy.verifier is not decision.policy.verifier and not policy.verifier.stands_for(verified):
        return Unauthenticated(
            "The access token is not valid.", code="invalid_token", reason="its key is gone"
        )
    try:
        caller = policy.caller(verified)
    except Unauthenticated as error:
        return error
    code = decision.compiled.permission
    if code is None or code in caller.permissions:
        return None
    return Forbidden(f"You need the permission {code} for this.", details={"permission": code})
