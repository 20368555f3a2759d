"""Turns of the reconciler, against a stand-in of the API server and a real PostgreSQL."""

import datetime
import json
from typing import Any

import pytest

from moorage_operator.apply import kinds
from moorage_operator.apply.client import ApiError

pytestmark = pytest.mark.postgres


async def test_from_a_module_to_running(harness: Any) -> None:
    """And a second operator finds nothing to do."""
    harness.apply(harness.module(database={}), harness.route())
    await harness.converge()
    assert harness.phase() == "Running"
    assert harness.conditions("Route", "blog")["Accepted"][0] == "True"
    (module,) = harness.api.find("Module")
    inventory = {(one["kind"], one["name"]) for one in module["status"]["inventory"]}
    kept = {
        (one["kind"], one["metadata"]["name"])
        for one in harness.api.objects.values()
        if any(ref["kind"] == "Module" for ref in one["metadata"].get("ownerReferences", []))
    }
    assert inventory == kept
    assert {kind for kind, _ in kept} == {
        *(
            "ConfigMap",
            "Deployment",
            "HTTPRoute",
            "Job",
            "NetworkPolicy",
            "Secret",
            "Service",
            "ServiceAccount",
        )
    }
    before = len(harness.api.writes)
    await harness.converge()
    assert harness.api.writes[before:] == []


async def final(harness: Any) -> Any:
    """Everything that matters of where a module ended: objects but for what is random in them, roles, schemas."""
    found = {}
    for path, one in harness.api.objects.items():
        if one["kind"] in ("Event",):
            continue
        name = path if one["kind"] not in ("Secret",) else path[:-10]
        found[name] = one["kind"]
    roles = await harness.fetch(
        "SELECT right(rolname, 5) AS role, rolcanlogin FROM pg_roles r JOIN pg_namespace n "
        "ON n.nspowner = r.oid WHERE nspname = 'default_blog'"
    )
    (module,) = harness.api.find("Module")
    status = {key: module["status"][key] for key in ("phase", "ready", "observedGeneration")}
    pods = {one["metadata"]["name"].rsplit("-", 2)[0] for one in harness.api.find("Pod")}
    kinds_found = sorted(kind for name, kind in found.items() if kind != "Pod")
    return kinds_found, [tuple(role) for role in roles], status, pods, len(module["status"]["inventory"])


@pytest.mark.timeout(900)
async def test_killed_after_any_write_the_next_operator_ends_in_the_same_place(harness: Any) -> None:
    """Nothing half-made is left: no second access Secret, no owner that may log in, no object without an owner."""
    harness.apply(harness.module(database={}), harness.route())
    await harness.converge()
    reference, total = await final(harness), len(harness.api.writes)
    assert total > 10
    for writes in range(total):
        harness.api.objects.clear()
        harness.workloads.now = harness.now
        await harness.fetch("DROP SCHEMA default_blog CASCADE")
        harness.apply(harness.module(database={}), harness.route())
        killed = await harness.run_until_killed(writes)
        assert killed or writes >= total - 2
        await harness.converge()
        assert await final(harness) == reference, f"killed after {writes} writes"


async def test_an_edit_that_apply_trips_over_is_undone(harness: Any) -> None:
    harness.apply(harness.module())
    await harness.converge()
    (service,) = harness.api.find("Service")
    service["spec"]["ports"] = [{"name": "http", "port": 81, "targetPort": "http", "protocol": "TCP"}]
    service["spec"]["selector"]["evil"] = "x"
    harness.api.put(service)
    invalid = {"reason": "Invalid", "message": "ports[1].name: Duplicate value"}
    harness.api.faults.append(("PATCH", "/services/blog", 422, invalid))
    await harness.converge()
    (service,) = harness.api.find("Service")
    assert [port["port"] for port in service["spec"]["ports"]] == [80]
    assert "evil" not in service["spec"]["selector"]
    assert harness.phase() == "Running"


