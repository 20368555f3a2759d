"""From pydantic's JSON Schema to the structural schema of a CustomResourceDefinition, and its rules.

pydantic's schema is no CRD: it has `$defs` and `$ref`, `const`, `title`, `null` among the types, numeric exclusive
bounds, and no bound on what has none in Python. The rules of structural schemas are those of
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema.
`violations` walks them, so that a wrong CRD is found without an API server.
"""

from collections.abc import Iterator
from typing import Any

from moorage_crds.constraints import PATTERN_AS_RULE, RULES
from moorage_crds.v1alpha1.base import ManifestResource

Schema = dict[str, Any]

_KEPT = (
    "type",
    "description",
    "default",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "minimum",
    "maximum",
    "required",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
)
_INT_OR_STRING = "x-kubernetes-int-or-string"
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_VALIDATIONS = "x-kubernetes-validations"


def json_schema(model: type[ManifestResource]) -> Schema:
    """pydantic's schema with every reference written out and no null among the types."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    definitions = schema.pop("$defs", {})
    inlined = _inline(schema, definitions, ())
    assert isinstance(inlined, dict)
    return inlined


def _inline(node: Any, definitions: Schema, within: tuple[str, ...]) -> Any:
    if isinstance(node, list):
        return [_inline(item, definitions, within) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name in within:
            msg = f"{name} contains itself, which a CRD cannot say"
            raise ValueError(msg)
        own = {key: value for key, value in node.items() if key != "$ref"}
        # The field's own description says more than that of its type.
        return _inline(definitions[name], definitions, (*within, name)) | own
    if "anyOf" in node and _INT_OR_STRING not in node:
        options = [option for option in node["anyOf"] if option != {"type": "null"}]
        if len(options) != 1:
            msg = f"a choice between types is no structural schema: {options}"
            raise ValueError(msg)
        own = {key: value for key, value in node.items() if key != "anyOf"}
        if own.get("default", ...) is None:
            del own["default"]
        return _inline(options[0], definitions, within) | own
    return {
        key: {name: _inline(part, definitions, within) for name, part in value.items()}
        if key == "properties"
        else _inline(value, definitions, within)
        for key, value in node.items()
    }


def paragraphs(text: str) -> str:
    """A docstring without its line breaks but for those between paragraphs."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def structural(model: type[ManifestResource]) -> Schema:
    """The `openAPIV3Schema` of a kind. Raises `ValueError` where a model cannot be said, or is not bounded."""
    schema = _node(json_schema(model))
    # The API server knows these three itself, and refuses more about metadata than its name.
    schema["properties"]["apiVersion"] = {"type": "string"}
    schema["properties"]["kind"] = {"type": "string"}
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = [name for name in schema.get("required", []) if name == "spec"]
    if not schema["required"]:
        del schema["required"]
    if found := list(violations(schema)):
        raise ValueError("\n".join(found))
    return schema


