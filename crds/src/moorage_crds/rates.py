"""Which rates hold for a rule: its own, else its Route's, else the installation's, field by field."""

from dataclasses import dataclass
from typing import Literal

from moorage_crds import units
from moorage_crds.v1alpha1.route import Outage, RateLimit

Declared = Literal["rule", "route", "installation"]


@dataclass(frozen=True, slots=True)
class EffectiveRate:
    """*count* requests in *seconds*, and whose word that is: the rules that share it count together."""

    count: int
    seconds: int
    declared: Declared


@dataclass(frozen=True, slots=True)
class EffectiveRates:
    """The rates of one rule; ``None``: no bound."""

    per_user: EffectiveRate | None
    per_ip: EffectiveRate | None
    per_rule: EffectiveRate | None
    outage: Outage = "local"


def effective_rates(
    rule: RateLimit | None, route: RateLimit | None, installation: RateLimit | None
) -> EffectiveRates:
    """What holds for a rule: the first of the three that says anything, for each of the rates by itself.

    ``unlimited`` is something that is said.
    """
    said: list[tuple[Declared, RateLimit]] = []
    if rule is not None:
        said.append(("rule", rule))
    if route is not None:
        said.append(("route", route))
    if installation is not None:
        said.append(("installation", installation))

    def first(field: str) -> EffectiveRate | None:
        for declared, limits in said:
            text: str | None = getattr(limits, field)
            if text is not None:
                rate = units.rate(text)
                return None if rate is None else EffectiveRate(*rate, declared)
        return None

    outage: Outage = next((limits.outage for _, limits in said if limits.outage is not None), "local")
    return EffectiveRates(first("per_user"), first("per_ip"), first("per_rule"), outage)
