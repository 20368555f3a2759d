"""The CRDs are structural, bounded, and cheap enough for the API server, as far as one can tell without one."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from moorage_crds import crd, structural
from moorage_crds.v1alpha1 import Module
from moorage_crds.v1alpha1.base import ManifestResource

SCHEMAS = {kind.__name__: structural.structural(kind) for kind in crd.KINDS}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_schemas_are_structural_and_bounded(kind: str) -> None:
    assert list(structural.violations(SCHEMAS[kind])) == []


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({}, "has no type"),
        ({"type": "null"}, "has no type"),
        ({"type": "string"}, "without maxLength"),
        ({"type": "integer"}, "without bounds"),
        ({"type": "array", "items": {"type": "boolean"}}, "without maxItems"),
        ({"type": "array", "maxItems": 3}, "of which nothing is said"),
        ({"type": "object"}, "of which nothing is said"),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, "without maxProperties"),
        ({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["b"]}, "requires `b`"),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "boolean"}},
                "additionalProperties": {"type": "boolean"},
                "maxProperties": 1,
            },
            "both properties and additionalProperties",
        ),
        ({"type": "boolean", "anyOf": [{"type": "null"}]}, "anyOf"),
        ({"type": "boolean", "nullable": True}, "nullable"),
        ({"x-kubernetes-int-or-string": True, "type": "string", "maxLength": 3}, "int-or-string"),
        (
            {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "maxLength",
        ),
        (
            {
                "type": "array",
                "maxItems": 3,
                "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}},
            },
            "neither required nor",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_structural_is_found(schema: dict[str, Any], part: str) -> None:
    assert any(part in sentence for sentence in structural.violations(schema))


class Recursive(BaseModel):
    inner: "list[Recursive]" = []


class Choice(BaseModel):
    value: int | str


@pytest.mark.parametrize(
    ("spec", "message"), [(Recursive, "contains itself"), (Choice, "choice between types")]
)
def test_what_a_crd_cannot_say_is_refused(spec: type[BaseModel], message: str) -> None:
    kind = type("Odd", (ManifestResource,), {"__annotations__": {"spec": spec}, "__module__": __name__})
    with pytest.raises(ValueError, match=message):
        structural.structural(kind)


def test_exclusive_bounds_become_inclusive_ones() -> None:
    node = structural._node({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10})
    assert (node["minimum"], node["maximum"]) == (1, 9)
    with pytest.raises(ValueError, match="exclusiveMinimum"):
        structural._node({"type": "number", "exclusiveMinimum": 0})


def nodes(
    schema: dict[str, Any], path: str = "", times: int = 1
) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Every part of a schema with how often it can occur in one object."""
    yield path, schema, times
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}", times)
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]", times * schema["maxItems"])
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}.*", times * schema["maxProperties"])


def cost(rule: str, schema: dict[str, Any]) -> int:
    """An upper bound, rougher than the API server's: passes over lists times the text looked at."""
    longest = max((part.get("maxLength", 1) for _, part, _ in nodes(schema)), default=1)
    size = schema.get("maxItems", schema.get("maxProperties", 64))
    macros = len(re.findall(r"[.](all|exists|exists_one|filter|map)\(", rule))
    pattern = max((len(text) for text in re.findall(r"matches\(r?['\"](.*?)['\"]\)", rule)), default=4)
    texts = 1 + longest // 10 * max(1, pattern // 4)
    return int(size**macros * texts)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_rules_stay_far_below_the_api_servers_budget(kind: str) -> None:
    """10 million units for a rule, 100 million for a schema (k8s.io/apiserver, `RuntimeCELCostBudget` and
    `StaticEstimatedCRDCostLimit`); a rule that iterates over something unbounded would be far above."""
    total = 0
    for path, schema, times in nodes(SCHEMAS[kind]):
        for rule in schema.get("x-kubernetes-validations", ()):
            its_cost = cost(rule["rule"], schema) * times
            assert its_cost < 10_000_000, (path, rule)
            total += its_cost
    assert total < 100_000_000


@pytest.mark.parametrize("kind", SCHEMAS)
def test_rules_are_well_formed_for_the_api_server(kind: str) -> None:
    for path, schema, _ in nodes(SCHEMAS[kind]):
        for rule in schema.get("x-kubernetes-validations", ()):
            assert "\n" not in rule["message"], path
            assert len(rule["message"]) <= 2048
            assert not re.search(r"[.]namespace\b", rule["rule"]), "CEL reserves the word: __namespace__"
            if "fieldPath" in rule:
                assert rule["fieldPath"].removeprefix(".") in schema["properties"], rule


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_field_is_described(kind: str) -> None:
    """The reference pages, editors and `kubectl explain` have no other words than these."""
    for path, schema, _ in nodes(SCHEMAS[kind]):
        for name, part in schema.get("properties", {}).items():
            if path or name in {"spec", "status"}:
                assert part.get("description"), f"{path}.{name}"
                assert "\n" not in part["description"]


def test_lists_of_named_items_are_maps() -> None:
    spec = SCHEMAS["Module"]["properties"]["spec"]["properties"]
    assert spec["env"]["x-kubernetes-list-map-keys"] == ["name"]
    assert spec["imagePullSecrets"]["x-kubernetes-list-type"] == "set"
    assert "x-kubernetes-list-type" not in spec["args"], "the order of arguments counts, and they may repeat"


def test_free_form_fields_are_kept_and_bounded() -> None:
    config = SCHEMAS["Module"]["properties"]["spec"]["properties"]["config"]
    assert config["x-kubernetes-preserve-unknown-fields"] is True
    assert config["maxProperties"] == 256


def test_absence_is_said_by_absence() -> None:
    spec = SCHEMAS["Module"]["properties"]["spec"]
    assert spec["required"] == ["version", "image"]
    assert "default" not in spec["properties"]["replicas"]
    assert "default" not in spec["properties"]["database"]
    assert spec["properties"]["database"]["properties"]["onDelete"]["default"] == "Retain"


def test_definitions_name_columns_short_names_and_category() -> None:
    spec = crd.definition(Module)["spec"]
    assert spec["names"]["shortNames"] == ["mod"]
    assert spec["names"]["categories"] == ["moorage"]
    (version,) = spec["versions"]
    assert version["subresources"] == {"status": {}}
    assert [column["name"] for column in version["additionalPrinterColumns"]] == [
        "Phase",
        "Version",
        "Ready",
        "URL",
        "Age",
    ]
