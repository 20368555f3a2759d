"""What authors provide to their own handlers: `@module.provide`, worked out when the process starts.

A factory is asked for by the type that it returns. One for the process is called when it starts, in the order
in which factories need each other, and closed in reverse; one for each scope is called when a request or an event first
needs it. What cannot work (a circle, something missing, a process-wide factory that needs what each request
has of its own) is a `DeclarationError` that names the whole chain, at the start and in `moorage check`.
"""

import asyncio
import collections.abc
import inspect
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from types import NoneType, UnionType
from typing import Final

import structlog

from moorage.config.settings import Config
from moorage.errors import Unauthenticated
from moorage.guard.identity import ModuleCaller, User
from moorage.health import Health, NotReady
from moorage.lifecycle import Backoff
from moorage.module import DeclarationError, Module, Provision
from moorage.scope import Provider, Scope

log = structlog.get_logger("moorage.injection")

WORTH_WAITING: Final = (ConnectionError, TimeoutError, NotReady)
"""What a factory raises at the start when its dependency is not there yet: it is called again, until it is."""
_CALLERS: Final = (User, ModuleCaller)
_GENERATORS: Final = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncGenerator,
    collections.abc.AsyncIterable,
)


@dataclass(frozen=True)
class Factory:
    """A `Provision`, understood: what it gives, and what it needs."""

    provision: Provision
    gives: type
    needs: Mapping[str, "Need"]

    @property
    def where(self) -> str:
        """How messages call it."""
        return self.provision.where

    @property
    def per_process(self) -> bool:
        """Whether there is one for the whole process."""
        return self.provision.per == "process"

    def opened(self, arguments: Mapping[str, object]) -> AbstractAsyncContextManager[object]:
        """What it makes, closed at the end of the block if it is a generator."""
        if inspect.isasyncgenfunction(self.provision.function):
            return asynccontextmanager(self.provision.function)(**arguments)
        return _kept(self.provision.function(**arguments))


@dataclass(frozen=True)
class Need:
    """A parameter: the type that is asked for, and whether None will do."""

    kind: type
    optional: bool