async def test_what_is_no_longer_planned_is_pruned(harness: Any) -> None:
    harness.apply(harness.module(replicas=2, config={"a": 1}), harness.route())
    await harness.converge()
    first = {one["metadata"]["name"] for one in harness.api.find("ConfigMap")}
    assert harness.api.find("PodDisruptionBudget")
    harness.apply(harness.module(replicas=1, config={"a": 2}))
    harness.delete("Route", "blog")
    await harness.converge()
    assert not harness.api.find("PodDisruptionBudget")
    assert not harness.api.find("HTTPRoute")
    second = {one["metadata"]["name"] for one in harness.api.find("ConfigMap")}
    assert len(second) == 2  # configuration and policy
    assert second != first


async def test_old_configuration_stays_until_the_last_old_pod_is_gone(harness: Any) -> None:
    harness.apply(harness.module(config={"a": 1}))
    await harness.converge()
    harness.apply(harness.module(config={"a": 2}))
    operator = await harness.operator()
    await operator.round()  # the Deployment is written, its pods are still the old ones
    assert len(harness.api.find("ConfigMap")) == 3
    assert harness.phase() == "Starting"
    await harness.converge(operator)
    assert len(harness.api.find("ConfigMap")) == 2


async def test_a_foreign_object_is_left_alone(harness: Any) -> None:
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "blog"}, "spec": {"mine": "yes"}}
    harness.apply(foreign, harness.module())
    await harness.converge()
    status, reason, message = harness.conditions("Module", "blog")["Accepted"]
    assert (status, reason) == ("False", "ObjectExists")
    assert "Service default/blog" in message
    (service,) = harness.api.find("Service")
    assert service["spec"] == {"mine": "yes"}
    harness.delete("Service", "blog")
    await harness.converge()
    assert harness.phase() == "Running"


async def test_objects_of_a_deleted_module_of_the_same_name_are_waited_for(harness: Any) -> None:
    owner = {
        "apiVersion": "moorage.dev/v1alpha1",
        "kind": "Module",
        "name": "blog",
        "uid": "old",
        "controller": True,
    }
    old = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "blog", "ownerReferences": [owner]},
        "spec": {},
    }
    harness.apply(old, harness.module())
    await harness.converge()
    assert harness.conditions("Module", "blog")["Accepted"][1] == "PreviousModule"


@pytest.mark.parametrize("status", [409, 429, 500, 503])
async def test_what_may_pass_by_itself_is_raised_for_another_turn(harness: Any, status: int) -> None:
    harness.apply(harness.module())
    harness.api.faults.append(
        (
            "PATCH",
            "/deployments/blog",
            status,
            {"reason": "X", "message": "m", "details": {"retryAfterSeconds": 3}},
        )
    )
    operator = await harness.operator()
    with pytest.raises(ApiError) as error:
        await operator.round()
    assert error.value.transient
    assert error.value.retry_after == 3
    await harness.converge(operator)
    assert harness.phase() == "Running"


async def test_what_the_api_server_refuses_for_good_is_shown(harness: Any) -> None:
    harness.apply(harness.module())
    refusal = {"reason": "Forbidden", "message": 'cannot patch resource "deployments"'}
    harness.api.faults += [("PATCH", "/deployments/blog", 403, refusal)]
    operator = await harness.operator()
    await operator.round()
    status, reason, message = harness.conditions("Module", "blog")["Accepted"]
    assert (status, reason) == ("False", "ApiRefused")
    assert "deployments" in message


