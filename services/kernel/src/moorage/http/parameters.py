"""How a handler's parameters are filled: each by its type, worked out once, when the process starts.

| parameter | gets |
| --- | --- |
| `Db`, `Request`, `Authorizer`, a type that a port provides | that |
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
from types import NoneType
from typing import Any, Final, cast

from pydantic import BaseModel, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from moorage import parameters
from moorage.config.settings import Config
from moorage.errors import Forbidden, NotFound, Unauthenticated, Unavailable
from moorage.guard.authorizer import Authorizer
from moorage.guard.identity import Caller, ModuleCaller, User
from moorage.http.apidocs import ApiDocument
from moorage.http.body import read_body
from moorage.http.faults import invalid
from moorage.http.request import Context, Request, facts
from moorage.http.websocket import WebSocket
from moorage.model import Query
from moorage.module import DeclarationError, Function
from moorage.scope import Provider

Resolver = Callable[[Context], Awaitable[object]]
Providers = Mapping[type, Provider]

_PLURAL: Final = (list, tuple, set, frozenset)


@dataclass(frozen=True)
class Value:
    """A parameter with a plain type: of the path, or, where it has a default, of the query string."""

    name: str
    adapter: TypeAdapter[Any]
    default: object = inspect.Parameter.empty

    @property
    def captured(self) -> bool:
        """Whether the path has it."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Signature:
    """A handler or loader, understood: what each parameter gets, and what the path must capture for it.

    ``values`` and ``queries`` say the same as ``parameters``, for documents.
    """

    function: Function
    parameters: Mapping[str, Resolver]
    captures: frozenset[str]
    body: type[BaseModel] | None
    provided: frozenset[type]
    needs_caller: bool
    returns: object
    values: tuple[Value, ...] = ()
    queries: tuple[type[Query], ...] = ()
    socket: object | None = None
    """``WebSocket[In, Out]``, if it takes one."""
    generates: bool = False
    """Whether the function is an asynchronous generator, which is called and not awaited."""

    async def call(self, context: Context) -> Any:
        """Resolve the parameters in their order and call the function."""
        arguments = {name: await resolve(context) for name, resolve in self.parameters.items()}
        result = self.function(**arguments)
        return result if self.generates else await result  # type: ignore[misc]  # awaitable unless it generates


def understand(function: Function, providers: Providers, *, resource: object = None) -> Signature:
    """Work out the parameters of *function*.

    Args:
        providers: what ports give, by type.
        resource: the type that the loader returns; ``None``: there is no loader.

    Raises:
        DeclarationError: an annotation is missing or of no use; the text names function and parameter.
    """
    where = parameters.where(function)
    if not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        raise DeclarationError(f"{where} must be `async def`")
    reading = _Reading(where, providers, resource)
    for name, annotation, default in parameters.declared(function):
        reading.add(name, annotation, default)
    # The body last: whoever may not call, or calls for what is not there, need not send a good one.
    ordered = sorted(reading.parameters.items(), key=lambda item: item[0] == reading.body_name)
    return Signature(
        function=function,
        parameters=dict(ordered),
        captures=frozenset(reading.captures),
        body=reading.body,
        provided=frozenset(reading.provided),
        needs_caller=reading.needs_caller,
        returns=parameters.hints_of(function).get("return", NoneType),
        values=tuple(reading.values),
        queries=tuple(reading.queries),
        socket=reading.socket,
        generates=inspect.isasyncgenfunction(function),
    )


