"""What the engine asks: whether a request may pass the limits of its rule, and what its caller is told of them.

Where an installation wants it, an address has a limit for everything that it sends, whatever it is for. Behind that
three things take from a limit: a request with a rule, once it is known who calls; a request whose token was missing or
bad, from its address alone, in a call of its own; and a bad token, from what one address may show of these to one
process. The last stands before the check of tokens, which is the dearest thing that a stranger can make a guard do.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from moorage.errors import AppError, RateLimited, Unauthenticated
from moorage.guard.identity import Caller
from moorage.guard.limits import fields, gcra
from moorage.guard.limits.addresses import address_key
from moorage.guard.limits.arrivals import Arrivals
from moorage.guard.limits.buckets import Buckets
from moorage.guard.limits.gcra import Charge
from moorage.guard.limits.memory import MemoryBuckets
from moorage.guard.snapshot import CompiledRule, Policy
from moorage.guard.tokens import TokenVerifier

BAD_TOKENS: Final = 600
"""Bad tokens that one address may show in a minute to one process, where nothing else is set."""
BAD_TOKEN_COST: Final = 10
"""As how many requests a bad token counts for its address; one that is missing or has expired, as one."""
_MINUTE: Final = 60 * gcra.SECOND
_TRIED: Final = "bad_tokens"


class Limiter:
    """Counts the requests of one module.

    Args:
        buckets: where; ``None``: in this process's memory.
        bad_tokens: so many may one address show in a minute, 0: any number.
        limited: told the name of each limit that refused a request.
        tried: where bad tokens are counted; ``None``: in a memory of their own.
        arrivals: what the engine asks first, of every request; ``None``: nothing.
    """

    def __init__(
        self,
        buckets: Buckets | None = None,
        *,
        bad_tokens: int = BAD_TOKENS,
        limited: Callable[[str], object] = lambda _: None,
        tried: MemoryBuckets | None = None,
        arrivals: Arrivals | None = None,
    ) -> None:
        self._buckets = MemoryBuckets() if buckets is None else buckets
        self._bad_tokens = bad_tokens
        self._limited = limited
        self._tried = MemoryBuckets() if tried is None else tried
        self.arrivals = arrivals

    async def admit(
        self, policy: Policy, rule: CompiledRule, caller: Caller | None, address: str | None
    ) -> Mapping[str, str]:
        """Count a request; the fields of its answer.

        Raises:
            RateLimited: one of the limits does not let it pass, and none was charged.
            LimitsUnavailable: it has to be counted with those of other processes, and cannot be.
        """
        limits = policy.limits[rule.name]
        text, charges = limits.charges(caller, address)
        if not charges:
            return {}
        try:
            return await self._take(text, charges, policy.replicas, together=limits.together)
        except AppError as error:
            error.rule, error.route = rule.name, rule.path
            raise

    def before_token(
        self, address: str | None, authorization: Sequence[str], verifier: TokenVerifier
    ) -> None:
        """Refuse, unread, the token of an address that has shown too many bad ones.

        Tokens that were found good before still count: checking them costs nothing, and others behind the same
        address need not suffer.

        Raises:
            RateLimited
        """
        if address is None or not authorization or verifier.knows(authorization[0]) or not self._tried:
            return
        charge = self._bad_token(address)
        taken = self._tried.used(charge)
        if not gcra.fits(taken, charge):
            self._limited(_TRIED)
            raise RateLimited(_TRIED, fields.seconds(gcra.wait(taken, charge)))

    async def unauthenticated(
        self, policy: Policy | None, address: str | None, error: Unauthenticated
    ) -> None:
        """Charge the address of a request that is going to be refused with *error*, a 401, which gets the fields.

        Raises:
            RateLimited: it has used up its limit; this is to be the answer.
            LimitsUnavailable: or this, as for `admit`. Otherwise tokens could be tried out uncounted.
        """
        if address is None or policy is None:
            return
        shown = error.code != "unauthenticated"  # a token was there, and was looked at
        if shown and self._bad_tokens:
            self._tried.take_now([self._bad_token(address)])
        limits = policy.limits.get(error.rule or "")
        if limits is None or limits.address is None:
            return
        quota = limits.address
        charge = quota.charge(address_key(address), BAD_TOKEN_COST if error.code == "invalid_token" else 1)
        try:
            told = await self._take(quota.policy, [charge], policy.replicas, together=limits.together)
        except AppError as answer:
            answer.rule, answer.route = error.rule, error.route
            raise answer from None
        error.headers.update(told)

    async def _take(
        self, text: str, charges: Sequence[Charge], parts: int, *, together: bool
    ) -> dict[str, str]:
        verdict = await self._buckets.take(charges, parts, together=together)
        if not verdict.passed:
            refused = fields.refusal(text, verdict)
            self._limited(str(refused.details["limit"]))
            raise refused
        return fields.told(text, verdict)

    def _bad_token(self, address: str) -> Charge:
        return Charge(_TRIED, address_key(address), self._bad_tokens, _MINUTE)
