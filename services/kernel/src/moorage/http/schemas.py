"""The JSON Schemas of an OpenAPI document: those of all models at once, so that names are unique."""

from collections.abc import Iterator
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

_PREFIX: Final = "#/components/schemas/"
ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "details", "request_id"],
            "properties": {
                "code": {"type": "string", "description": "For programs; never changes its meaning."},
                "message": {"type": "string", "description": "A sentence for people."},
                "details": {"type": "object", "description": "Its keys depend on the code."},
                "request_id": {"type": "string"},
            },
        }
    },
}
"""The one shape of errors (`moorage.errors`)."""


class Components:
    """Schemas by key while they are collected; `finish` makes them, then they can be asked for."""

    def __init__(self) -> None:
        self._inputs: dict[Any, tuple[JsonSchemaMode, TypeAdapter[Any]]] = {}
        self._schemas: dict[Any, dict[str, Any]] = {}
        self._definitions: dict[str, Any] = {}

    def add(self, key: object, mode: JsonSchemaMode, adapter: TypeAdapter[Any]) -> None:
        """Take the type of *adapter*; the first of a *key* stays."""
        self._inputs.setdefault(key, (mode, adapter))

    def finish(self) -> None:
        """Make every schema."""
        inputs = [(index, mode, adapter) for index, (mode, adapter) in enumerate(self._inputs.values())]
        made, rest = TypeAdapter.json_schemas(inputs, ref_template=_PREFIX + "{model}")
        keys = list(self._inputs)
        self._schemas = {keys[index]: schema for (index, _), schema in made.items()}
        self._definitions = rest.get("$defs", {})

    def __contains__(self, key: object) -> bool:
        return key in self._schemas

    def schema(self, key: object) -> dict[str, Any]:
        """The schema of *key*, mostly a reference."""
        return self._schemas[key]

    def members(self, key: object) -> tuple[dict[str, Any], list[str]]:
        """The properties of an object, and which of them are required."""
        schema = self._schemas[key]
        if "$ref" in schema:
            schema = self._definitions[schema["$ref"].removeprefix(_PREFIX)]
        return schema.get("properties", {}), schema.get("required", [])

    def used(self, within: object) -> dict[str, Any]:
        """The definitions that *within* refers to, those that they refer to, and `ERROR`."""
        found: dict[str, Any] = {"Error": ERROR}
        waiting = [within]
        while waiting:
            for name in _references(waiting.pop()):
                if name not in found:
                    found[name] = self._definitions[name]
                    waiting.append(found[name])
        return dict(sorted(found.items()))


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str) and reference.startswith(_PREFIX):
            yield reference.removeprefix(_PREFIX)
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)
