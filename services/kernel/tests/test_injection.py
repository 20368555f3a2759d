"""`@module.provide`: order, scopes, closing, overrides; and what cannot work is said before anything starts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest

from moorage import trace
from moorage.assembly import Assembly
from moorage.config import Config, Settings
from moorage.config.live import Live
from moorage.errors import Unauthenticated
from moorage.guard.identity import User
from moorage.injection import Injection
from moorage.module import DeclarationError, Module
from moorage.scope import Scope, Stack


class ShopConfig(Config):
    sender: str = "shop@example.org"


class Templates:
    pass


class Mailer:
    """Made for the process; ``alive`` is what its ping says."""

    def __init__(self, sender: str, templates: Templates | None = None) -> None:
        self.sender, self.templates = sender, templates
        self.alive = True

    async def ping(self) -> None:
        if not self.alive:
            raise ConnectionError("the mail server is away")


class Basket:
    def __init__(self, user: User | None) -> None:
        self.user = user


class Checkout:
    def __init__(self, basket: Basket, mailer: Mailer) -> None:
        self.basket, self.mailer = basket, mailer


class Port:
    """What a port gives to each scope."""


def scope(stack: Stack, assembly: Assembly, caller: User | None = None) -> Scope:
    return Scope(stack=stack, groups=assembly.groups, trace=trace.new(), request_id="r", caller=caller)


def assembled(module: Module, overrides: dict[type, object] | None = None) -> Assembly:
    groups = {"shop": ShopConfig}
    live = Live.fixed(Settings.model_validate({}), {})
    live = Live(live.now.__class__(1, live.now.settings, {ShopConfig: ShopConfig()}), _groups=groups)
    return Assembly.of(module, live, overrides)


@pytest.fixture
def module() -> Module:
    return Module("shop", config=ShopConfig)


async def test_factories_of_the_process_are_called_after_what_they_need_and_closed_in_reverse(
    module: Module,
) -> None:
    events: list[str] = []

    @module.provide
    async def mailer(config: ShopConfig, templates: Templates) -> AsyncIterator[Mailer]:
        events.append("mailer")
        yield Mailer(config.sender, templates)
        events.append("mailer closed")

    @module.provide
    async def templates() -> AsyncIterator[Templates]:
        events.append("templates")
        yield Templates()
        events.append("templates closed")

    assembly = assembled(module)
    async with assembly.opened():
        assert events == ["templates", "mailer"]
        async with Stack() as stack:
            first = await assembly.providers[Mailer](scope(stack, assembly))
            second = await assembly.providers[Mailer](scope(stack, assembly))
        assert isinstance(first, Mailer)
        assert first is second
        assert first.sender == "shop@example.org"
        assert isinstance(first.templates, Templates)
    assert events[2:] == ["mailer closed", "templates closed"]


async def test_a_factory_of_a_scope_is_called_once_in_it_and_closed_with_it(module: Module) -> None:
    events: list[str] = []

    @module.provide
    async def mailer() -> Mailer:
        return Mailer("x")

    @module.provide(per="scope")
    async def basket(user: User | None) -> AsyncIterator[Basket]:
        events.append("open")
        try:
            yield Basket(user)
        finally:
            events.append("closed")

    @module.provide(per="scope")
    async def checkout(basket: Basket, mailer: Mailer) -> Checkout:
        return Checkout(basket, mailer)

    assembly = assembled(module)
    async with assembly.opened():
        user = User(uuid4())
        async with Stack() as stack:
            inside = scope(stack, assembly, user)
            made = await assembly.providers[Checkout](inside)
            assert isinstance(made, Checkout)
            assert made.basket is await assembly.providers[Basket](inside)
            assert made.basket.user is user
            other = await assembly.providers[Basket](scope(stack, assembly))
            assert isinstance(other, Basket)
            assert other is not made.basket
            assert other.user is None
        assert events == ["open", "open", "closed", "closed"]


async def test_a_factory_of_a_scope_learns_of_the_error_and_can_tell_how_the_work_ended(
    module: Module,
) -> None:
    ended: list[str] = []

    @module.provide(per="scope")
    async def basket() -> AsyncIterator[Basket]:
        try:
            yield Basket(None)
        except ValueError as exc:
            ended.append(str(exc))
            raise

    assembly = assembled(module)
    stack = Stack()
    await assembly.providers[Basket](scope(stack, assembly))
    error = ValueError("no")
    assert not await stack.__aexit__(ValueError, error, None)
    assert ended == ["no"]


async def test_a_scope_without_the_caller_that_a_factory_needs_is_refused(module: Module) -> None:
    @module.provide(per="scope")
    async def basket(user: User) -> Basket:
        return Basket(user)

    assembly = assembled(module)
    async with Stack() as stack:
        with pytest.raises(Unauthenticated):
            await assembly.providers[Basket](scope(stack, assembly))


async def test_its_ping_counts_for_readiness_as_far_as_it_is_required(module: Module) -> None:
    @module.provide
    async def mailer() -> Mailer:
        return Mailer("x")

    @module.provide(required=False)
    async def templates() -> Templates:
        found = Templates()
        found.ping = mailer_of["x"].ping  # type: ignore[attr-defined]
        return found

    mailer_of = {"x": Mailer("y")}
    assembly = assembled(module)
    assembly.health.started = True
    async with assembly.opened():
        assert (await assembly.health.ready())[0]
        mailer_of["x"].alive = False
        assembly.health._last = (0.0, {})
        ready, problems = await assembly.health.ready()
        assert ready, "only degraded"
        assert problems["Templates"] == "ConnectionError: the mail server is away"
        made = await assembly.providers[Mailer](scope(Stack(), assembly))
        assert isinstance(made, Mailer)
        made.alive = False
        assembly.health._last = (0.0, {})
        assert not (await assembly.health.ready())[0]
        assert assembly.health.dependencies["Mailer"].state == "failed"


async def test_the_start_waits_for_a_dependency_and_says_for_what(module: Module) -> None:
    attempts = 0

    @module.provide
    async def mailer() -> AsyncIterator[Mailer]:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ConnectionRefusedError("nobody at mail:25")
        yield Mailer("x")

    assembly = assembled(module)
    seen: list[str] = []

    async def look() -> None:
        while True:
            seen.extend((await assembly.health.check()).values())
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look())
    async with assembly.opened():
        assert attempts == 3
        assert "Mailer" not in await assembly.health.check() or not (await assembly.health.check())["Mailer"]
    looking.cancel()
    assert "ConnectionRefusedError: nobody at mail:25" in seen
    assert assembly.health.dependencies["Mailer"].last_error == "ConnectionRefusedError: nobody at mail:25"


async def test_any_other_error_of_a_factory_ends_the_start_and_closes_what_was_open(module: Module) -> None:
    events: list[str] = []

    @module.provide
    async def templates() -> AsyncIterator[Templates]:
        yield Templates()
        events.append("closed")

    @module.provide
    async def mailer(templates: Templates) -> Mailer:
        raise ValueError("a wrong address")

    with pytest.raises(ValueError, match="a wrong address"):
        async with assembled(module).opened():
            pytest.fail("it has opened")
    assert events == ["closed"]


async def test_overrides_stand_in_and_their_factories_are_not_called(module: Module) -> None:
    @module.provide
    async def templates() -> Templates:
        raise AssertionError("not to be called")

    @module.provide
    async def mailer(templates: Templates) -> Mailer:
        return Mailer("real", templates)

    fake = Templates()
    assembly = assembled(module, {Templates: fake})
    async with assembly.opened(), Stack() as stack:
        made = await assembly.providers[Mailer](scope(stack, assembly))
        assert isinstance(made, Mailer)
        assert made.templates is fake
        assert await assembly.providers[Templates](scope(stack, assembly)) is fake


async def test_a_factory_that_gives_nothing_is_an_error_that_names_it(module: Module) -> None:
    @module.provide
    async def mailer() -> Mailer:
        return None  # type: ignore[return-value]

    with pytest.raises(TypeError, match=r"mailer gave None instead of a Mailer"):
        async with assembled(module).opened():
            pass


def _circle(module: Module) -> None:
    @module.provide
    async def mailer(templates: Templates) -> Mailer: ...  # type: ignore[empty-body]

    @module.provide
    async def templates(checkout: Checkout) -> Templates: ...  # type: ignore[empty-body]

    @module.provide
    async def checkout(mailer: Mailer) -> Checkout: ...  # type: ignore[empty-body]


def _missing(module: Module) -> None:
    @module.provide
    async def mailer(templates: Templates) -> Mailer: ...  # type: ignore[empty-body]

    @module.provide
    async def templates(basket: Basket) -> Templates: ...  # type: ignore[empty-body]


def _too_wide(module: Module) -> None:
    @module.provide
    async def mailer(port: Port) -> Mailer: ...  # type: ignore[empty-body]


def _caller(module: Module) -> None:
    @module.provide
    async def mailer(user: User) -> Mailer: ...  # type: ignore[empty-body]


def _twice(module: Module) -> None:
    @module.provide
    async def first() -> Mailer: ...  # type: ignore[empty-body]

    @module.provide
    async def second() -> Mailer: ...  # type: ignore[empty-body]


def _of_a_port(module: Module) -> None:
    @module.provide
    async def mine() -> Port: ...  # type: ignore[empty-body]


def _plain(module: Module) -> None:
    @module.provide
    def mailer() -> Mailer: ...  # type: ignore[empty-body]


def _untold(module: Module) -> None:
    @module.provide
    async def mailer(): ...  # type: ignore[no-untyped-def]


def _generator(module: Module) -> None:
    @module.provide
    async def mailer() -> Mailer:  # type: ignore[misc]
        yield Mailer("x")


def _untyped(module: Module) -> None:
    @module.provide
    async def mailer(config) -> Mailer: ...  # type: ignore[no-untyped-def]


def _value(module: Module) -> None:
    @module.provide
    async def mailer(name: str) -> Mailer: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (_circle, r"in a circle: Mailer → Templates → Checkout → Mailer"),
        (_missing, r"templates: nothing provides the Basket of .*\(Mailer → Templates → Basket\)"),
        (_too_wide, r"mailer is called once for the process, but needs a Port.*per=\"scope\""),
        (_caller, r"called once for the process, but needs a User"),
        (_twice, r"both .*first and .*second provide Mailer"),
        (_of_a_port, r"provides Port, which the kernel provides already"),
        (_plain, r"must be `async def`"),
        (_untold, r"must say which class it provides, as in `-> Mailer`"),
        (_generator, r"as in `-> AsyncIterator\[Mailer\]`"),
        (_untyped, r"'config' needs a class"),
        (_value, r"nothing provides the str .*Port, ShopConfig"),
    ],
)
def test_what_cannot_work_is_said_with_its_chain(
    module: Module, declare: Callable[[Module], None], message: str
) -> None:
    declare(module)

    async def give(_: Scope) -> object:
        return Port()

    with pytest.raises(DeclarationError, match=message):
        Injection(module, {}, {Port: give})


async def test_work_in_the_background_that_fails_is_begun_anew_and_told(module: Module) -> None:
    runs, again = 0, asyncio.Event()
    assembly = assembled(module)

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise RuntimeError("once")
        again.set()
        await asyncio.sleep(3600)

    assembly.background("sweeper", work)
    async with assembly.opened():
        await asyncio.sleep(0.05)
        assert (await assembly.health.check())["sweeper"] == "RuntimeError: restarting"
        assert assembly.health.dependencies["sweeper"].state == "degraded"
        await asyncio.wait_for(again.wait(), 3)


def test_declaring_the_same_function_again_changes_nothing(module: Module) -> None:
    """As a module that is imported twice does."""

    async def mailer() -> Any: ...

    module.provide(mailer)
    module.provide(mailer)
    assert len(module.provisions) == 1
