"""Rate limits on their way from chart values and Routes into policies and pods."""

from typing import Any

import pytest

from moorage_operator.plan.settings import parse_settings
from moorage_operator.plan.world import World


def limits(plan: Any, rule: str) -> Any:
    (found,) = [one for one in plan.policy.rules if one.name == rule]
    return found.limits


def env(container: Any) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in container["env"]}


def pod(plan: Any) -> Any:
    (found,) = plan.of_kind("Deployment")
    return found["spec"]["template"]["spec"]


def test_every_rule_has_the_installations_limits(make: Any) -> None:
    found = limits(make.plan(), "list")
    assert (found.user.count, found.user.seconds, found.user.scope) == (100, 60, "")
    assert (found.address.count, found.address.seconds) == (1000, 60)
    assert found.rule is None


def test_a_route_says_otherwise_and_is_accepted(make: Any) -> None:
    route = make.route(rateLimit={"perUser": "7/second", "perIp": "unlimited"})
    plan = make.plan(routes=[route])
    assert plan.routes["blog"] == ()
    found = limits(plan, "read")
    assert (found.user.count, found.user.seconds, found.user.scope) == (7, 1, "route/blog")
    assert found.address is None


def test_null_switches_the_defaults_off(make: Any) -> None:
    make.settings = parse_settings("defaults: {rateLimit: null}")
    assert {rule.limits for rule in make.plan().policy.rules} == {None}


def test_a_changed_limit_changes_the_policy_and_not_the_pods(make: Any) -> None:
    before = make.plan()
    make.settings = make.settings.model_copy(
        update={"defaults": make.settings.defaults.model_copy(update={"rate_limit": None})}
    )
    after = make.plan()
    assert before.policy != after.policy
    assert before.revision == after.revision


def test_the_policy_says_among_how_many_a_limit_is_divided(make: Any) -> None:
    assert make.plan(make.module(replicas=3)).policy.replicas == 3
    assert make.plan().policy.replicas is None


def test_a_limit_that_could_never_hold_anybody_off_is_refused(make: Any) -> None:
    rule = {"name": "list", "path": "/posts", "auth": "none", "rateLimit": {"perUser": "1/second"}}
    plan = make.plan(routes=[make.route(rules=[rule])])
    (refusal,) = plan.routes["blog"]
    assert "spec.rules[0].rateLimit.perUser" in refusal.message
    assert plan.policy.rules == []


def test_guards_in_process_and_in_sidecars_count_in_the_installations_redis(make: Any) -> None:
    assert "REDIS_URL" not in env(pod(make.plan(make.module(app=None)))["initContainers"][0])
    make.settings = parse_settings("redis: {url: 'redis://redis.infra:6379/0'}")
    (app,) = pod(make.plan())["containers"]
    (sidecar,) = pod(make.plan(make.module(app=None)))["initContainers"]
    assert env(app)["REDIS_URL"] == env(sidecar)["REDIS_URL"] == "redis://redis.infra:6379/0"


def test_the_guard_in_a_sidecar_has_its_own_settings_from_the_module(make: Any) -> None:
    installations = {"LIMITS_BACKEND": "memory", "GUARD_AUDIT_FILE": "/dev/null", "GUARD_MAX_STALENESS": "9h"}
    said = {"LIMITS_ADDRESS": "6000", "LIMITS_TIMEOUT": "1s", "LIMITS_OF_GROWTH": "1972", "REDIS_URL": "no"}
    said |= installations
    make.settings = parse_settings("redis: {url: 'redis://redis.infra:6379/0'}")
    module = make.module(app=None, env=[{"name": name, "value": value} for name, value in said.items()])
    found = pod(make.plan(module))
    sidecar, app = env(found["initContainers"][0]), env(found["containers"][0])
    assert sidecar["LIMITS_ADDRESS"] == app["LIMITS_ADDRESS"] == "6000"
    assert sidecar["LIMITS_TIMEOUT"] == "1s"
    assert not installations.keys() & sidecar.keys()
    assert "LIMITS_OF_GROWTH" not in sidecar, "no setting of the guard's, so the app's own"
    assert app["LIMITS_OF_GROWTH"] == "1972"
    assert sidecar["REDIS_URL"] == "redis://redis.infra:6379/0"


