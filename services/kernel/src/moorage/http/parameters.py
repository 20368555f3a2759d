"""How a handler's parameters are filled: each by its type, worked out once, when the process starts.

| parameter | gets |
| --- | --- |
| `Db`, `Request`, a type that a port provides | that |
| `User`, `ModuleCaller`, `Caller`; with ``| None`` where the rule's auth is optional | who calls |
| a subclass of `Config` | the module's settings |
| a subclass of `Query` | the query string, checked as a whole |
| another pydantic model (one at most) | the body |
| a plain type without default | the path's capture of that name; one that does not fit is 404 |
| a plain type with default | the query parameter of that name |
| the type that the loader returns | what it loaded |
"""

import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Final, cast

from pydantic import BaseModel, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from moorage.config.settings import Config
from moorage.errors import Forbidden, NotFound, Unauthenticated
from moorage.guard.identity import Caller, ModuleCaller, User
from moorage.http.body import read_body
from moorage.http.faults import invalid
from moorage.http.request import Context, Request, facts
from moorage.model import Query
from moorage.module import DeclarationError, Function

Resolver = Callable[[Context], Awaitable[object]]
Providers = Mapping[type, Resolver]

_PLURAL: Final = (list, tuple, set, frozenset)


@dataclass(frozen=True)
class Signature:
    """A handler or loader, understood: what each parameter gets, and what the path must capture for it."""

    function: Function
    parameters: Mapping[str, Resolver]
    captures: frozenset[str]
    body: type[BaseModel] | None
    returns: object

    async def call(self, context: Context) -> Any:
        """Resolve the parameters in their order and call the function."""
        arguments = {name: await resolve(context) for name, resolve in self.parameters.items()}
        return await self.function(**arguments)


def understand(function: Function, providers: Providers, *, resource: object = None) -> Signature:
    """Work out the parameters of *function*.

    Args:
        providers: what ports give, by type.
        resource: the type that the loader returns; ``None``: there is no loader.

    Raises:
        DeclarationError: an annotation is missing or of no use; the text names function and parameter.
    """
    where = f"{function.__module__}.{function.__qualname__}"
    if not inspect.iscoroutinefunction(function):
        raise DeclarationError(f"{where} must be `async def`")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError) as exc:
        raise DeclarationError(f"{where}: an annotation cannot be read: {exc}") from None
    parameters: dict[str, Resolver] = {}
    captures: set[str] = set()
    body: type[BaseModel] | None = None
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise DeclarationError(f"{where}: {parameter} cannot be filled; name each parameter")
        if name not in hints:
            raise DeclarationError(f"{where}: the parameter {name!r} needs a type")
        kind, optional = _without_none(hints[name])
        if resource is not None and kind == resource:
            parameters[name] = _resource
        elif isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, (Query, Config)):
            if body is not None:
                raise DeclarationError(f"{where}: both {body.__name__} and {kind.__name__} would be the body")
            body = kind
            parameters[name] = _body(kind)
        elif (found := _by_type(kind, providers, optional)) is not None:
            parameters[name] = found
        elif parameter.default is inspect.Parameter.empty:
            captures.add(name)
            parameters[name] = _capture(name, _adapter(hints[name], where, name))
        else:
            adapter = _adapter(hints[name], where, name)
            plural = typing.get_origin(kind) in _PLURAL
            parameters[name] = _query_parameter(name, adapter, parameter.default, plural=plural)
    # The body last: whoever may not call, or calls for what is not there, need not send a good one.
    ordered = sorted(parameters.items(), key=lambda item: hints[item[0]] is body)
    return Signature(function, dict(ordered), frozenset(captures), body, hints.get("return", NoneType))


def loaded_type(loader: Function) -> object:
    """The type of what *loader* returns, None aside."""
    try:
        returns = typing.get_type_hints(loader, include_extras=True).get("return")
    except (NameError, TypeError, AttributeError):
        returns = None
    if returns is None:
        where = f"{loader.__module__}.{loader.__qualname__}"
        raise DeclarationError(f"{where} must say what it returns, as in `-> Post`")
    return _without_none(returns)[0]


def _by_type(kind: object, providers: Providers, optional: bool) -> Resolver | None:
    if kind in (User, ModuleCaller, Caller):
        return _caller(kind, optional)
    if not isinstance(kind, type):
        return None
    if kind is Request:
        return _facts
    if issubclass(kind, Config):
        return _group(kind)
    if issubclass(kind, Query):
        return _query_model(kind)
    return providers.get(kind)


def _without_none(annotation: object) -> tuple[object, bool]:
    if typing.get_origin(annotation) not in (typing.Union, UnionType):
        return annotation, False
    kinds = [kind for kind in typing.get_args(annotation) if kind is not NoneType]
    optional = len(kinds) < len(typing.get_args(annotation))
    rest: object = typing.Union[tuple(kinds)]  # noqa: UP007 - made at run time
    return rest, optional


def _adapter(annotation: object, where: str, name: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(cast("Any", annotation))
    except PydanticSchemaGenerationError:
        raise DeclarationError(
            f"{where}: nothing provides a {annotation} for the parameter {name!r}; use Db, User, "
            "Request, a Query, a Model for the body, a plain type for a capture of the path, or give the handler "
            "a `resource` loader"
        ) from None


async def _facts(context: Context) -> object:
    return facts(context)


async def _resource(context: Context) -> object:
    return context.resource


def _caller(kind: object, optional: bool) -> Resolver:
    async def resolve(context: Context) -> object:
        caller = context.decision.caller
        if caller is None:
            if optional:
                return None
            raise Unauthenticated
        if kind == Caller or isinstance(caller, kind):  # type: ignore[arg-type]  # User or ModuleCaller here
            return caller
        if optional:
            return None
        raise Forbidden("This is for users." if kind is User else "This is for modules.")

    return resolve


def _group(kind: type[Config]) -> Resolver:
    async def resolve(context: Context) -> object:
        return context.groups[kind]

    return resolve


def _query_model(kind: type[Query]) -> Resolver:
    plural = {
        info.alias or name
        for name, info in kind.model_fields.items()
        if typing.get_origin(_without_none(info.annotation)[0]) in _PLURAL
    }

    async def resolve(context: Context) -> object:
        # A handler may have several of these, and plain parameters: each takes what it knows.
        known = {info.alias or name for name, info in kind.model_fields.items()}
        values = {
            name: given if name in plural else given[-1]
            for name, given in context.query.items()
            if name in known
        }
        try:
            return kind.model_validate(values)
        except ValidationError as exc:
            raise invalid(exc, "query") from None

    return resolve


def _query_parameter(name: str, adapter: TypeAdapter[Any], default: object, *, plural: bool) -> Resolver:
    async def resolve(context: Context) -> object:
        given = context.query.get(name)
        if given is None:
            return default
        try:
            return adapter.validate_python(given if plural else given[-1])
        except ValidationError as exc:
            raise invalid(exc, "query", name) from None

    return resolve


def _capture(name: str, adapter: TypeAdapter[Any]) -> Resolver:
    async def resolve(context: Context) -> object:
        try:
            return adapter.validate_python(context.decision.params[name])
        except ValidationError:
            # An address that no resource can have: there is nothing there, as for any other such address.
            raise NotFound from None

    return resolve


def _body(kind: type[BaseModel]) -> Resolver:
    async def resolve(context: Context) -> object:
        content = await read_body(context)
        try:
            return kind.model_validate_json(content)
        except ValidationError as exc:
            raise invalid(exc, "body") from None

    return resolve
