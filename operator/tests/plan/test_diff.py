"""Live against planned: what counts as a difference, what is undone, what may be pruned."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_operator.plan import diff
from moorage_operator.plan.diff import Ref

PLANNED: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "blog", "labels": {"a": "b"}},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"x": "y"}},
        "containers": [
            {
                "name": "app",
                "env": [{"name": "A", "value": "1"}, {"name": "EMPTY", "value": ""}],
                "resources": {"limits": {"memory": "0.5Gi"}, "requests": {}},
            }
        ],
    },
}


def live(change: Any = None) -> Any:
    """PLANNED as the API server gives it back: with defaults, in its own spelling; *change* edits it."""
    found = copy.deepcopy(PLANNED)
    found["metadata"] |= {"uid": "u", "resourceVersion": "7", "annotations": {"someone": "else"}}
    found["metadata"]["labels"]["theirs"] = "too"
    found["spec"]["progressDeadlineSeconds"] = 600
    (app,) = found["spec"]["containers"]
    app |= {"terminationMessagePath": "/dev/termination-log", "resources": {"limits": {"memory": "512Mi"}}}
    app["env"] = [{"name": "A", "value": "1"}, {"name": "EMPTY"}]
    if change is not None:
        change(found)
    return found


def found(change: Any) -> list[str]:
    return [".".join(one.path) for one in diff.differences(PLANNED, live(change))]


def test_defaults_spelling_and_others_metadata_are_no_difference() -> None:
    assert diff.differences(PLANNED, live()) == []


def _extra_env(one: Any) -> None:
    one["spec"]["containers"][0]["env"].append({"name": "EVIL", "value": "1"})


def _reorder(one: Any) -> None:
    one["spec"]["containers"][0]["env"].reverse()


CHANGES = [
    (lambda one: one["spec"].update(replicas=3), ["spec.replicas"]),
    (lambda one: one["spec"].pop("replicas"), ["spec.replicas"]),
    (lambda one: one["metadata"]["labels"].pop("a"), ["metadata.labels.a"]),
    (lambda one: one["spec"]["selector"]["matchLabels"].update(evil="1"), ["spec.selector.matchLabels.evil"]),
    (_extra_env, ["spec.containers.[app].env.[EVIL]"]),
    (lambda one: one["spec"]["containers"].append({"name": "more"}), ["spec.containers.[more]"]),
    (
        lambda one: one["spec"]["containers"][0]["resources"]["limits"].update(memory="513Mi"),
        ["spec.containers.[app].resources.limits.memory"],
    ),
    (_reorder, []),
]


@pytest.mark.parametrize(("change", "paths"), CHANGES)
def test_what_counts_as_a_difference(change: Any, paths: list[str]) -> None:
    assert found(change) == paths


def test_a_repair_patch_undoes_every_difference() -> None:
    """Lists are written whole, extra keys become null."""

    def spoil(one: Any) -> None:
        _extra_env(one)
        one["spec"]["selector"]["matchLabels"]["evil"] = "1"
        one["spec"]["replicas"] = 3

    patch = diff.repair_patch(PLANNED, diff.differences(PLANNED, live(spoil)))
    assert patch == {
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"evil": None}},
            "containers": PLANNED["spec"]["containers"],
        }
    }


def test_the_stamp_shows_a_field_that_is_no_longer_planned() -> None:
    less = copy.deepcopy(PLANNED)
    del less["spec"]["replicas"]
    was = diff.stamp(PLANNED)
    assert diff.differences(diff.stamp(PLANNED), was) == []
    assert [one.path[-1] for one in diff.differences(diff.stamp(less), was)] == ["moorage.dev/applied"]


JSON = st.recursive(
    st.integers() | st.text(max_size=5) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_an_object_contains_itself(content: dict[str, Any]) -> None:
    assert diff.differences({"spec": content}, {"spec": copy.deepcopy(content)}) == []


@pytest.mark.parametrize(
    ("one", "other"), [("128Mi", "134217728"), ("0.5", "500m"), ("1Gi", "1024Mi"), ("1k", "1000"), (2, "2")]
)
def test_amounts_are_compared_by_value(one: Any, other: Any) -> None:
    assert diff.quantity(one) == diff.quantity(other) is not None


def test_words_are_no_amounts() -> None:
    assert diff.quantity("many") is None
    assert diff.quantity("") is None


def test_pruning_keeps_what_old_pods_may_read_and_never_an_owners_access() -> None:
    old_config, old_access = Ref("v1", "ConfigMap", "b-config-1"), Ref("v1", "Secret", "b-database-1")
    migration, route = (
        Ref("v1", "Secret", "b-migrate-1"),
        Ref("gateway.networking.k8s.io/v1", "HTTPRoute", "b"),
    )
    kept = Ref("v1", "Service", "b")
    inventory = [old_config, old_access, migration, route, kept]
    assert set(diff.prunable(inventory, {kept}, module="b", rolled_out=False)) == {migration, route}
    assert set(diff.prunable(inventory, {kept}, module="b", rolled_out=True)) == set(inventory) - {kept}


def test_an_inventory_that_somebody_edited_is_read_as_far_as_it_makes_sense() -> None:
    item = {"apiVersion": "v1", "kind": "Service", "name": "b"}
    assert diff.inventory_of([item, {"kind": "Service"}, {"apiVersion": 1, "kind": 2, "name": 3}]) == [
        Ref("v1", "Service", "b")
    ]
