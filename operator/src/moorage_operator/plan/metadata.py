"""Metadata of the objects that belong to a module."""

from moorage_crds.v1alpha1 import Module
from moorage_operator.plan import names
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest


def owner_reference(module: Module) -> list[Manifest]:
    """The reference by which Kubernetes removes the object with its Module; empty in `plan`, where there is no UID."""
    if module.metadata.uid is None:
        return []
    return [
        {
            "apiVersion": module.api_version,
            "kind": module.kind,
            "name": module.metadata.name,
            "uid": module.metadata.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def object_metadata(
    module: Module,
    settings: PlatformSettings,
    name: str | None = None,
    *,
    extra_labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> Manifest:
    """Name (default: the Module's), namespace, labels and owner of an object of *module*."""
    metadata: Manifest = {
        "name": name or module.metadata.name,
        "namespace": module.metadata.namespace,
        "labels": names.labels(module.metadata.name, module.spec.version, settings.installation)
        | (extra_labels or {}),
    }
    if annotations:
        metadata["annotations"] = annotations
    references = owner_reference(module)
    if references:
        metadata["ownerReferences"] = references
    return metadata
