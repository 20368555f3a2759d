"""Handlers that cannot work are refused when the process starts, with the name of what is wrong."""

from collections.abc import Callable
from typing import Any

import pytest

from moorage import Db, Model, Module, Out, User
from moorage.http.binding import bind
from moorage.module import DeclarationError


class A(Model):
    a: int


class B(Model):
    b: int


class Row:
    """No model, and nothing that a port provides."""


async def two_bodies(a: A, b: B) -> None: ...
async def untyped(x) -> None: ...  # type: ignore[no-untyped-def]  # what the test is about
async def rest(*args: int) -> None: ...
async def unknown_type(row: Row) -> None: ...
async def no_database(db: Db) -> None: ...
async def unknown_name(x: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def odd_answer() -> Out[Row]: ...
def not_async() -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (two_bodies, "both A and B would be the body"),
        (untyped, "the parameter 'x' needs a type"),
        (rest, "cannot be filled"),
        (unknown_type, "nothing provides"),
        (no_database, "with a database configured"),
        (unknown_name, "Nowhere"),
        (odd_answer, "cannot answer with"),
        (not_async, "async def"),
    ],
)
def test_a_handler_that_cannot_work_is_named(function: Callable[..., Any], message: str) -> None:
    module = Module("shop")
    module.handle("x")(function)
    with pytest.raises(DeclarationError, match=message) as caught:
        bind(module, {})
    assert function.__name__ in str(caught.value)


async def loader(id: int):  # type: ignore[no-untyped-def]  # what the test is about
    ...


async def handler(row: Row) -> None: ...


def test_a_loader_must_say_what_it_returns() -> None:
    module = Module("shop")
    module.handle("x", resource=loader)(handler)
    with pytest.raises(DeclarationError, match="loader must say what it returns"):
        bind(module, {})


def test_captures_are_those_of_loader_and_handler() -> None:
    async def load(id: int) -> Row | None: ...

    async def read(row: Row, part: str, q: str = "") -> None: ...

    module = Module("shop")
    module.handle("x", resource=load)(read)
    bound = bind(module, {})["x"]
    assert bound.captures == {"id", "part"}
    assert bound.fits("/{id}/{part}") == ""
    assert "needs {part}, which the path /{id} does not capture" in bound.fits("/{id}")


def test_needing_a_caller_is_known() -> None:
    async def needs(user: User) -> None: ...

    async def takes(user: User | None) -> None: ...

    module = Module("shop")
    module.handle("needs")(needs)
    module.handle("takes")(takes)
    bound = bind(module, {})
    assert (bound["needs"].needs_caller, bound["takes"].needs_caller) == (True, False)
