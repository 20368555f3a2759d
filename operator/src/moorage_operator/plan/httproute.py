"""HTTPRoutes (Gateway API): one per host, with the prefixes of the module's Routes."""

from collections.abc import Sequence

from moorage_crds import checks
from moorage_crds.v1alpha1 import Module, Route
from moorage_operator.plan import claims, names
from moorage_operator.plan.metadata import object_metadata
from moorage_operator.plan.service import SERVICE_PORT
from moorage_operator.plan.settings import GatewayRef, PlatformSettings
from moorage_operator.plan.world import Manifest

MAX_MATCHES = 64
"""Of one HTTPRoute rule (Gateway API v1.2 and later); with more prefixes the host gets another HTTPRoute."""


def http_routes(
    module: Module, routes: Sequence[Route], settings: PlatformSettings, gateway: GatewayRef
) -> list[Manifest]:
    """The HTTPRoutes of *module*. Methods and captures stay with the guard: the edge gets prefixes alone.

    No timeout is set: the guard has one for each rule, and an edge that gives up earlier would hide its answer.
    """
    result: list[Manifest] = []
    for host in sorted({host for route in routes for host in claims.hosts(route)}):
        here = [route for route in routes if host in claims.hosts(route)]
        found = list(checks.places(here).items())
        chunks = [found[at : at + MAX_MATCHES] for at in range(0, len(found), MAX_MATCHES)]
        for part, chunk in enumerate(chunks):
            result.append(_http_route(module, settings, gateway, host, chunk, part))
    return result


def _http_route(
    module: Module,
    settings: PlatformSettings,
    gateway: GatewayRef,
    host: str,
    found: Sequence[tuple[str, bool]],
    part: int,
) -> Manifest:
    parent = {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "name": gateway.name,
        "namespace": gateway.namespace,
    }
    if gateway.section_name is not None:
        parent["sectionName"] = gateway.section_name
    matches = [
        {"path": {"type": "Exact" if exact else "PathPrefix", "value": prefix}} for prefix, exact in found
    ]
    backend = {
        "group": "",
        "kind": "Service",
        "name": module.metadata.name,
        "port": SERVICE_PORT,
        "weight": 1,
    }
    spec: Manifest = {"parentRefs": [parent], "rules": [{"matches": matches, "backendRefs": [backend]}]}
    if host:
        spec["hostnames"] = [host]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": object_metadata(module, settings, names.edge_name(module.metadata.name, host, part)),
        "spec": spec,
    }
