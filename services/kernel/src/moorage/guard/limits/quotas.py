"""The limits of a rule, ready to be charged: made when a policy is compiled."""

from functools import lru_cache

from moorage.guard.identity import Caller, ModuleCaller
from moorage.guard.limits import gcra
from moorage.guard.limits.addresses import address_key
from moorage.guard.limits.document import Limit, Limits
from moorage.guard.limits.gcra import Charge


class Quota:
    """One limit of a rule."""

    __slots__ = ("modules", "name", "policy", "prefix", "requests", "window")

    def __init__(self, name: str, limit: Limit) -> None:
        self.name = name
        self.requests = limit.count
        self.window = limit.seconds * gcra.SECOND
        self.modules = limit.modules
        self.prefix = f"{limit.scope}:"
        self.policy = f'"{name}";q={limit.count};w={limit.seconds}'

    def charge(self, whose: str, cost: int = 1) -> Charge:
        """What a request of *whose* takes from it."""
        return Charge(self.name, self.prefix + whose, self.requests, self.window, min(cost, self.requests))


class RuleLimits:
    """The limits of one rule."""

    __slots__ = ("address", "rule", "together", "user")

    def __init__(self, limits: Limits) -> None:
        self.user = None if limits.user is None else Quota("user", limits.user)
        self.address = None if limits.address is None else Quota("address", limits.address)
        self.rule = None if limits.rule is None else Quota("rule", limits.rule)
        self.together = limits.outage == "refuse"

    def charges(self, caller: Caller | None, address: str | None) -> tuple[str, list[Charge]]:
        """What a request takes, and the text of `fields.POLICY`."""
        module = isinstance(caller, ModuleCaller)
        policies, charges = [], []
        user, place, rule = self.user, self.address, self.rule
        if user is not None and caller is not None and (user.modules or not module):
            policies.append(user.policy)
            charges.append(user.charge(_name(caller)))
        if place is not None and address is not None and (place.modules or not module):
            policies.append(place.policy)
            charges.append(place.charge(address_key(address)))
        if rule is not None:
            policies.append(rule.policy)
            charges.append(rule.charge(""))
        return ", ".join(policies), charges


def _name(caller: Caller) -> str:
    return caller.key if isinstance(caller, ModuleCaller) else _text(caller.id)


_text = lru_cache(maxsize=4096)(str)
"""Of a UUID; it takes longer to write than to look up."""
