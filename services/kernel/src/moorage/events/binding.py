"""A module's event handlers, understood: what each parameter gets, worked out once, when the process starts."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moorage import parameters
from moorage.config.settings import Config
from moorage.events.event import Event, EventInfo
from moorage.module import DeclarationError, Module, Reaction
from moorage.scope import Provider, Scope

Resolve = Callable[[Scope, Event], Awaitable[object]]


@dataclass(frozen=True)
class Bound:
    """One handler of events."""

    reaction: Reaction
    parameters: Mapping[str, Resolve]
    provided: frozenset[type]

    @property
    def event(self) -> type[Event]:
        """The class of its events."""
        return self.reaction.event

    @property
    def type(self) -> str:
        """Their type."""
        return self.reaction.event.__event_type__

    async def call(self, scope: Scope, event: Event) -> None:
        """Resolve the parameters in their order and call the function."""
        arguments = {name: await resolve(scope, event) for name, resolve in self.parameters.items()}
        await self.reaction.function(**arguments)  # type: ignore[misc]  # `bind` has seen that it is no generator


def bind(module: Module, providers: Mapping[type, Provider]) -> dict[str, Bound]:
    """Understand every event handler of *module*, by type.

    Raises:
        DeclarationError: one cannot work; the text names it and the parameter.
    """
    return {type: _bind(reaction, providers) for type, reaction in module.reactions.items()}


def _bind(reaction: Reaction, providers: Mapping[type, Provider]) -> Bound:
    if not inspect.iscoroutinefunction(reaction.function):
        raise DeclarationError(f"{reaction.where} must be `async def`, without `yield`")
    resolvers: dict[str, Resolve] = {}
    provided: set[type] = set()
    for name, annotation, _ in parameters.declared(reaction.function):
        kind, _ = parameters.without_none(annotation)
        if kind is reaction.event:
            resolvers[name] = _event
        elif isinstance(kind, type) and kind in providers:
            provided.add(kind)
            resolvers[name] = _given(providers[kind])
        elif kind is EventInfo:
            resolvers[name] = _info
        elif isinstance(kind, type) and issubclass(kind, Config):
            resolvers[name] = _given(parameters.group(kind))
        else:
            raise DeclarationError(_useless(reaction, name, annotation))
    return Bound(reaction, resolvers, frozenset(provided))


def _useless(reaction: Reaction, name: str, annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, Event):
        return (
            f"{reaction.where}: the parameter {name!r} is a {annotation.__qualname__}, but it handles "
            f"{reaction.event.__qualname__}; use the same class"
        )
    return (
        f"{reaction.where}: nothing provides a {annotation} for the parameter {name!r}; a handler of events gets its "
        f"{reaction.event.__qualname__}, EventInfo, Db (with a database configured), the module's Config and what "
        "ports provide; there is neither request nor user"
    )


async def _event(_: Scope, event: Event) -> object:
    return event


async def _info(scope: Scope, _: Event) -> object:
    return scope.found[EventInfo]


def _given(provider: Provider) -> Resolve:
    async def resolve(scope: Scope, _: Event) -> object:
        return await provider(scope)

    return resolve