class _Reading:
    """What is known of a function's parameters while they are looked at one by one."""

    def __init__(self, where: str, providers: Providers, resource: object) -> None:
        self.where = where
        self.providers = providers
        self.resource = resource
        self.parameters: dict[str, Resolver] = {}
        self.captures: set[str] = set()
        self.values: list[Value] = []
        self.socket: object | None = None
        self.queries: list[type[Query]] = []
        self.body: type[BaseModel] | None = None
        self.body_name = ""
        self.provided: set[type] = set()
        self.needs_caller = False

    def add(self, name: str, annotation: object, default: object) -> None:
        """Decide what the parameter *name* gets."""
        kind, optional = parameters.without_none(annotation)
        if self.resource is not None and kind == self.resource:
            self.parameters[name] = _resource
        elif kind in (User, ModuleCaller, Caller):
            self.needs_caller = self.needs_caller or not optional
            self.parameters[name] = _caller(kind, optional)
        elif kind is WebSocket or typing.get_origin(kind) is WebSocket:
            self.socket = kind
            self.parameters[name] = _socket
        elif isinstance(kind, type) and (found := self._by_class(name, kind)) is not None:
            self.parameters[name] = found
        elif default is inspect.Parameter.empty:
            self.captures.add(name)
            adapter = self._adapter(name, annotation)
            self.values.append(Value(name, adapter))
            self.parameters[name] = _capture(name, adapter)
        else:
            plural = typing.get_origin(kind) in _PLURAL
            adapter = self._adapter(name, annotation)
            self.values.append(Value(name, adapter, default))
            self.parameters[name] = _query_parameter(name, adapter, default, plural=plural)

    def _by_class(self, name: str, kind: type) -> Resolver | None:
        if kind in self.providers:
            self.provided.add(kind)
            return self.providers[kind]
        if kind is Request:
            return _facts
        if kind is Authorizer:
            return _authorizer
        if kind is ApiDocument:
            return _api
        if issubclass(kind, Config):
            return parameters.group(kind)
        if issubclass(kind, Query):
            self.queries.append(kind)
            return _query_model(kind)
        if issubclass(kind, BaseModel):
            if self.body is not None:
                raise DeclarationError(
                    f"{self.where}: both {self.body.__name__} and {kind.__name__} would be the body"
                )
            self.body, self.body_name = kind, name
            return _body(kind)
        return None

    def _adapter(self, name: str, annotation: object) -> TypeAdapter[Any]:
        try:
            return TypeAdapter(cast("Any", annotation))
        except PydanticSchemaGenerationError:
            raise DeclarationError(
                f"{self.where}: nothing provides a {annotation} for the parameter {name!r}; use Db (with a "
                "database configured), User, Request, a Query, a Model for the body, a plain type for a capture of "
                "the path, or give the handler a `resource` loader"
            ) from None


def loaded_type(loader: Function) -> object:
    """The type of what *loader* returns, None aside."""
    returns = parameters.hints_of(loader).get("return")
    if returns is None:
        raise DeclarationError(f"{parameters.where(loader)} must say what it returns, as in `-> Post`")
    return parameters.without_none(returns)[0]


async def _facts(context: Context) -> object:
    return facts(context)


async def _authorizer(context: Context) -> object:
    return Authorizer(context.guard, context.decision)


async def _socket(context: Context) -> object:
    return context.found[WebSocket]


async def _api(context: Context) -> object:
    return context.found[ApiDocument]


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


def _query_model(kind: type[Query]) -> Resolver:
    plural = {
        info.alias or name
        for name, info in kind.model_fields.items()
        if typing.get_origin(parameters.without_none(info.annotation)[0]) in _PLURAL
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
        given = context.decision.params.get(name)
        if (
            given is None
        ):  # a policy that came after the start; `moorage check` and the start look for it, too
            raise Unavailable(code="unbound_rule", reason=f"the rule's path does not capture {{{name}}}")
        try:
            return adapter.validate_python(given)
        except ValidationError:
            # An address that no resource can have: there is nothing there, as for any other such address.
            raise NotFound from None

    return resolve


def _body(kind: type[BaseModel]) -> Resolver:
    async def resolve(context: Context) -> object:
        content = await read_body(context)
        try:
            return kind.model_validate_json(content, strict=True)
        except ValidationError as exc:
            raise invalid(exc, "body") from None

    return resolve
