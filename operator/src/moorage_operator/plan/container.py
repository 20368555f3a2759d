"""Parts that the pods of a module share: security, environment, mounted files, resources."""

import json
from typing import Any, Final

from moorage_crds.v1alpha1 import Module
from moorage_operator.plan import names
from moorage_operator.plan.settings import PlatformSettings, ResourceDefaults
from moorage_operator.plan.world import Manifest

USER: Final = 65532
"""The user and group that every container runs as (Distroless' `nonroot`)."""
HTTP_PORT: Final = 8080
ADMIN_PORT: Final = 9901
CONFIG_DIR: Final = "/etc/moorage/config"
SECRETS_DIR: Final = "/etc/moorage/secrets"
REDIS_KEY: Final = "redis_url"
"""The key of a Secret by which settings read `redis.url`."""
POLICY_DIR: Final = "/etc/moorage/policy"
TOKEN_DIR: Final = "/var/run/secrets/moorage"  # noqa: S105 - a folder
MODULE_AUDIENCE: Final = "moorage"
"""The audience of modules' own tokens."""
TOKEN_LIFETIME: Final = 3600
"""Seconds; kubelet renews it at 80 %."""
SCRATCH_LIMIT: Final = "256Mi"


def security_context() -> Manifest:
    """What the *restricted* pod security level asks of a container, and a read-only root file system."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod_security_context() -> Manifest:
    """The pod's part: `fsGroup` lets the user read the projected token."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def variables(pairs: dict[str, str]) -> list[Manifest]:
    """Environment variables in the order given."""
    return [{"name": name, "value": value} for name, value in pairs.items()]


def secret_variable(name: str, secret: str, key: str) -> Manifest:
    """An environment variable whose value is in a Secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def identity(module: Module, settings: PlatformSettings) -> dict[str, str]:
    """The variables by which a process knows what it is and where its files are."""
    return {
        "MOORAGE_INSTALLATION": settings.installation,
        "MOORAGE_NAMESPACE": module.metadata.namespace or "default",
        "MOORAGE_MODULE": module.metadata.name,
        "MOORAGE_VERSION": module.spec.version,
        "MOORAGE_CONFIG_DIR": CONFIG_DIR,
        "MOORAGE_SECRETS_DIR": SECRETS_DIR,
        "MOORAGE_POLICY_DIR": POLICY_DIR,
        "MOORAGE_CORE_NAMESPACE": settings.core_namespace,
    }


def platform_variables(module: Module, settings: PlatformSettings) -> dict[str, str]:
    """Where the installation's services are; only what is set."""
    kafka = settings.kafka
    wanted = {
        "REDIS_URL": settings.redis.url,
        "KAFKA_BROKERS": kafka.brokers,
        "KAFKA_PARTITIONS": str(kafka.partitions) if kafka.brokers else None,
        "KAFKA_REPLICATION": str(kafka.replication) if kafka.brokers else None,
        "OTEL_EXPORTER_OTLP_ENDPOINT": settings.otlp.endpoint,
        # What is built on the kernel knows its name, and the namespace besides.
        "OTEL_SERVICE_NAME": module.metadata.name if settings.otlp.endpoint and not module.spec.app else None,
    }
    return {name: value for name, value in wanted.items() if value is not None} | _events(module)


def _events(module: Module) -> dict[str, str]:
    """What the module declared about events, which its process is held to: JSON, as settings read lists."""
    events = module.spec.events
    if events is None:
        return {}
    return {
        "EVENTS_PUBLISHES": json.dumps(events.publishes),
        "EVENTS_SUBSCRIBES": json.dumps([one.model_dump(mode="json") for one in events.subscribes]),
    }


def user_variables(module: Module) -> dict[str, str]:
    """`spec.env`; a name given twice has its last value, as Kubernetes has it."""
    return {entry.name: entry.value for entry in module.spec.env}


def environment(base: dict[str, str], secret: list[Manifest], module: Module) -> list[Manifest]:
    """One container's environment: the platform's names win over `spec.env`, which could not know better."""
    taken = {*base, *(entry["name"] for entry in secret)}
    own = {name: value for name, value in user_variables(module).items() if name not in taken}
    return [*variables(base), *secret, *variables(own)]


def resources(module: Module, defaults: ResourceDefaults) -> Manifest:
    """Requests and limits: what the Module says, else the installation's defaults, field by field."""
    result: Manifest = {}
    for part in ("requests", "limits"):
        own, default = getattr(module.spec.resources, part), getattr(defaults, part)
        result[part] = _amounts(own.cpu or default.cpu, own.memory or default.memory)
    return {part: amounts for part, amounts in result.items() if amounts}


def default_resources(defaults: ResourceDefaults) -> Manifest:
    """Requests and limits of a container that is not the Module's own."""
    parts = {
        "requests": _amounts(defaults.requests.cpu, defaults.requests.memory),
        "limits": _amounts(defaults.limits.cpu, defaults.limits.memory),
    }
    return {part: amounts for part, amounts in parts.items() if amounts}


def _amounts(cpu: str | None, memory: str | None) -> dict[str, str]:
    return {name: value for name, value in (("cpu", cpu), ("memory", memory)) if value is not None}


def config_volume(config_map: str) -> tuple[Manifest, Manifest]:
    """Volume and mount of the module's configuration layer."""
    return (
        {"name": "config", "configMap": {"name": config_map}},
        {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
    )


def secrets_volume(module: Module) -> tuple[Manifest, Manifest] | None:
    """Volume and mount with the keys of every Secret in `spec.secretRefs` that is the module's own; ``None``: there are
    none.
    """
    sources: list[Any] = [
        {"secret": {"name": ref.name, "optional": ref.optional}}
        for ref in module.spec.secret_refs
        if not ref.guard
    ]
    return _projected("secrets", sources)


def guard_secrets_volume(module: Module) -> tuple[Manifest, Manifest] | None:
    """Volume and mount of what the sidecar alone sees: where it counts, with a password; ``None``: nothing."""
    items = [{"key": REDIS_KEY, "path": REDIS_KEY}]
    sources: list[Any] = [
        {"secret": {"name": ref.name, "optional": ref.optional, "items": items}}
        for ref in module.spec.secret_refs
        if ref.guard
    ]
    return _projected("guard-secrets", sources)


def _projected(name: str, sources: list[Any]) -> tuple[Manifest, Manifest] | None:
    if not sources:
        return None
    return (
        {"name": name, "projected": {"sources": sources}},
        {"name": name, "mountPath": SECRETS_DIR, "readOnly": True},
    )


def policy_volume(module: str) -> tuple[Manifest, Manifest]:
    """Volume and mount of the signed policy: whole, never by `subPath`, which would freeze it."""
    return (
        {"name": "policy", "configMap": {"name": names.policy_name(module)}},
        {"name": "policy", "mountPath": POLICY_DIR, "readOnly": True},
    )


def token_volume() -> tuple[Manifest, Manifest]:
    """Volume and mount of the token by which a module proves to others who it is; worthless at the Kubernetes API."""
    source = {
        "serviceAccountToken": {
            "audience": MODULE_AUDIENCE,
            "expirationSeconds": TOKEN_LIFETIME,
            "path": "token",
        }
    }
    return (
        {"name": "token", "projected": {"sources": [source]}},
        {"name": "token", "mountPath": TOKEN_DIR, "readOnly": True},
    )


def scratch_volume() -> tuple[Manifest, Manifest]:
    """A writable ``/tmp``, the only one."""
    return {"name": "tmp", "emptyDir": {"sizeLimit": SCRATCH_LIMIT}}, {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108
