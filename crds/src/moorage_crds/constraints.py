"""Constraints that hold on both sides: in Python for files and the operator, in the CRD for the API server.

Each is declared once, beside the model or type it belongs to. Python enforces it when a model is validated;
the CRD generator (`moorage_crds.structural`) reads the `x-moorage-*` keys that these classes leave in
pydantic's JSON Schema and writes what the API server understands.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, ValidationError, core_schema

RULES = "x-moorage-rules"
"""JSON Schema key: `[{"rule", "message", "fieldPath"?}]`, CEL rules in the API server's own form."""
SAYS = "x-moorage-says"
"""JSON Schema key: what a good text is, in words."""
PATTERN_AS_RULE = "x-moorage-pattern-as-rule"
"""JSON Schema key: the sentence that replaces `pattern` in the CRD, as a CEL rule with this message."""

MAX_NUMBER = 10**15 - 1
"""Of a number that stands for a text; a float holds it exactly, as JSON readers may take it."""


@dataclass(frozen=True)
class Rule:
    """A statement about a value that a type cannot say, in CEL and in Python, with one message for both.

    Used in a model's `validations` (then `check` gets the model) or as metadata of an annotated type (then
    it gets the value). `field` is the camelCase field, relative to the model, that the message is about.
    A rule about changes has `transition(new, old)` instead of `check`: its CEL mentions `oldSelf`.
    """

    cel: str
    message: str
    mend: str
    check: Callable[[Any], bool] | None = None
    transition: Callable[[Any, Any], bool] | None = None
    field: str = ""

    @property
    def sentence(self) -> str:
        """The message as the API server shows it, mend included."""
        return f"{self.message}: {self.mend}"

    def as_validation(self) -> dict[str, str]:
        """An item of `x-kubernetes-validations`."""
        item = {"rule": self.cel, "message": self.sentence}
        # The API server takes only paths that the schema has, and the schema says nothing about metadata.
        if self.field and not self.field.startswith("metadata"):
            item["fieldPath"] = f".{self.field}"
        return item

    def error(self) -> PydanticCustomError:
        """The error that pydantic reports."""
        return PydanticCustomError(
            "moorage_rule", "{message}: {mend}", {"message": self.message, "mend": self.mend}
        )

    def _validate(self, value: Any) -> Any:
        if self.check is not None and not self.check(value):
            raise self.error()
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._validate, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        result = handler(schema)
        result.setdefault(RULES, []).append(self.as_validation())
        return result


def _cel_name(field: str) -> str:
    # CEL reserves the word, and the API server renames the field:
    # https://kubernetes.io/docs/reference/using-api/cel/#escaping
    return f"__{field}__" if field == "namespace" else field


def enforce(rules: Iterable[Rule], value: Any) -> None:
    """Raise one pydantic error that lists every rule which `value` (a model) breaks."""
    broken = [rule for rule in rules if rule.check is not None and not rule.check(value)]
    if broken:
        details: list[InitErrorDetails] = [
            {"type": rule.error(), "loc": tuple(rule.field.split(".")) if rule.field else (), "input": None}
            for rule in broken
        ]
        raise ValidationError.from_exception_data(type(value).__name__, details)


@dataclass(frozen=True)
class Text:
    """A string with a bounded length and, mostly, a pattern that `says` explains in words.

    `says` completes "must be …"; `example` is a good value. `as_rule` sends the pattern to the API server as
    a CEL rule, whose message is the sentence instead of the pattern (for fields that people often get wrong;
    a rule costs more than a pattern). `or_int` takes a whole number too (Kubernetes' int-or-string), and
    gives it as text.
    """

    max_length: int
    pattern: str = ""
    says: str = ""
    example: str = ""
    min_length: int = 0
    as_rule: bool = False
    or_int: bool = False

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    @property
    def sentence(self) -> str:
        """What a good value is, as in `must be a semantic version such as 1.0.0`."""
        such_as = f" such as {self.example}" if self.example else ""
        return f"must be {self.says or 'text'}{such_as}"

    def matches(self, value: str) -> bool:
        """Whether `value` is a good one."""
        fits = self.min_length <= len(value) <= self.max_length
        # fullmatch: Python's `$` would let a final newline pass, which Go's does not.
        return fits and (not self.pattern or self._regex.fullmatch(value) is not None)

    def _validate(self, value: Any) -> str:
        if (
            self.or_int
            and isinstance(value, int)
            and not isinstance(value, bool)
            and 0 <= value <= MAX_NUMBER
        ):
            value = str(value)
        if not isinstance(value, str):
            raise PydanticCustomError(
                "moorage_text_type", "{says}", {"says": self.sentence, "example": self.example}
            )
        if len(value) > self.max_length:
            raise PydanticCustomError(
                "moorage_text_long", "must have at most {max} characters", {"max": self.max_length}
            )
        if not self.matches(value):
            raise PydanticCustomError(
                "moorage_text", "{says}", {"says": self.sentence, "example": self.example}
            )
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate, serialization=core_schema.to_string_ser_schema()
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        result: JsonSchemaValue = {"maxLength": self.max_length}
        if self.or_int:
            result |= {
                "x-kubernetes-int-or-string": True,
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "minimum": 0,
                "maximum": MAX_NUMBER,
            }
        else:
            result |= {"type": "string"}
        if self.min_length:
            result["minLength"] = self.min_length
        if self.pattern:
            result["pattern"] = self.pattern
        if self.example:
            result["examples"] = [self.example]
        if self.says:
            result[SAYS] = self.says.rstrip(",")
        if self.as_rule:
            result[PATTERN_AS_RULE] = self.sentence
        return result


@dataclass(frozen=True)
class Unique:
    """A list whose items differ: by the fields `keys`, or as they are where there are none.

    The API server holds to it by `x-kubernetes-list-type`; where a key is `optional`, which that cannot
    express, by a CEL rule.
    """

    keys: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def _label(self) -> str:
        return " and ".join(f"`{key}`" for key in (*self.keys, *self.optional))

    @property
    def _message(self) -> str:
        return f"two items have the same {self._label}" if self.keys else "two items are the same"

    @property
    def rule(self) -> Rule | None:
        """The CEL rule, where a list type cannot say it."""
        if not self.optional:
            return None
        same = [f"a.{key} == b.{key}" for key in self.keys]
        same += [
            f"has(a.{name}) == has(b.{name}) && (!has(a.{name}) || a.{name} == b.{name})"
            for name in map(_cel_name, self.optional)
        ]
        return Rule(
            cel=f"self.all(a, self.exists_one(b, {' && '.join(same)}))",
            message=self._message,
            mend="keep one of them",
        )

    def _key(self, item: Any) -> Any:
        if not self.keys:
            return item
        return tuple(getattr(item, key) for key in (*self.keys, *self.optional))

    def _validate(self, items: list[Any]) -> list[Any]:
        twice = [key for key, count in Counter(map(self._key, items)).items() if count > 1]
        if twice:
            shown = ", ".join(
                "/".join(str(part) for part in key if part is not None)
                if isinstance(key, tuple)
                else str(key)
                for key in twice[:3]
            )
            raise PydanticCustomError(
                "moorage_unique",
                "{message} ({shown})",
                {"message": self._message, "shown": shown},
            )
        return items

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._validate, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        result = handler(schema)
        if self.rule is not None:
            result.setdefault(RULES, []).append(self.rule.as_validation())
        elif self.keys:
            result |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(self.keys)}
        else:
            result["x-kubernetes-list-type"] = "set"
        return result
