"""From what Routes and the installation declare to the limits of a policy; serving modules never import this."""

from collections.abc import Iterable, Iterator
from typing import Final

from moorage.guard.limits.document import Limit, Limits
from moorage.guard.policy import Rule
from moorage_crds.problems import Problem
from moorage_crds.rates import EffectiveRate, effective_rates
from moorage_crds.v1alpha1 import Module, Route, RouteRule
from moorage_crds.v1alpha1.route import RateLimit

_UNLIMITED: Final = "unlimited"


def limits(route: Route, rule: RouteRule, installation: RateLimit | None) -> Limits | None:
    """The limits of *rule*; ``None``: it has none."""
    rates = effective_rates(rule.rate_limit, route.spec.rate_limit, installation)
    scopes = {"installation": "", "route": f"route/{route.metadata.name}", "rule": f"rule/{rule.name}"}

    def limit(rate: EffectiveRate | None, scope: str | None = None) -> Limit | None:
        if rate is None:
            return None
        return Limit.model_validate(
            {
                "count": rate.count,
                "seconds": rate.seconds,
                "scope": scopes[rate.declared] if scope is None else scope,
                # Modules call each other for many users at once: their author says how often, or nobody does.
                "modules": rate.declared != "installation",
            }
        )

    user, address = limit(rates.per_user), limit(rates.per_ip)
    together = limit(rates.per_rule, scopes["rule"])  # of each rule by itself, wherever it was declared
    if user is address is together is None:
        return None
    # The default goes unsaid: guards that are older than the field take the document then.
    return Limits(
        user=user, address=address, rule=together, outage="refuse" if rates.outage == "refuse" else None
    )


def replicas(module: Module, rules: Iterable[Rule]) -> int | None:
    """Among how many processes limits may have to be divided; ``None``: one, or there is nothing to divide.

    What does not need saying is left out: a guard that is older than the field takes the document then.
    """
    several = module.spec.replicas if (module.spec.replicas or 1) > 1 else None
    return several if any(rule.limits is not None for rule in rules) else None


def problems(routes: Iterable[Route]) -> Iterator[Problem]:
    """Limits that could never hold anybody off."""
    for route in routes:
        for index, rule in enumerate(route.spec.rules):
            own = rule.rate_limit.per_user if rule.rate_limit is not None else None
            if own not in (None, _UNLIMITED) and route.spec.effective(rule).auth == "none":
                yield Problem(
                    source="",
                    resource=route.label,
                    field=f"spec.rules[{index}].rateLimit.perUser",
                    message="counts callers by their token, but with `auth: none` nobody is known",
                    mend="use perIp or perRule",
                )
            outage = rule.rate_limit.outage if rule.rate_limit is not None else None
            if outage == "refuse" and not _counts(route, rule):
                yield Problem(
                    source="",
                    resource=route.label,
                    field=f"spec.rules[{index}].rateLimit.outage",
                    message="refuses who cannot be counted, but neither the rule nor its Route has a limit",
                    mend="add one such as `perIp: 10/hour`",
                )


def _counts(route: Route, rule: RouteRule) -> bool:
    """Whether Route or rule name a limit that can count; the installation's may be switched off by others."""
    rates = effective_rates(rule.rate_limit, route.spec.rate_limit, None)
    known = route.spec.effective(rule).auth != "none"
    return bool(rates.per_ip or rates.per_rule or (known and rates.per_user))
