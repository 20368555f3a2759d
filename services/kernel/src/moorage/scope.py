"""One unit of execution: a request, an event, later a job; what is known of it, and what it holds open."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from moorage.guard.headers import Trace
from moorage.guard.identity import Caller

Entered = TypeVar("Entered")


class Stack:
    """What has to be left at the end, the last entered first: an `AsyncExitStack` that is made for the first, since
    most work enters nothing.
    """

    __slots__ = ("_entered",)

    def __init__(self) -> None:
        self._entered: AsyncExitStack | None = None

    async def enter_async_context(self, manager: AbstractAsyncContextManager[Entered]) -> Entered:
        """Enter *manager*, and leave it at the end."""
        if self._entered is None:
            self._entered = AsyncExitStack()
        return await self._entered.enter_async_context(manager)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return None if self._entered is None else await self._entered.__aexit__(kind, error, trace)


@dataclass(slots=True, kw_only=True)
class Scope:
    """What ports need to know of the work for which they are asked.

    ``stack`` holds what has to be finished after the handler (a unit of work commits, or rolls back on an error);
    ``before_answer`` runs when the handler has returned and before its result is used; ``run`` reads the result
    where lazily loaded attributes can be read. ``found`` remembers what providers gave, one of each type.
    """

    stack: Stack
    groups: Mapping[type, object]
    """The module's own settings, by class."""
    trace: Trace
    request_id: str
    tenant: str | None = None
    """For whom it works; ``None``: for nobody, rows of tenants are not seen."""
    caller: Caller | None = None
    deadline: float | None = None
    """When it has to be done, in the event loop's time; ``None``: no limit."""
    found: dict[type, object] = field(default_factory=dict)
    before_answer: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    run: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None


Provider = Callable[[Scope], Awaitable[object]]
"""Gives a handler's parameter of one type; it may put what has to be closed on the scope's stack."""

current: ContextVar[Scope | None] = ContextVar("moorage_scope", default=None)
"""The unit of execution that the running code belongs to; ``None`` outside of any."""
