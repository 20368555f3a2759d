"""Names of everything that a module owns, and the labels on it."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from moorage.guard.policy import canonical_json

LABEL_MODULE: Final = "moorage.dev/module"
LABEL_REVISION: Final = "moorage.dev/revision"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
COMPONENT_SERVER: Final = "server"
COMPONENT_MIGRATION: Final = "migration"
ANNOTATION_APPLIED: Final = "moorage.dev/applied"
"""Hash of what the operator last applied: shows fields that it no longer wants, which a subset comparison cannot."""
ANNOTATION_POLICY: Final = "moorage.dev/policy-sequence"
"""On pods: a change of it makes kubelet read mounted ConfigMaps at once instead of within 80 s."""
ANNOTATION_SECRETS: Final = "moorage.dev/secrets"
"""On pods: fingerprints of the Secrets in `spec.secretRefs`, so that one can see why a revision is a new one."""
ANNOTATION_ADOPT: Final = "moorage.dev/adopt-database"
ANNOTATION_ATTEMPT: Final = "moorage.dev/attempt"
FINALIZER_DATABASE: Final = "moorage.dev/database"
FIELD_MANAGER: Final = "moorage"

MAX_IDENTIFIER: Final = 63
"""Bytes of a PostgreSQL identifier (NAMEDATALEN - 1), and characters of a label value."""


def digest(value: Any, length: int = 10) -> str:
    """Hash JSON-like *value* into *length* hexadecimal characters; equal values give equal hashes."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:length]


def content_name(module: str, what: str, content: Any) -> str:
    """Name an object by its content, as in ``blog-config-3f9a1c02de``: at most 40 + 1 + what + 11 characters."""
    return f"{module}-{what}-{digest(content)}"


def migration_name(module: str, revision: str) -> str:
    """Name the migration Job of a revision (and the Secret with the owner's DSN): at most 59 characters."""
    return f"{module}-migrate-{revision}"


def policy_name(module: str) -> str:
    """Name the ConfigMap with the signed policy."""
    return f"{module}-policy"


def edge_name(module: str, host: str, part: int = 0) -> str:
    """Name the HTTPRoute or Ingress for one *host* (empty: every host), and its *part* where one is not enough."""
    name = module if not host else f"{module}-{digest(host, 8)}"
    return name if part == 0 else f"{name}-{part}"


def label_value(text: str) -> str:
    """Turn *text* into a valid label value: what a label may not hold becomes ``_``, at most 63 characters."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]", "_", text)[:MAX_IDENTIFIER]
    return cleaned.strip("._-")


def labels(module: str, version: str, installation: str) -> dict[str, str]:
    """The labels of every object of a module."""
    return {
        "app.kubernetes.io/name": module,
        "app.kubernetes.io/instance": module,
        "app.kubernetes.io/version": label_value(version),
        "app.kubernetes.io/managed-by": "moorage",
        "app.kubernetes.io/part-of": label_value(installation),
        LABEL_MODULE: module,
    }


def pod_selector(module: str) -> dict[str, str]:
    """The labels that pick a module's serving pods, and not those of its migrations. Never change: it is immutable."""
    return {LABEL_MODULE: module, LABEL_COMPONENT: COMPONENT_SERVER}


@dataclass(frozen=True, slots=True)
class DatabaseNames:
    """The schema and the two roles of one (installation, namespace, module), and the claim's subject."""

    installation: str
    namespace: str
    module: str
    schema: str
    owner: str
    app: str


def database_names(installation: str, namespace: str, module: str) -> DatabaseNames:
    """Name a module's schema and roles; each at most 63 bytes, different for different modules.

    Neither part of ``<namespace>_<module>`` holds an underscore, so that no two pairs share a name. What is too long
    is cut and gets a hash behind a double underscore, which no short name has. Roles are shared by all databases of a
    server, hence the hash of the installation's name in them.
    """
    schema = f"{namespace}_{module}"
    if len(schema.encode()) > MAX_IDENTIFIER:
        suffix = digest([namespace, module], 16)
        schema = f"{schema[: MAX_IDENTIFIER - len(suffix) - 2]}__{suffix}"
    roles = f"mg_{digest([installation, namespace, module], 20)}"
    return DatabaseNames(
        installation=installation,
        namespace=namespace,
        module=module,
        schema=schema,
        owner=f"{roles}_owner",
        app=f"{roles}_app",
    )