@dataclass
class Injection:
    """The factories of one module, in the order in which they are called.

    Args:
        shared: what ports have put into the process, by type; process-wide factories may need it.
        providers: what ports give to each scope, by type.
        overrides: what is given instead, by type; factories of these types are not called.
    """

    module: Module
    shared: Mapping[type, object]
    providers: Mapping[type, Provider]
    overrides: Mapping[type, object] = field(default_factory=dict)
    factories: dict[type, Factory] = field(default_factory=dict)
    made: dict[type, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.made.update(self.overrides)
        for provision in self.module.provisions:
            factory = understand(provision)
            other = self.factories.get(factory.gives)
            if other is not None:
                raise DeclarationError(
                    f"both {other.where} and {factory.where} provide {_name(factory.gives)}; "
                    "let one of them return a type of its own"
                )
            if factory.gives in self.providers or factory.gives in self.shared:
                raise DeclarationError(
                    f"{factory.where} provides {_name(factory.gives)}, which the kernel provides already; "
                    "return a type of the module's own"
                )
            if factory.gives not in self.overrides:
                self.factories[factory.gives] = factory
        self.order: Sequence[Factory] = self._ordered()

    def resources(
        self, groups: Callable[[], Mapping[type, Config]], health: Health
    ) -> list[tuple[str, Callable[[], AbstractAsyncContextManager[None]]]]:
        """A resource for each process-wide factory, in the order in which they have to be opened."""
        return [
            (_name(factory.gives), partial(self._held, factory, groups, health))
            for factory in self.order
            if factory.per_process
        ]

    def given(self) -> dict[type, Provider]:
        """A provider for each type that the module provides."""
        return {
            kind: self._always(kind) if factory.per_process else self._each(factory)
            for kind, factory in self.factories.items()
        }

    @asynccontextmanager
    async def _held(
        self, factory: Factory, groups: Callable[[], Mapping[type, Config]], health: Health
    ) -> AsyncIterator[None]:
        name = _name(factory.gives)
        arguments = {
            parameter: self.made[need.kind]
            if need.kind in self.made
            else groups().get(need.kind, self.shared.get(need.kind))
            for parameter, need in factory.needs.items()
        }
        async with AsyncExitStack() as stack:
            opening, value = await _patiently(name, factory, arguments, health)
            stack.push_async_exit(opening)
            self.made[factory.gives] = value
            ping = getattr(value, "ping", None)
            if inspect.iscoroutinefunction(ping):
                health.register(name, ping, required=factory.provision.required)
            yield

    def _always(self, kind: type) -> Provider:
        async def give(_: Scope) -> object:
            return self.made[kind]

        return give

    def _each(self, factory: Factory) -> Provider:
        kind = factory.gives

        async def give(scope: Scope) -> object:
            if kind not in scope.found:
                arguments = {name: await self._argument(need, scope) for name, need in factory.needs.items()}
                value = await scope.stack.enter_async_context(factory.opened(arguments))
                scope.found[kind] = _checked(factory, value)
            return scope.found[kind]

        return give

    async def _argument(self, need: Need, scope: Scope) -> object:
        kind = need.kind
        if kind in self.made:
            return self.made[kind]
        if kind in _CALLERS:
            return _caller(need, scope)
        if kind in scope.groups:
            return scope.groups[kind]
        if kind in self.factories:
            return await self._each(self.factories[kind])(scope)
        provider = self.providers.get(kind)
        return self.shared[kind] if provider is None else await provider(scope)

    def _ordered(self) -> list[Factory]:
        """Each factory after those that it needs.

        Raises:
            DeclarationError: there is a circle, or something is missing.
        """
        done: dict[type, Factory] = {}

        def visit(factory: Factory, chain: tuple[Factory, ...]) -> None:
            if factory.gives in done:
                return
            if factory in chain:
                names = " → ".join(_name(one.gives) for one in (*chain[chain.index(factory) :], factory))
                raise DeclarationError(f"{factory.where}: these need each other in a circle: {names}")
            for parameter, need in factory.needs.items():
                self._check(factory, parameter, need, (*chain, factory))
                if need.kind in self.factories:
                    visit(self.factories[need.kind], (*chain, factory))
            done[factory.gives] = factory

        for factory in self.factories.values():
            visit(factory, ())
        return list(done.values())

    def _check(self, factory: Factory, parameter: str, need: Need, chain: Sequence[Factory]) -> None:
        kind, of_process = need.kind, next((one for one in chain if one.per_process), None)
        if kind in self.overrides or kind is self.module.config or kind in self.shared:
            return
        each = kind in _CALLERS or kind in self.providers
        if kind in self.factories:
            each = not self.factories[kind].per_process
        elif not each:
            names = " → ".join([*(_name(one.gives) for one in chain), _name(kind)])
            raise DeclarationError(
                f"{factory.where}: nothing provides the {_name(kind)} of the parameter {parameter!r} ({names}); "
                f"write a @module.provide that returns one, or ask for {self._known()}"
            )
        if each and of_process is not None:
            names = " → ".join([*(_name(one.gives) for one in chain), _name(kind)])
            raise DeclarationError(
                f"{of_process.where} is called once for the process, but needs a {_name(kind)}, which each request has "
                f'of its own ({names}); declare it with @module.provide(per="scope")'
            )

    def _known(self) -> str:
        kinds: Collection[type] = {*self.shared, *self.providers, *self.factories}
        if self.module.config is not None:
            kinds = {*kinds, self.module.config}
        return ", ".join(sorted(map(_name, kinds))) or "nothing"


def understand(provision: Provision) -> Factory:
    """Read what a factory gives and needs from its annotations.

    Raises:
        DeclarationError: one is missing or of no use.
    """
    function, where = provision.function, provision.where
    if not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        raise DeclarationError(f"{where} must be `async def`; with `yield` where something has to be closed")
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError) as exc:
        raise DeclarationError(f"{where}: an annotation cannot be read: {exc}") from None
    gives = hints.pop("return", None)
    if inspect.isasyncgenfunction(function):
        gives = (typing.get_args(gives) or (None,))[0] if typing.get_origin(gives) in _GENERATORS else None
    if not isinstance(gives, type) or gives in (NoneType, object):
        form = "AsyncIterator[Mailer]" if inspect.isasyncgenfunction(function) else "Mailer"
        raise DeclarationError(f"{where} must say which class it provides, as in `-> {form}`")
    needs = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise DeclarationError(f"{where}: {parameter} cannot be filled; name each parameter")
        if parameter.default is not parameter.empty:
            continue
        kind, optional = _without_none(hints.get(name))
        if not isinstance(kind, type) or (optional and kind not in _CALLERS):
            raise DeclarationError(f"{where}: the parameter {name!r} needs a class as its type")
        needs[name] = Need(kind, optional)
    return Factory(provision, gives, needs)


@asynccontextmanager
async def _kept(making: Awaitable[object]) -> AsyncIterator[object]:
    yield await making


async def _patiently(
    name: str, factory: Factory, arguments: Mapping[str, object], health: Health
) -> tuple[AbstractAsyncContextManager[object], object]:
    """Call the factory until what it depends on is there; readiness says what is waited for."""
    backoff = Backoff()
    while True:
        opening = factory.opened(arguments)
        try:
            value = _checked(factory, await opening.__aenter__())
        except WORTH_WAITING as exc:
            why = f"{type(exc).__name__}: {exc}"
            health.waiting(name, why)
            pause = backoff.next()
            log.warning("waiting for a dependency", name=name, why=why, pause_s=round(pause, 2))
            await asyncio.sleep(pause)
        else:
            health.waiting(name, "")
            return opening, value


def _checked(factory: Factory, value: object) -> object:
    if value is None:
        raise TypeError(f"{factory.where} gave None instead of a {_name(factory.gives)}")
    return value


def _caller(need: Need, scope: Scope) -> object:
    if isinstance(scope.caller, need.kind):
        return scope.caller
    if need.optional:
        return None
    raise Unauthenticated


def _without_none(annotation: object) -> tuple[object, bool]:
    if typing.get_origin(annotation) not in (typing.Union, UnionType):
        return annotation, False
    kinds = tuple(kind for kind in typing.get_args(annotation) if kind is not NoneType)
    rest: object = kinds[0] if len(kinds) == 1 else typing.Union[kinds]  # noqa: UP007 - made at run time
    return rest, len(kinds) < len(typing.get_args(annotation))


def _name(kind: type) -> str:
    return kind.__qualname__
