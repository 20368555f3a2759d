"""The Deployment of a module, and the revision that it rolls out."""

from typing import Any

from moorage_crds.v1alpha1 import Module
from moorage_operator.plan import names
from moorage_operator.plan.metadata import object_metadata
from moorage_operator.plan.pod import with_revision
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest, World


def revision(module: Module, spec: Manifest, world: World) -> str:
    """Hash everything that a pod's behaviour depends on, but for policy, which reaches running pods by itself.

    Configuration and database access are in *spec* by the names of their objects, which are hashes of the content;
    the Secrets of `spec.secretRefs` keep their names, so their fingerprints come beside it.
    """
    secrets: dict[str, Any] = {ref.name: world.secrets.get(ref.name) for ref in module.spec.secret_refs}
    return names.digest({"pod": spec, "secrets": secrets, "version": module.spec.version})


def secret_fingerprints(template: Manifest) -> dict[str, str]:
    """The fingerprints that a pod template was made with, for whoever may not read the Secrets."""
    text = template.get("metadata", {}).get("annotations", {}).get(names.ANNOTATION_SECRETS, "")
    return dict(entry.split("=", 1) for entry in text.split(",") if "=" in entry)


def deployment(
    module: Module, settings: PlatformSettings, spec: Manifest, revision_: str, world: World
) -> Manifest:
    """The Deployment at revision *revision_*: a new pod serves before an old one goes."""
    selector = names.pod_selector(module.metadata.name)
    revision_label = {names.LABEL_REVISION: revision_}
    pod_labels = names.labels(module.metadata.name, module.spec.version, settings.installation)
    template: Manifest = {
        "metadata": {"labels": pod_labels | selector | revision_label},
        "spec": with_revision(spec, revision_),
    }
    found = {ref.name: world.secrets.get(ref.name) for ref in module.spec.secret_refs}
    if any(found.values()):
        shown = ",".join(f"{name}={found[name]}" for name in sorted(found) if found[name])
        template["metadata"]["annotations"] = {names.ANNOTATION_SECRETS: shown}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": object_metadata(module, settings, extra_labels=revision_label),
        "spec": {
            "replicas": 1 if module.spec.replicas is None else module.spec.replicas,
            "selector": {"matchLabels": selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "revisionHistoryLimit": 2,
            "template": template,
        },
    }
