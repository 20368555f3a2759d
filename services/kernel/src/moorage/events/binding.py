"""A module's event handlers, understood: what each parameter gets, worked out once, when the process starts."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moorage import parameters
from moorage.config.settings import Config
from moorage.events.event import Event, EventInfo
from moorage.module import DeclarationError, Module, Reaction
from moorage.scope import Provider, Scope


@dataclass(frozen=True)
class Bound:
    """One handler of events."""

    reaction: Reaction
    events: tuple[str, ...]
    """Parameters that get the event."""
    infos: tuple[str, ...]
    """Those that get its `EventInfo`."""
    providers: tuple[tuple[str, Provider], ...]
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
        """Fill the parameters and call the function."""
        arguments: dict[str, object] = dict.fromkeys(self.events, event)
        for name in self.infos:
            arguments[name] = scope.found[EventInfo]
        for name, provide in self.providers:
            arguments[name] = await provide(scope)
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
    events: list[str] = []
    infos: list[str] = []
    given: list[tuple[str, Provider]] = []
    provided: set[type] = set()
    for name, annotation, _ in parameters.declared(reaction.function):
        kind, _ = parameters.without_none(annotation)
        if kind is reaction.event:
            events.append(name)
        elif isinstance(kind, type) and kind in providers:
            provided.add(kind)
            given.append((name, providers[kind]))
        elif kind is EventInfo:
            infos.append(name)
        elif isinstance(kind, type) and issubclass(kind, Config):
            given.append((name, parameters.group(kind)))
        else:
            raise DeclarationError(_useless(reaction, name, annotation))
    return Bound(reaction, tuple(events), tuple(infos), tuple(given), frozenset(provided))


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
