"""What handlers of every kind have in common: they are coroutine functions whose parameters are filled by type."""

import inspect
import typing
from collections.abc import Callable, Iterator
from types import NoneType, UnionType
from typing import Any

from moorage.config.settings import Config
from moorage.module import DeclarationError
from moorage.scope import Provider, Scope


def where(function: Callable[..., Any]) -> str:
    """How messages call a function: ``blog.posts.create``."""
    return f"{function.__module__}.{function.__qualname__}"


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of *function*; raises `DeclarationError` if one cannot be read."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError) as exc:
        raise DeclarationError(f"{where(function)}: an annotation cannot be read: {exc}") from None


def declared(function: Callable[..., Any]) -> Iterator[tuple[str, Any, object]]:
    """Name, annotation and default of each parameter of *function*.

    Raises:
        DeclarationError: an annotation is missing or cannot be read, or a parameter has no name to be given by.
    """
    hints = hints_of(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise DeclarationError(f"{where(function)}: {parameter} cannot be filled; name each parameter")
        if name not in hints:
            raise DeclarationError(f"{where(function)}: the parameter {name!r} needs a type")
        yield name, hints[name], parameter.default


def without_none(annotation: object) -> tuple[object, bool]:
    """The type of ``X | None`` without None, and whether None was there."""
    if typing.get_origin(annotation) not in (typing.Union, UnionType):
        return annotation, False
    kinds = [kind for kind in typing.get_args(annotation) if kind is not NoneType]
    optional = len(kinds) < len(typing.get_args(annotation))
    rest: object = typing.Union[tuple(kinds)]  # noqa: UP007 - made at run time
    return rest, optional


def group(kind: type[Config]) -> Provider:
    """Gives the module's own settings."""

    async def resolve(scope: Scope) -> object:
        return scope.groups[kind]

    return resolve