async def test_a_policy_is_written_anew_only_when_it_says_something_new(harness: Any) -> None:
    harness.apply(harness.module(), harness.route())
    operator = await harness.operator()
    await harness.converge(operator)

    def document() -> Any:
        (found,) = harness.api.find("ConfigMap", "blog-policy")
        return json.loads(found["data"]["base.json"])

    first = document()
    harness.now += datetime.timedelta(minutes=5)
    await harness.converge(operator)
    assert document() == first
    harness.apply(harness.route(rules=[{"name": "other", "methods": ["GET"], "path": "/other"}]))
    await harness.converge(operator)
    second = document()
    assert second["sequence"] > first["sequence"]
    assert [rule["name"] for rule in second["rules"]] == ["other"]
    (pod,) = harness.api.find("Pod")
    assert pod["metadata"]["annotations"]["moorage.dev/policy-sequence"] == str(second["sequence"])

    harness.delete("ConfigMap", "blog-policy")
    harness.now += datetime.timedelta(seconds=1)
    await harness.converge(operator)
    assert document()["sequence"] > second["sequence"]

    (found,) = harness.api.find("ConfigMap", "blog-policy")
    harness.api.put(found | {"data": found["data"] | {"base.sig": "AAAA"}})
    third = document()
    await harness.converge(operator)
    (found,) = harness.api.find("ConfigMap", "blog-policy")
    assert found["data"]["base.sig"] != "AAAA"
    assert document()["sequence"] > third["sequence"]


async def test_what_guards_say_reaches_the_statuses(harness: Any) -> None:
    harness.apply(harness.module(), harness.route())
    harness.guards.extra = {"unbound_rules": ("blog-list",)}
    await harness.converge()
    assert harness.conditions("Route", "blog")["Accepted"][:2] == ("False", "RuleWithoutHandler")
    harness.guards.extra = {"bypassable": (":8000",)}
    await harness.converge()
    assert harness.conditions("Route", "blog")["Accepted"][0] == "True"
    assert harness.conditions("Module", "blog")["Ready"][1] == "Bypassable"


async def test_routes_and_permissions_without_a_module(harness: Any) -> None:
    permission = {
        "apiVersion": "moorage.dev/v1alpha1",
        "kind": "Permission",
        "metadata": {"name": "shop.cart.read"},
        "spec": {},
    }
    harness.apply(harness.route(), permission)
    await harness.converge()
    assert harness.conditions("Route", "blog")["Accepted"][1] == "ModuleNotFound"
    assert "metadata.name" in harness.conditions("Permission", "shop.cart.read")["Accepted"][2]
    harness.apply(harness.module())
    await harness.converge()
    assert harness.conditions("Route", "blog")["Accepted"][0] == "True"


async def test_a_resource_that_its_crd_should_have_refused(harness: Any) -> None:
    harness.apply(harness.module(version="one"), harness.route())
    await harness.converge()
    assert harness.phase() == "Rejected"
    assert "spec.version" in harness.conditions("Module", "blog")["Accepted"][2]
    harness.apply(harness.module())
    broken = harness.route(rules=[])
    harness.apply(broken)
    await harness.converge()
    assert harness.phase() == "Running"
    assert harness.conditions("Route", "blog")["Accepted"][1] == "Invalid"


async def test_the_second_claim_of_a_place_gets_it_when_the_first_is_gone(harness: Any) -> None:
    harness.apply(harness.module("one"), harness.module("two"), harness.route("one", module="one"))
    operator = await harness.operator()
    await harness.converge(operator)
    older = harness.route("two", module="two")
    older["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z"  # older, but the place is served already
    harness.apply(older)
    await harness.converge(operator)
    assert harness.conditions("Route", "two")["Accepted"][1] == "ClaimConflict"
    assert harness.conditions("Route", "one")["Accepted"][0] == "True"
    harness.delete("Route", "one")
    await harness.converge(operator)
    assert harness.conditions("Route", "two")["Accepted"][0] == "True"


async def test_what_the_edge_says_of_an_httproute_is_shown(harness: Any) -> None:
    harness.apply(harness.module(), harness.route())
    await harness.converge()
    assert harness.conditions("Route", "blog")["Programmed"][:2] == ("False", "NotSeen")
    (live,) = harness.api.find("HTTPRoute")
    condition = {
        "type": "Accepted",
        "status": "False",
        "reason": "NotAllowedByListeners",
        "message": "no listener",
    }
    harness.api.put(live | {"status": {"parents": [{"conditions": [condition]}]}})
    await harness.converge()
    status, reason, message = harness.conditions("Route", "blog")["Programmed"]
    assert (status, reason) == ("False", "NotAllowedByListeners")
    assert "no listener" in message


async def test_an_object_that_took_the_place_of_ours_unseen_is_not_overwritten(harness: Any) -> None:
    """The store still shows our own; the API server's is somebody else's by now."""
    harness.apply(harness.module())
    operator = await harness.operator()
    await harness.converge(operator)
    harness.delete("Service", "blog")
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "blog"}, "spec": {"mine": "yes"}}
    harness.apply(foreign, harness.module(version="2.0.0"))
    (module,) = harness.api.find("Module")
    operator.context.store.put(kinds.MODULE, module)
    with pytest.raises(ApiError) as error:
        await operator.turn(("default", "blog"))
    assert error.value.conflict
    (service,) = harness.api.find("Service")
    assert service["spec"] == {"mine": "yes"}


