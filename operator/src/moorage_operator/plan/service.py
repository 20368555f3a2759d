"""The Service and the ServiceAccount of a module."""

from moorage_crds.v1alpha1 import Module
from moorage_operator.plan import names
from moorage_operator.plan.metadata import object_metadata
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest

SERVICE_PORT = 80


def service(module: Module, settings: PlatformSettings) -> Manifest:
    """``http://<module>.<namespace>.svc``: the guard's port, and no other."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": object_metadata(module, settings),
        "spec": {
            "type": "ClusterIP",
            "selector": names.pod_selector(module.metadata.name),
            "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def service_account(module: Module, settings: PlatformSettings) -> Manifest:
    """The module's identity towards other modules; its pods get no token for the Kubernetes API."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": object_metadata(module, settings),
        "automountServiceAccountToken": False,
    }
