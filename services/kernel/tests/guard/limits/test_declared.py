"""From Routes to the limits of the policy."""

from typing import Any

import pytest

from moorage.guard.compiler import CompileError, compile_base
from moorage.guard.limits.document import Limit
from moorage.guard.policy import BaseDocument, Rule, parse_document
from moorage_crds.v1alpha1 import Module, Route
from moorage_crds.v1alpha1.route import RateLimit

DEFAULT = RateLimit(per_user="100/minute", per_ip="1000/minute")


def compiled(
    *rules: dict[str, Any], rate_limit: RateLimit | None = None, replicas: int | None = None, **spec: Any
) -> BaseDocument:
    module = {"version": "1.0.0", "image": "x:1", **({} if replicas is None else {"replicas": replicas})}
    routes = {"module": "blog", "rules": list(rules), **spec}
    return compile_base(
        Module.model_validate({"metadata": {"name": "blog", "namespace": "default"}, "spec": module}),
        [Route.model_validate({"metadata": {"name": "api", "namespace": "default"}, "spec": routes})],
        [],
        issuers=[],
        sequence=1,
        issued_at="",
        rate_limit=rate_limit,
    )


def only(document: BaseDocument) -> Rule:
    (rule,) = document.rules
    return rule


LIST = {"name": "list", "path": "/posts"}


def test_without_a_word_from_anybody_there_are_no_limits() -> None:
    document = compiled(LIST)
    assert only(document).limits is None
    assert b"limits" not in document.canonical()
    assert b"replicas" not in document.canonical()


def test_the_installations_are_counted_over_the_module_and_not_for_modules() -> None:
    limits = only(compiled(LIST, rate_limit=DEFAULT)).limits
    assert limits is not None
    assert limits.user == Limit(count=100, seconds=60, scope="", modules=False)
    assert limits.address == Limit(count=1000, seconds=60, scope="", modules=False)
    assert limits.rule is None


def test_a_routes_are_counted_over_the_route_and_a_rules_over_the_rule() -> None:
    document = compiled(
        LIST,
        {"name": "create", "path": "/new", "rateLimit": {"perUser": "5/hour", "perIp": "unlimited"}},
        rateLimit={"perUser": "9/second", "perRule": "50/second"},
        rate_limit=DEFAULT,
    )
    create, listing = document.rules
    assert create.limits is not None
    assert listing.limits is not None
    assert create.limits.user == Limit(count=5, seconds=3600, scope="rule/create")
    assert create.limits.address is None
    assert create.limits.rule == Limit(count=50, seconds=1, scope="rule/create")
    assert listing.limits.user == Limit(count=9, seconds=1, scope="route/api")
    assert listing.limits.address == Limit(count=1000, seconds=60, modules=False)
    assert listing.limits.rule == Limit(count=50, seconds=1, scope="rule/list")
    assert parse_document(document.canonical()) == document


def test_unlimited_everything_is_no_limits_at_all() -> None:
    rule = {**LIST, "rateLimit": {"perUser": "unlimited", "perIp": "unlimited"}}
    assert only(compiled(rule, rate_limit=DEFAULT)).limits is None


@pytest.mark.parametrize(("replicas", "said"), [(None, None), (0, None), (1, None), (3, 3)])
def test_the_document_says_among_how_many_processes_limits_are_divided(
    replicas: int | None, said: int | None
) -> None:
    assert compiled(LIST, replicas=replicas, rate_limit=DEFAULT).replicas == said
    assert compiled(LIST, replicas=replicas).replicas is None, "there is nothing to divide"


def test_a_limit_that_could_never_hold_anybody_off_is_refused() -> None:
    rule = {**LIST, "auth": "none", "rateLimit": {"perUser": "5/minute"}}
    with pytest.raises(CompileError, match=r"rules\[0\]\.rateLimit\.perUser.*use perIp"):
        compiled(rule)
    # What the Route says for all its rules is meant for those that ask who calls.
    assert only(compiled({**LIST, "auth": "none"}, rateLimit={"perUser": "5/minute"})).limits is not None
    assert compiled({**rule, "rateLimit": {"perUser": "unlimited"}})


def test_a_rule_that_refuses_in_an_outage_says_so_and_the_others_keep_their_bytes() -> None:
    limit = {"perIp": "5/minute"}
    refusing = compiled({**LIST, "rateLimit": {**limit, "outage": "refuse"}})
    limits = only(refusing).limits
    assert limits is not None
    assert limits.outage == "refuse"
    assert parse_document(refusing.canonical()) == refusing
    local = compiled({**LIST, "rateLimit": {**limit, "outage": "local"}})
    assert local.canonical() == compiled({**LIST, "rateLimit": limit}).canonical()
    assert b"outage" not in local.canonical(), "guards that are older than the field take it"


@pytest.mark.parametrize("more", [{}, {"perIp": "unlimited"}, {"perUser": "5/minute"}])
def test_a_rule_that_refuses_in_an_outage_has_something_to_count(more: dict[str, Any]) -> None:
    """The installation's limits may be switched off one day, and the rule be open to everybody then."""
    rule = {**LIST, "auth": "none", "rateLimit": {"outage": "refuse", **more}}
    with pytest.raises(CompileError, match=r"rules\[0\]\.rateLimit\.outage.*perIp: 10/hour"):
        compiled(rule, rate_limit=DEFAULT)


def test_what_a_rule_refuses_by_may_be_the_routes() -> None:
    rule = {**LIST, "auth": "none", "rateLimit": {"outage": "refuse"}}
    assert compiled(rule, rateLimit={"perRule": "5/minute"})
    assert compiled({**LIST, "rateLimit": {"outage": "refuse"}}, rateLimit={"perUser": "5/minute"})
