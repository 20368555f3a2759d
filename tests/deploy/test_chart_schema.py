"""values.schema.json: wrong values are refused before anything reaches a cluster, by name."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from moorage_operator.plan.settings import PlatformSettings

TryTemplate = Callable[..., subprocess.CompletedProcess[str]]

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"replica": 2}, "'replica' not allowed"),
    ({"replicas": "two"}, "/replicas"),
    ({"installation": "My Shop"}, "/installation"),
    ({"namespaces": ["Shop"]}, "/namespaces/0"),
    ({"jwksUri": "id.example.com/jwks.json"}, "/jwksUri"),
    ({"jwksUri": "https://user:secret@id.example.com/jwks.json"}, "/jwksUri"),
    ({"image": {"tag": 1}}, "/image/tag"),
    ({"image": {"digest": "latest"}}, "/image/digest"),
    ({"database": {"adminSecretRef": "postgres-admin"}}, "/database/adminSecretRef"),
    ({"database": {"modulePort": 70000}}, "/database/modulePort"),
    ({"database": {"statementTimeout": 30}}, "/database/statementTimeout"),
    ({"redis": {"url": "redis://user:secret@redis:6379"}}, "/redis/url"),
    ({"otlp": {"endpoint": "https://user:secret@otel"}}, "/otlp/endpoint"),
    ({"edge": {"kind": "loadbalancer"}}, "/edge/kind"),
    ({"edge": {"kind": "gateway"}}, "/edge/gateway/name"),
    ({"edge": {"publicUrl": "https://example.com/path"}}, "/edge/publicUrl"),
    ({"allow": {"shop": {"hosts": "*"}}}, "/allow/shop/hosts"),
    ({"allow": {"shop": {"host": ["*"]}}}, "'host' not allowed"),
    ({"trustedProxies": ["10.0.0.1"]}, "/trustedProxies/0"),
    ({"defaults": {"migrationTimeout": "10 minutes"}}, "/defaults/migrationTimeout"),
    ({"defaults": {"rateLimit": {"perUser": "many"}}}, "/defaults/rateLimit/perUser"),
    ({"defaults": {"rateLimit": {"perRule": "1/second"}}}, "'perRule' not allowed"),
    ({"env": {"POD_NAME": "x"}}, "/env"),
    ({"networkPolicy": {"egressPorts": []}}, "/networkPolicy/egressPorts"),
]


@pytest.mark.parametrize(
    ("values", "named"), WRONG, ids=lambda case: json.dumps(case) if isinstance(case, dict) else ""
)
def test_a_wrong_value_is_refused_by_name(
    try_template: TryTemplate, values: dict[str, Any], named: str
) -> None:
    done = try_template(values)
    assert done.returncode != 0
    assert named in done.stderr


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    return schema["definitions"][reference.rpartition("/")[2]] if reference else node


def _missing(
    schema: dict[str, Any], node: dict[str, Any], model: type[BaseModel], path: str = ""
) -> list[str]:
    properties = _resolve(schema, node).get("properties", {})
    missing = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key not in properties:
            missing.append(f"{path}{key}")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            missing += _missing(schema, properties[key], field.annotation, f"{path}{key}.")
    return missing


def test_every_setting_of_the_operator_is_a_value_of_the_chart(root: Path) -> None:
    schema = json.loads((root / "charts/moorage/values.schema.json").read_text())
    # Filled in by the chart itself: the release's namespace, and the path where the Secret is mounted.
    assert _missing(schema, schema, PlatformSettings) == ["coreNamespace", "database.adminDsnFile"]


def test_every_object_of_the_schema_refuses_unknown_keys(root: Path) -> None:
    """A misspelt value must not be taken for its default."""
    schema = json.loads((root / "charts/moorage/values.schema.json").read_text())
    loose: list[str] = []

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict):
            if (
                "properties" in node
                and node.get("type") == "object"
                and node.get("additionalProperties") is not False
            ):
                loose.append(path)
            for key, child in node.items():
                walk(child, f"{path}/{key}")

    walk(schema, "")
    assert loose == []
