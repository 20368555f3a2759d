"""The NetworkPolicy of a module's pods."""

from moorage_crds.v1alpha1 import Module
from moorage_operator.plan import container, names
from moorage_operator.plan.metadata import object_metadata
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest


def network_policy(module: Module, settings: PlatformSettings) -> Manifest:
    """Default deny for what comes in, migrations included: the guard's port is open, the admin port to the core alone.

    The guard decides who may call, so its port takes any source. Kubelet's probes come from the node, which no policy
    stops. What goes out is left alone: the operator cannot know what a module talks to.
    """
    core = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.core_namespace}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": object_metadata(module, settings),
        "spec": {
            "podSelector": {"matchLabels": {names.LABEL_MODULE: module.metadata.name}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"ports": [{"port": container.HTTP_PORT, "protocol": "TCP"}]},
                {"from": [core], "ports": [{"port": container.ADMIN_PORT, "protocol": "TCP"}]},
            ],
        },
    }
