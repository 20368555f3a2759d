"""Ingress objects: one per host, where the installation has no Gateway API."""

from collections.abc import Mapping, Sequence

from moorage_crds import checks
from moorage_crds.v1alpha1 import Module, Route
from moorage_operator.plan import claims, names
from moorage_operator.plan.metadata import object_metadata
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest


def ingresses(module: Module, routes: Sequence[Route], settings: PlatformSettings) -> list[Manifest]:
    """The Ingress objects of *module*; an Ingress knows no captures, so it gets prefixes like an HTTPRoute."""
    result = []
    for host in sorted({host for route in routes for host in claims.hosts(route)}):
        here = [route for route in routes if host in claims.hosts(route)]
        result.append(_ingress(module, settings, host, checks.places(here)))
    return result


def _ingress(module: Module, settings: PlatformSettings, host: str, found: Mapping[str, bool]) -> Manifest:
    own = settings.edge.ingress
    backend = {"service": {"name": module.metadata.name, "port": {"name": "http"}}}
    rule: Manifest = {
        "http": {
            "paths": [
                {"path": prefix, "pathType": "Exact" if exact else "Prefix", "backend": backend}
                for prefix, exact in found.items()
            ]
        }
    }
    if host:
        rule["host"] = host
    spec: Manifest = {"rules": [rule]}
    if own.class_name is not None:
        spec["ingressClassName"] = own.class_name
    if own.tls_secret_name is not None and host:
        spec["tls"] = [{"hosts": [host], "secretName": own.tls_secret_name}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": object_metadata(
            module,
            settings,
            names.edge_name(module.metadata.name, host),
            annotations=dict(own.annotations) or None,
        ),
        "spec": spec,
    }
