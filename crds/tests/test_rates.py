"""Rates: the rule's own, else its Route's, else the installation's, each by itself."""

from moorage_crds.rates import EffectiveRate, effective_rates
from moorage_crds.v1alpha1.route import RateLimit

INSTALLATION = RateLimit(per_user="100/minute", per_ip="1000/minute")


def test_the_installation_says_what_nobody_else_does() -> None:
    found = effective_rates(None, None, INSTALLATION)
    assert found.per_user == EffectiveRate(100, 60, "installation")
    assert found.per_ip == EffectiveRate(1000, 60, "installation")
    assert found.per_rule is None


def test_each_rate_is_looked_for_by_itself() -> None:
    found = effective_rates(
        RateLimit(per_user="5/second"), RateLimit(per_user="9/hour", per_rule="7/day"), INSTALLATION
    )
    assert found.per_user == EffectiveRate(5, 1, "rule")
    assert found.per_ip == EffectiveRate(1000, 60, "installation")
    assert found.per_rule == EffectiveRate(7, 86_400, "route")


def test_unlimited_ends_the_search() -> None:
    found = effective_rates(RateLimit(per_user="unlimited"), RateLimit(per_user="9/hour"), INSTALLATION)
    assert found.per_user is None


def test_without_an_installation_there_are_no_defaults() -> None:
    found = effective_rates(None, None, None)
    assert (found.per_user, found.per_ip, found.per_rule) == (None, None, None)


def test_what_happens_in_an_outage_is_the_rules_word_then_the_routes() -> None:
    refuse, local = RateLimit(outage="refuse"), RateLimit(outage="local")
    said = [
        (refuse, None),
        (None, refuse),
        (RateLimit(per_ip="1/day"), refuse),
        (local, refuse),
        (None, None),
    ]
    assert [effective_rates(rule, route, INSTALLATION).outage for rule, route in said] == [
        "refuse",
        "refuse",
        "refuse",
        "local",
        "local",
    ]