def _node(source: Schema) -> Schema:
    node = {key: source[key] for key in _KEPT if key in source}
    if "description" in node:
        node["description"] = paragraphs(node["description"])
    if "const" in source:
        node |= {"type": "string", "enum": [source["const"]]}
    if isinstance(node.get("default"), dict | list):
        del node["default"]  # an absent list means the same as an empty one, and is owned by nobody
    if node.get(_INT_OR_STRING):
        node["anyOf"] = source["anyOf"]
        node.pop("type", None)
    if node.get("type") == "integer":
        node["format"] = "int64" if node.get("maximum", 0) > 2**31 - 1 else "int32"
    if node.get("maximum") == 2**63 - 1:
        del node["maximum"]  # the format says it, and a JSON number of that size is not exact
    for key, step in (("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
        if key in source:
            if node.get("type") != "integer":
                msg = f"{key} of a {node.get('type')} cannot be said in a CRD"
                raise ValueError(msg)
            node["minimum" if step > 0 else "maximum"] = source[key] + step
    _add_children(node, source)
    _add_validations(node, source)
    return node


def _add_children(node: Schema, source: Schema) -> None:
    if "properties" in source:
        node["properties"] = {name: _node(part) for name, part in source["properties"].items()}
    if "items" in source:
        node["items"] = _node(source["items"])
    extra = source.get("additionalProperties")
    if isinstance(extra, dict):
        node["additionalProperties"] = _node(extra)
    elif extra is True and "properties" not in source:
        node[_PRESERVE] = True


def _add_validations(node: Schema, source: Schema) -> None:
    rules = [dict(rule) for rule in source.get(RULES, [])]
    if sentence := source.get(PATTERN_AS_RULE):
        pattern = node.pop("pattern")
        assert "'" not in pattern, "CEL's raw string is quoted with '"
        rules.insert(0, {"rule": f"self.matches(r'{pattern}')", "message": sentence})
    if rules:
        node[_VALIDATIONS] = rules


def violations(schema: Schema, path: str = "") -> Iterator[str]:
    """What keeps `schema` from being structural, or leaves it without a bound, by path."""
    where = path or "(root)"
    if schema.get(_INT_OR_STRING):
        yield from _int_or_string_violations(schema, where)
        return
    kind = schema.get("type")
    if kind not in {"object", "array", "string", "integer", "number", "boolean"}:
        yield f"{where}: has no type of a structural schema but {kind!r}"
    for key in ("$ref", "$defs", "const", "anyOf", "oneOf", "allOf", "not", "nullable", "title", "examples"):
        if key in schema:
            yield f"{where}: has `{key}`"
    yield from _bound_violations(schema, kind, where)
    if kind == "object":
        yield from _object_violations(schema, path, where)
    if kind == "array":
        yield from _array_violations(schema, path, where)


def _int_or_string_violations(schema: Schema, where: str) -> Iterator[str]:
    if "type" in schema or schema.get("anyOf") != [{"type": "integer"}, {"type": "string"}]:
        yield f"{where}: int-or-string needs anyOf integer and string, and no type"
    if "maxLength" not in schema:
        yield f"{where}: a string without maxLength"


def _bound_violations(schema: Schema, kind: object, where: str) -> Iterator[str]:
    if kind == "string" and not {"maxLength", "enum"} & schema.keys() and where not in {"apiVersion", "kind"}:
        yield f"{where}: a string without maxLength"
    if kind == "array" and "maxItems" not in schema:
        yield f"{where}: a list without maxItems"
    free = "additionalProperties" in schema or schema.get(_PRESERVE)
    if kind == "object" and free and "maxProperties" not in schema:
        yield f"{where}: a map without maxProperties"
    if kind == "integer" and "minimum" not in schema:
        yield f"{where}: a number without bounds"


def _object_violations(schema: Schema, path: str, where: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    if properties and "additionalProperties" in schema:
        yield f"{where}: has both properties and additionalProperties"
    if (
        not properties
        and "additionalProperties" not in schema
        and not schema.get(_PRESERVE)
        and path != "metadata"
    ):
        yield f"{where}: an object of which nothing is said"
    for name in schema.get("required", []):
        if name not in properties:
            yield f"{where}: requires `{name}`, which it does not have"
    for name, part in properties.items():
        yield from violations(part, f"{path}.{name}" if path else name)
    if "additionalProperties" in schema:
        yield from violations(schema["additionalProperties"], f"{path}.*")


def _array_violations(schema: Schema, path: str, where: str) -> Iterator[str]:
    if "items" not in schema:
        yield f"{where}: a list of which nothing is said"
        return
    items = schema["items"]
    for key in schema.get("x-kubernetes-list-map-keys", []):
        part = items.get("properties", {}).get(key, {})
        if key not in items.get("required", []) and "default" not in part:
            yield f"{where}: the key `{key}` of its items is neither required nor has a default"
    yield from violations(items, f"{path}[]")
