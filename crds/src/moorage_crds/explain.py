"""pydantic's errors in the words of a manifest: which field, what is wrong with it, what mends it."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from moorage_crds.constraints import Text
from moorage_crds.problems import Problem
from moorage_crds.yaml_source import join

_NUMBER = re.compile(r"-?[0-9]+")
_PRIVATE = re.compile(r"spec[.](config|podTemplate|env\[\d+\][.]value)")
"""Fields whose values no message repeats, since people put secrets there in spite of all."""
_SHOWN = 60
"""Characters of a wrong value that a message repeats."""


def explain(
    error: ValidationError,
    model: type[BaseModel],
    resource: str,
    written: Mapping[str, str] | None = None,
) -> list[Problem]:
    """One Problem for each error, without a source. `written` has scalars as their author wrote them, by path."""
    return [_problem(details, model, resource, written or {}) for details in error.errors(include_url=False)]


def field_path(location: tuple[int | str, ...]) -> str:
    """pydantic's location as a path: `("spec", "rules", 0, "path")` → `spec.rules[0].path`."""
    path = ""
    for part in location:
        path = join(path, part)
    return path


def _problem(
    details: ErrorDetails, model: type[BaseModel], resource: str, written: Mapping[str, str]
) -> Problem:
    location = details["loc"]
    path = field_path(location)
    shown = "" if _PRIVATE.match(path) else _shorten(written.get(path, _plain(details["input"])))
    unknown = details["type"] == "extra_forbidden"
    message, mend = (
        _unknown_field(location, model) if unknown else _sentence(details, _Field(model, location), shown)
    )
    return Problem("", resource, path, message, mend, reason="UnknownField" if unknown else "Invalid")


def _plain(value: object) -> str:
    return "" if isinstance(value, dict | list | BaseModel) else str(value)


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class _Field:
    """What the models say about the field at a location."""

    def __init__(self, model: type[BaseModel], location: tuple[int | str, ...]) -> None:
        self.name = next((part for part in reversed(location) if isinstance(part, str)), "")
        self._annotations = list(_annotations_at(model, location))

    @property
    def text(self) -> Text | None:
        """The constraint on its text."""
        return next((item for item in self._annotations if isinstance(item, Text)), None)

    @property
    def choices(self) -> list[str]:
        """The words that it may be."""
        for item in self._annotations:
            if get_origin(item) is Literal:
                return [str(choice) for choice in get_args(item)]
        return []

    @property
    def example(self) -> str:
        """A good line for it."""
        value = self.text.example if self.text else ""
        value = value or next(iter(self.choices), "…")
        return f"{self.name}: {value}"


def _sentence(details: ErrorDetails, field: _Field, shown: str) -> tuple[str, str]:
    """The message and the mend."""
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "missing":
        return "is missing", f"add `{field.example}`"
    if kind == "moorage_rule":
        return str(context["message"]), str(context["mend"])
    if kind == "moorage_unique":
        return details["msg"], "keep one of them"
    if value is None:
        return "is empty", f"write `{field.example}`"
    if kind.startswith("moorage_text"):
        return _text_sentence(details, field, shown)
    if kind == "literal_error":
        return _choice_sentence(field, shown)
    if kind in _TYPE_SENTENCES:
        message, mend = _TYPE_SENTENCES[kind]
        shown = (
            f"text `{shown}`"
            if isinstance(value, str) and kind != "list_type"
            else f"`{shown}`" * bool(shown)
        )
        if kind == "int_type" and isinstance(value, str) and _NUMBER.fullmatch(value):
            mend = f"remove the quotes: {field.name}: {value}"
        return (f"{message}, not {shown}" if shown else message), mend
    return _bound_sentence(kind, context, shown) or (details["msg"].lower(), "")


_TYPE_SENTENCES = {
    "int_type": ("must be a whole number", "write a whole number without quotes"),
    "bool_type": ("must be true or false", "write true or false without quotes"),
    "list_type": ("must be a list", "begin each item with `- `, or write […]"),
    "dict_type": ("must hold fields", "write `field: value` below it, or `{}`"),
    "model_type": ("must hold fields", "write `field: value` below it, or `{}`"),
    "string_type": ("must be text", "put it in quotes"),
}


