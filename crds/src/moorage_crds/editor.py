"""JSON Schemas for editors (draft-07): stricter than the CRDs about unknown fields, and only about files.

An editor with yaml-language-server takes one by this first line of a manifest (a path or an address):

    # yaml-language-server: $schema=../../../crds/schemas/moorage.json

`moorage.json` looks at `kind`, so that it serves files which hold several kinds.
"""

from typing import Any

from moorage_crds.crd import KINDS
from moorage_crds.structural import json_schema, paragraphs
from moorage_crds.v1alpha1.base import API_VERSION, ManifestResource

DRAFT = "http://json-schema.org/draft-07/schema#"
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def editor_schema(kind: type[ManifestResource]) -> dict[str, Any]:
    """The schema of one kind, as its author writes it: no status, no unknown field."""
    schema: dict[str, Any] = _clean(json_schema(kind))
    properties = schema["properties"]
    del properties["status"]
    properties["apiVersion"] = {"const": API_VERSION, "description": "Group and version."}
    properties["kind"] = {"const": kind.__name__, "description": schema["description"]}
    properties["metadata"] = {
        "type": "object",
        "description": "Name, namespace, labels and annotations.",
        "required": ["name"],
        "properties": {
            "name": properties["metadata"]["properties"]["name"] | {"description": "Name of the resource."},
            "namespace": {"type": "string", "maxLength": 63, "description": "Absent: the current namespace."},
            "labels": _TEXTS,
            "annotations": _TEXTS,
        },
    }
    required = [
        "apiVersion",
        "kind",
        "metadata",
        *(name for name in schema.get("required", ()) if name == "spec"),
    ]
    return {"$schema": DRAFT, "title": kind.__name__} | schema | {"required": required}


def any_kind() -> dict[str, Any]:
    """The schema of whichever kind a document has."""
    return {
        "$schema": DRAFT,
        "title": "Moorage",
        "description": "A Module, Route or Permission.",
        "allOf": [
            {
                "if": {"required": ["kind"], "properties": {"kind": {"const": kind.__name__}}},
                "then": {"$ref": f"{kind.__name__.lower()}.json"},
            }
            for kind in KINDS
        ],
    }


def _clean(node: Any) -> Any:
    """Without what only the API server or the generators understand, and without titles that repeat names."""
    if isinstance(node, list):
        return [_clean(item) for item in node]
    if not isinstance(node, dict):
        return node
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            result[key] = {name: _clean(part) for name, part in value.items()}
        elif key == "description":
            result[key] = paragraphs(value)
        elif not key.startswith("x-") and key not in {"title", "default"}:
            result[key] = _clean(value)
        elif key == "default" and not isinstance(value, dict | list):
            result[key] = value
    if node.get("x-kubernetes-list-type") == "set":
        result["uniqueItems"] = True
    return result
