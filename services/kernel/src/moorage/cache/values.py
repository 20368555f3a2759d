"""From values to the bytes that are kept, and back: JSON, by pydantic. What comes out is never what was put in.

A value that is read is a new one each time, so that nobody changes another's; and what has just been computed is the
same as what is found later, down to its types.
"""

import typing
from functools import lru_cache, partial
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from moorage.module import DeclarationError


class Unreadable(ValueError):  # noqa: N818 - it says what the entry is
    """An entry of another form than the one asked for: of an older version of the code, for instance."""


def encode(value: object, kind: object = Any) -> bytes:
    """*value* as JSON; with *kind* it is first made into one (a row into its model, for instance).

    Raises:
        TypeError: it cannot be.
    """
    adapter = _adapter(kind)
    try:
        if value is not None and kind is not Any:
            value = adapter.validate_python(value, from_attributes=True)
        return adapter.dump_json(value, by_alias=True) if value is not None else b"null"
    except ValidationError as exc:
        problem = exc.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise TypeError(f"{type(value).__name__} is no {kind}: {where}: {problem['msg']}") from None
    except PydanticSerializationError as exc:
        raise TypeError(f"a {type(value).__name__} cannot be kept in the cache as JSON: {exc}") from None


def decode(value: bytes, kind: object = Any) -> Any:
    """What `encode` made of it, as a *kind*; None for ``null`` whatever the kind.

    Raises:
        Unreadable: it is no *kind*.
    """
    if value == b"null":
        return None
    try:
        return _adapter(kind).validate_json(value, by_alias=True)
    except ValidationError as exc:
        raise Unreadable(f"{exc.error_count()} problems with an entry as {kind}") from None


def plain(compute: Any) -> Any:
    """The function itself of one some of whose arguments are bound already (`functools.partial`)."""
    while isinstance(compute, partial):
        compute = compute.func
    return compute


def declared(compute: object) -> object:
    """The type that a function says it returns; `Any` where it does not."""
    compute = plain(compute)
    found = getattr(compute, "__annotations__", {}).get("return", Any)
    if isinstance(found, str):
        try:
            found = typing.get_type_hints(compute).get("return", Any)
        except (NameError, TypeError):
            return Any
    return found


@lru_cache(maxsize=512)
def _adapter(kind: object) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(typing.cast("Any", kind))
    except PydanticSchemaGenerationError:
        raise DeclarationError(
            f"the cache cannot keep a {kind}: say with kind=… as which model, or let compute return one"
        ) from None