async def test_a_kind_that_the_cluster_lacks_is_named(harness: Any) -> None:
    harness.apply(harness.module(), harness.route())
    unknown = {"reason": "NotFound", "message": "the server could not find the requested resource"}
    harness.api.faults.append(("PATCH", "/httproutes/", 404, unknown))
    operator = await harness.operator()
    await operator.round()
    status, reason, message = harness.conditions("Module", "blog")["Accepted"]
    assert (status, reason) == ("False", "ApiRefused")
    assert "HTTPRoute" in message
    assert "edge.kind" in message


async def test_dependencies_are_waited_for(harness: Any) -> None:
    harness.apply(harness.module(dependencies=[{"module": "shop", "version": ">=1"}]))
    await harness.converge()
    assert harness.conditions("Module", "blog")["DependenciesReady"][1] == "DependencyMissing"
    assert not harness.api.find("Deployment")
    harness.apply(harness.module("shop"))
    await harness.converge()
    assert (harness.phase("shop"), harness.phase("blog")) == ("Running", "Running")


async def test_secrets_are_fingerprinted_and_never_shown(harness: Any) -> None:
    harness.apply(harness.module(secretRefs=[{"name": "mine"}]))
    await harness.converge()
    assert harness.conditions("Module", "blog")["Accepted"][1] == "SecretMissing"
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "mine"},
        "data": {"key": "aGlkZGVuIHZhbHVl"},
    }
    harness.api.put(secret | {"metadata": {"name": "mine", "namespace": "default"}})
    await harness.converge()
    assert harness.phase() == "Running"
    (module,) = harness.api.find("Module")
    first = module["status"]["revision"]
    harness.api.put(secret | {"metadata": {"name": "mine", "namespace": "default"}, "data": {"key": "bmV3"}})
    await harness.converge()
    (module,) = harness.api.find("Module")
    assert module["status"]["revision"] != first
    others = [one for one in harness.api.objects.values() if one["kind"] != "Secret"]
    assert "aGlkZGVuIHZhbHVl" not in json.dumps(others)
    assert "hidden value" not in json.dumps(others)


async def test_a_namespace_that_is_going_away_is_no_trouble(harness: Any) -> None:
    harness.apply(harness.module())
    message = "unable to create new content in namespace default because it is being terminated"
    harness.api.faults.append(
        ("PATCH", "/serviceaccounts/blog", 403, {"reason": "Forbidden", "message": message})
    )
    operator = await harness.operator()
    with pytest.raises(ApiError) as error:
        await operator.round()
    assert error.value.terminating


async def test_the_signing_keys_are_made_once(harness: Any) -> None:
    first, second = await harness.operator(), await harness.operator()
    assert first.context.keys == second.context.keys
    assert "PRIVATE" not in repr(first.context.keys)
    (secret,) = harness.api.find("Secret", "moorage-policy-signing")
    secret["data"] = {}
    harness.api.put(secret)
    with pytest.raises(Exception, match="restore it from a backup"):
        await harness.operator()
    assert kinds.SECRET.path("moorage-system", "moorage-policy-signing") in harness.api.objects
