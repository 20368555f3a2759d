"""What clients are told of their limits: ``RateLimit-Policy`` and ``RateLimit``.

After draft-ietf-httpapi-ratelimit-headers-11: lists of strings with parameters (RFC 9651). ``q`` requests in ``w``
seconds; ``r`` more would pass now, and in ``t`` seconds all of them would, or where ``r`` is 0 the next one.
"""

import math
from typing import Final

from moorage.errors import RateLimited
from moorage.guard.limits import gcra
from moorage.guard.limits.gcra import Charge, Verdict

POLICY: Final = "RateLimit-Policy"
STATE: Final = "RateLimit"


def told(policy: str, verdict: Verdict) -> dict[str, str]:
    """The fields of an answer; *policy* is the text of the first, which a rule's limits know."""
    return {POLICY: policy, STATE: ", ".join(map(_state, verdict.charges, verdict.used))}


def _state(charge: Charge, taken: float) -> str:
    left = gcra.remaining(taken, charge)
    until = taken if left else max(taken + charge.window / charge.requests - charge.window, 0.0)
    return f'"{charge.limit}";r={left};t={math.ceil(until / gcra.SECOND)}'


def refusal(policy: str, verdict: Verdict) -> RateLimited:
    """The error for a request that did not pass: of the limit for which it has to wait longest."""
    waits = list(map(gcra.wait, verdict.used, verdict.charges))
    longest = max(range(len(waits)), key=waits.__getitem__)
    limit = verdict.charges[longest].limit
    return RateLimited(limit, seconds(waits[longest]), headers=told(policy, verdict))


def seconds(wait: float) -> int:
    """*wait* in whole seconds, rounded up, at least one."""
    return max(math.ceil(wait / gcra.SECOND), 1)
