"""The kinds that the operator reads and writes, and their paths in the Kubernetes API."""

from dataclasses import dataclass
from typing import Final

from moorage_crds.v1alpha1.base import API_VERSION


@dataclass(frozen=True, slots=True)
class Kind:
    """One namespaced kind. ``api_version`` is ``group/version``, or ``v1`` for the core group."""

    api_version: str
    kind: str
    plural: str

    @property
    def group(self) -> str:
        """The API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """The version within the group."""
        return self.api_version.rpartition("/")[2]

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL's path of a collection (``namespace`` absent: of the whole cluster), an object or a part of it.

        Raises:
            ValueError: a name would lead to another object than the one it names.
        """
        for part in (namespace, name):
            if part is not None and ("/" in part or "%" in part or part in ("", ".", "..")):
                raise ValueError(f"{part!r} is not the name of an object")
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if namespace is not None:
            parts.append(f"namespaces/{namespace}")
        parts += [part for part in (self.plural, name, subresource) if part is not None]
        return "/".join(parts)


MODULE: Final = Kind(API_VERSION, "Module", "modules")
ROUTE: Final = Kind(API_VERSION, "Route", "routes")
PERMISSION: Final = Kind(API_VERSION, "Permission", "permissions")
DEPLOYMENT: Final = Kind("apps/v1", "Deployment", "deployments")
JOB: Final = Kind("batch/v1", "Job", "jobs")
SERVICE: Final = Kind("v1", "Service", "services")
SERVICE_ACCOUNT: Final = Kind("v1", "ServiceAccount", "serviceaccounts")
CONFIG_MAP: Final = Kind("v1", "ConfigMap", "configmaps")
SECRET: Final = Kind("v1", "Secret", "secrets")
POD: Final = Kind("v1", "Pod", "pods")
NETWORK_POLICY: Final = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
INGRESS: Final = Kind("networking.k8s.io/v1", "Ingress", "ingresses")
HTTP_ROUTE: Final = Kind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes")
POD_DISRUPTION_BUDGET: Final = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
LEASE: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")
EVENT: Final = Kind("events.k8s.io/v1", "Event", "events")

RESOURCES: Final = (MODULE, ROUTE, PERMISSION)
"""What people write."""
CHILDREN: Final = (
    DEPLOYMENT,
    JOB,
    SERVICE,
    SERVICE_ACCOUNT,
    CONFIG_MAP,
    NETWORK_POLICY,
    INGRESS,
    HTTP_ROUTE,
    POD_DISRUPTION_BUDGET,
)
"""What the operator makes and watches. Secrets are made and never watched: that would need the right to list them."""

_BY_NAME: Final = {(kind.api_version, kind.kind): kind for kind in (*RESOURCES, *CHILDREN, SECRET, POD)}


def find(api_version: str, kind: str) -> Kind:
    """The kind of that name; raises `KeyError` for what the operator has nothing to do with."""
    return _BY_NAME[api_version, kind]


def known(api_version: str, kind: str) -> bool:
    """Whether `find` knows the kind."""
    return (api_version, kind) in _BY_NAME
