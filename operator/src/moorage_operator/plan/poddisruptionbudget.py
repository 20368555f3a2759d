"""The PodDisruptionBudget of a module with several replicas."""

from moorage_crds.v1alpha1 import Module
from moorage_operator.plan import names
from moorage_operator.plan.metadata import object_metadata
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest


def pod_disruption_budget(module: Module, settings: PlatformSettings) -> Manifest | None:
    """One pod at a time when nodes are drained; ``None`` for a single replica, which would block the drain for ever."""
    if (module.spec.replicas or 1) < 2:
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": object_metadata(module, settings),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": names.pod_selector(module.metadata.name)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