@pytest.mark.parametrize(("name", "value"), [("LIMITS_ADDRESS", "100/minute"), ("LIMITS_TIMEOUT", "10h")])
def test_a_setting_with_which_the_sidecar_would_not_start_is_refused(
    make: Any, name: str, value: str
) -> None:
    said = [{"name": "OTHER", "value": "1"}, {"name": name, "value": value}]
    plan = make.plan(make.module(app=None, env=said))
    (refusal,) = plan.refusals
    assert refusal.reason == "InvalidSetting"
    assert f"spec.env[1].value: `{name}`" in refusal.message
    assert not make.plan(make.module(app=None, env=said[:1])).refusals


def test_the_guard_samples_as_the_app_does_where_it_knows_how(make: Any) -> None:
    names = ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "OTEL_SDK_DISABLED")

    def sidecar(*values: str) -> dict[str, Any]:
        said = [{"name": name, "value": value} for name, value in zip(names, values, strict=True)]
        found = env(pod(make.plan(make.module(app=None, env=said)))["initContainers"][0])
        return {name: found[name] for name in names if name in found}

    good = ("parentbased_traceidratio", "0.01", "true")
    assert tuple(sidecar(*good).values()) == good
    assert sidecar("xray", "endpoint=http://localhost:2000", "maybe") == {}


def test_spans_of_the_guard_go_where_those_of_the_app_go(make: Any) -> None:
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in env(
        pod(make.plan(make.module(app=None)))["initContainers"][0]
    )
    make.settings = parse_settings("otlp: {endpoint: 'http://collector.infra:4318'}")
    found = pod(make.plan(make.module(app=None)))
    for container in (*found["initContainers"], *found["containers"]):
        assert env(container)["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.infra:4318"
    assert "OTEL_SERVICE_NAME" not in env(found["initContainers"][0]), "that is the app's"


def test_the_installation_says_what_happens_while_redis_is_away(make: Any) -> None:
    assert limits(make.plan(), "list").outage is None
    make.settings = parse_settings("defaults: {rateLimit: {perIp: 9/minute, outage: refuse}}")
    assert limits(make.plan(), "list").outage == "refuse"
    assert limits(make.plan(routes=[make.route(rateLimit={"outage": "local"})]), "list").outage is None


def test_a_secret_for_the_guard_is_one_key_in_the_sidecar_and_nothing_in_the_app(make: Any) -> None:
    refs = [{"name": "mine"}, {"name": "counts", "guard": True}]
    found = pod(make.plan(make.module(app=None, secretRefs=refs)))
    volumes = {volume["name"]: volume for volume in found["volumes"]}
    items = [{"key": "redis_url", "path": "redis_url"}]
    assert volumes["guard-secrets"]["projected"]["sources"] == [
        {"secret": {"name": "counts", "optional": False, "items": items}}
    ]
    (sidecar,), (app,) = found["initContainers"], found["containers"]
    mount = {"name": "guard-secrets", "mountPath": "/etc/moorage/secrets", "readOnly": True}
    assert mount in sidecar["volumeMounts"]
    assert {"name": "MOORAGE_SECRETS_DIR", "value": "/etc/moorage/secrets"} in sidecar["env"]
    assert "secrets" not in {one["name"] for one in sidecar["volumeMounts"]}
    assert "guard-secrets" not in {one["name"] for one in app["volumeMounts"]}
    assert [one["secret"]["name"] for one in volumes["secrets"]["projected"]["sources"]] == ["mine"]


def test_without_one_the_sidecar_sees_no_secret(make: Any) -> None:
    found = pod(make.plan(make.module(app=None, secretRefs=[{"name": "mine"}])))
    (sidecar,) = found["initContainers"]
    assert "/etc/moorage/secrets" not in {one["mountPath"] for one in sidecar["volumeMounts"]}
    alone = pod(make.plan(make.module(app=None, secretRefs=[{"name": "counts", "guard": True}])))
    assert "secrets" not in {volume["name"] for volume in alone["volumes"]}


def test_a_guards_secret_that_changed_makes_a_new_revision(make: Any) -> None:
    module = make.module(app=None, secretRefs=[{"name": "counts", "guard": True}])
    plans = [make.plan(module, world=World(secrets={"counts": mark})) for mark in ("aa", "bb")]
    assert plans[0].revision != plans[1].revision