def _text_sentence(details: ErrorDetails, field: _Field, shown: str) -> tuple[str, str]:
    if details["type"] == "moorage_text_long":
        return f"{details['msg']}, not {len(str(details['input']))}", "shorten it"
    value = details["input"]
    says = details["msg"].rstrip(",")
    if isinstance(value, list | dict):
        return f"{says}, not a {'list' if isinstance(value, list) else 'group of fields'}", (
            f"write `{field.example}`"
        )
    if not isinstance(value, str) and field.text is not None and field.text.matches(shown):
        quoted = f': "{shown}"' if shown else ""
        return (
            f"{says}, not a {'truth value' if isinstance(value, bool) else 'number'}",
            f"put it in quotes{quoted}",
        )
    mend = f"write one such as `{field.example}`" if field.text and field.text.example else ""
    return f"{says}, not `{shown}`", mend


def _choice_sentence(field: _Field, shown: str) -> tuple[str, str]:
    choices = field.choices
    listed = f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else "".join(choices)
    near = _nearest(shown, choices, cutoff=0.6)
    message = f"must be {listed}, not `{shown}`" if shown else f"must be {listed}"
    return message, f"write `{near}`" if near else f"write `{field.example}`"


def _bound_sentence(kind: str, context: Mapping[str, Any], shown: str) -> tuple[str, str] | None:
    match kind:
        case "greater_than_equal":
            return f"must be at least {context['ge']}, not {shown}", "raise it"
        case "less_than_equal":
            return f"must be at most {context['le']}, not {shown}", "lower it"
        case "too_long":
            return (
                f"has {context['actual_length']} items, and at most {context['max_length']} fit",
                "split it",
            )
        case "too_short":
            return f"must have at least {context['min_length']} item", "add one"
    return None


def _unknown_field(location: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, str]:
    name = str(location[-1])
    owner = next(_models_at(model, location[:-1]), model)
    known = sorted(_aliases(owner))
    where = field_path(location[:-1])
    message = f"is no field of `{where}`" if where else f"is no field of a {model.__name__}"
    if near := _nearest(name, known):
        return message, f"did you mean `{near}`?"
    if elsewhere := sorted(path for path, alias in _all_fields(model) if alias == name):
        return message, f"it belongs to `{elsewhere[0]}`"
    return message, f"remove it; the fields are {', '.join(known)}"


def nearest_name(name: str, known: list[str]) -> str:
    """The known name that someone who wrote `name` will have meant; empty where none is near."""
    return _nearest(name, known)


def _nearest(name: str, known: list[str], cutoff: float = 0.7) -> str:
    lowered = {item.lower(): item for item in known}
    found = difflib.get_close_matches(name.lower().replace("_", ""), list(lowered), n=1, cutoff=cutoff)
    return lowered[found[0]] if found else ""


def _aliases(model: type[BaseModel]) -> dict[str, Any]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation, its metadata and everything inside it, outermost first."""
    yield annotation
    if get_origin(annotation) is Literal:
        return
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        yield from metadata
        yield from _parts(inner)
        return
    for argument in get_args(annotation):
        yield from _parts(argument)


def _annotations_at(model: type[BaseModel], location: tuple[int | str, ...]) -> Iterator[Any]:
    """Metadata and types of the field at `location`."""
    names = [part for part in location if isinstance(part, str)]
    for depth, name in enumerate(names):
        info = _aliases(model).get(name)
        if info is None:
            return
        parts = [*info.metadata, *_parts(info.annotation)]
        if depth == len(names) - 1:
            yield from parts
            return
        inner = next((p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)), None)
        if inner is None:
            yield from parts  # the key of a free mapping
            return
        model = inner


def _models_at(model: type[BaseModel], location: tuple[int | str, ...]) -> Iterator[type[BaseModel]]:
    if not location:
        yield model
        return
    for part in _annotations_at(model, location):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part


def _all_fields(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    """Every field of a kind that its author writes: the path of what holds it, and its name."""
    for alias in _aliases(model):
        if alias == "status" and not path:
            continue
        yield path, alias
        for inner in _models_at(model, (alias,)):
            yield from _all_fields(inner, join(path, alias))
