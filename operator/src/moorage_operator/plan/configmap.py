"""ConfigMaps: the module's configuration layer, and its signed policy."""

import yaml

from moorage.guard.policy import BASE_FILE, SIGNATURE_FILE, TRUST_FILE
from moorage_crds.v1alpha1 import Module
from moorage_operator.plan import names
from moorage_operator.plan.metadata import object_metadata
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest

CONFIG_FILE = "module.yaml"


def config_map(module: Module, settings: PlatformSettings) -> Manifest:
    """`spec.config` as a file. Named by its content: a pod of an old revision must never read a new configuration."""
    data = {CONFIG_FILE: yaml.safe_dump(module.spec.config, sort_keys=True, width=1000)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": object_metadata(
            module, settings, names.content_name(module.metadata.name, "config", data)
        ),
        "data": data,
        "immutable": True,
    }


def policy_config_map(
    module: Module, settings: PlatformSettings, *, document: str, signature: str, trust: str
) -> Manifest:
    """The policy that the pods mount. One object with a fixed name: running pods are to read what changes."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": object_metadata(module, settings, names.policy_name(module.metadata.name)),
        "data": {BASE_FILE: document, SIGNATURE_FILE: signature, TRUST_FILE: trust},
    }
