"""Who of the installation gets which place, from what the store holds."""

from typing import Any

import pytest

from moorage_operator.apply.kinds import HTTP_ROUTE, INGRESS, MODULE, ROUTE, Kind
from moorage_operator.plan.settings import parse_settings
from moorage_operator.reconcile.resources import Resources
from moorage_operator.reconcile.store import Store

EARLY, LATE = "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z"


class Cluster:
    """Two namespaces: `shop/bank` serves ``/bank``, and the older `evil/trap` serves ``/trap`` and wants more."""

    def __init__(self) -> None:
        self.store = Store()
        self.resources = Resources(
            self.store, parse_settings("edge: {kind: gateway, gateway: {name: e, namespace: infra}}")
        )
        self._version = 0
        for namespace, name, since in (("shop", "bank", LATE), ("evil", "trap", EARLY)):
            inventory = [{"apiVersion": HTTP_ROUTE.api_version, "kind": "HTTPRoute", "name": name}]
            spec = {"version": "1.0.0", "image": "acme/x:1", "app": "x:module"}
            self.put(MODULE, namespace, name, spec, since, status={"inventory": inventory})
            self.route(namespace, name, f"/{name}", since)
            self.edge(HTTP_ROUTE, namespace, name, name, f"/{name}")

    def put(self, kind: Kind, namespace: str, name: str, spec: Any, since: str = LATE, **more: Any) -> None:
        self._version += 1
        metadata = {
            "name": name,
            "namespace": namespace,
            "uid": f"{kind.kind}-{namespace}-{name}",
            "resourceVersion": str(self._version),
            "generation": self._version,
            "creationTimestamp": since,
            "labels": more.pop("labels", {}),
        }
        content = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec}
        self.store.put(kind, content | more)

    def route(self, namespace: str, module: str, prefix: str, since: str) -> None:
        rules = [{"name": "a", "path": "/login", "methods": ["POST"], "auth": "none"}]
        spec = {"module": module, "prefix": prefix, "rules": rules}
        # What it was given at first: an edit of the spec leaves the status, which only the operator writes.
        self.put(ROUTE, namespace, module, spec, since, status={"places": [f"/{module}"]})

    def edge(self, kind: Kind, namespace: str, name: str, module: str, path: str) -> None:
        if kind is HTTP_ROUTE:
            spec: Any = {"rules": [{"matches": [{"path": {"type": "PathPrefix", "value": path}}]}]}
        else:
            spec = {"rules": [{"http": {"paths": [{"path": path, "pathType": "Prefix", "backend": {}}]}}]}
        self.put(kind, namespace, name, spec, labels={"moorage.dev/module": module})

    def refused(self) -> set[str]:
        return {
            name
            for key in (("shop", "bank"), ("evil", "trap"))
            for name in self.resources.refused_claims(key)
        }


def test_places_that_do_not_meet_are_both_accepted() -> None:
    assert Cluster().refused() == set()


def test_who_serves_a_place_keeps_it_from_an_older_route_that_is_edited() -> None:
    cluster = Cluster()
    cluster.route("evil", "trap", "/bank", EARLY)
    assert cluster.refused() == {"trap"}


@pytest.mark.parametrize("kind", [INGRESS, HTTP_ROUTE])
@pytest.mark.parametrize("name", ["trap", "forged"])
def test_an_edge_object_gives_no_place_genuine_or_not(kind: Kind, name: str) -> None:
    """Whoever may write Ingresses in his namespace could else take another namespace's traffic."""
    cluster = Cluster()
    cluster.edge(kind, "evil", name, "trap", "/bank")
    cluster.route("evil", "trap", "/bank", EARLY)
    assert cluster.refused() == {"trap"}
