"""The operator's rights are not lent: labels, names and inventories that others write select nothing of theirs."""

from typing import Any

import pytest

from moorage_operator.apply import kinds
from moorage_operator.plan import diff

FOREIGN = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "theirs", "namespace": "default", "labels": {"moorage.dev/module": "blog"}},
    "spec": {"replicas": 1},
}


@pytest.mark.parametrize("name", ["../../other/secrets/x", "a/b", "..", ".", "", "a%2fb"])
def test_a_name_never_leads_out_of_its_collection(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of an object"):
        kinds.SECRET.path("default", name)
    with pytest.raises(ValueError, match="not the name of an object"):
        kinds.SECRET.path(name, "x")
    assert diff.inventory_of([{"apiVersion": "v1", "kind": "Secret", "name": name}]) == []


@pytest.mark.postgres
async def test_dropping_a_module_deletes_no_deployment_that_only_bears_its_label(harness: Any) -> None:
    harness.apply(harness.module(database={"onDelete": "Drop"}))
    await harness.converge()
    harness.api.put(FOREIGN)
    harness.delete("Module", "blog")
    await (await harness.operator()).round()
    assert harness.api.find("Deployment", "theirs")


@pytest.mark.postgres
async def test_an_inventory_with_foreign_and_unknown_entries_deletes_nothing_and_stops_nothing(
    harness: Any,
) -> None:
    """Who may write status, or another release, may have put anything there."""
    harness.apply(harness.module())
    await harness.converge()
    harness.api.put({**FOREIGN, "apiVersion": "v1", "kind": "Service"})
    (module,) = harness.api.find("Module")
    forged = [
        ("v1", "Node", "n1"),
        ("v1", "Service", "theirs"),
        ("v1", "Secret", "../../kube-system/secrets/x"),
    ]
    entries = [{"apiVersion": version, "kind": kind, "name": name} for version, kind, name in forged]
    changed = module | {"status": module["status"] | {"inventory": module["status"]["inventory"] + entries}}
    harness.api.put(changed)
    await harness.converge()
    assert harness.api.find("Service", "theirs")
    assert harness.api.find("Deployment", "blog")
