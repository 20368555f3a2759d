"""The CustomResourceDefinitions of the three kinds, as plain data."""

from typing import Any

from moorage_crds.structural import structural
from moorage_crds.v1alpha1 import Module, Permission, Route
from moorage_crds.v1alpha1.base import GROUP, VERSION, ManifestResource

KINDS: tuple[type[ManifestResource], ...] = (Module, Route, Permission)
_AGE = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}


def _column(name: str, path: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "string", "jsonPath": path, **more}


def _condition(name: str) -> dict[str, Any]:
    return _column(name, f'.status.conditions[?(@.type=="{name}")].status')


COLUMNS: dict[type[ManifestResource], list[dict[str, Any]]] = {
    Module: [
        _column("Phase", ".status.phase"),
        _column("Version", ".spec.version"),
        _column("Ready", ".status.ready"),
        _column("URL", ".status.url", priority=1),
        _AGE,
    ],
    Route: [
        _column("Module", ".spec.module"),
        _column("Prefix", ".spec.prefix"),
        _condition("Accepted"),
        _AGE,
    ],
    Permission: [_column("Roles", ".spec.roles"), _condition("Accepted"), _AGE],
}


def definition(kind: type[ManifestResource]) -> dict[str, Any]:
    """The CustomResourceDefinition (apiextensions.k8s.io/v1) of a kind."""
    singular = kind.__name__.lower()
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": "moorage"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.__name__,
                "listKind": f"{kind.__name__}List",
                "plural": kind.plural,
                "singular": singular,
                "shortNames": [kind.short_name],
                "categories": ["moorage"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": COLUMNS[kind],
                    "schema": {"openAPIV3Schema": structural(kind)},
                }
            ],
        },
    }
