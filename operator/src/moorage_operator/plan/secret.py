"""Secrets: how the pods, and the migration Job, reach the module's schema."""

import base64

from moorage_crds.v1alpha1 import Module
from moorage_operator.plan import names
from moorage_operator.plan.metadata import object_metadata
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import DatabaseAccess, Manifest


def database_secret(module: Module, settings: PlatformSettings, access: DatabaseAccess) -> Manifest:
    """DSNs of the app role. Named by their content: a new password makes a new Secret, and with it a new revision."""
    data = {"dsn": access.dsn}
    if access.direct_dsn is not None:
        data["direct_dsn"] = access.direct_dsn
    return _secret(module, settings, names.content_name(module.metadata.name, "database", data), data)


def migration_secret(module: Module, settings: PlatformSettings, revision: str, dsn: str) -> Manifest:
    """The owner role's DSN, for one migration Job."""
    return _secret(module, settings, names.migration_name(module.metadata.name, revision), {"dsn": dsn})


def _secret(module: Module, settings: PlatformSettings, name: str, data: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": object_metadata(module, settings, name),
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
        "immutable": True,
    }


def hide(manifest: Manifest) -> Manifest:
    """A copy of *manifest* to show to people: of a Secret its keys, never its values."""
    if manifest.get("kind") != "Secret":
        return manifest
    return manifest | {"data": dict.fromkeys(manifest.get("data", {}), "<hidden>")}
