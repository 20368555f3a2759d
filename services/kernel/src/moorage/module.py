"""The module as its author declares it: handlers bound to rules by name."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from moorage.config.settings import Config

Function = Callable[..., Awaitable[Any] | AsyncIterator[Any]]
"""``async def``, with ``return`` or, for answers that are sent piece by piece, with ``yield``."""
F = TypeVar("F", bound=Function)

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_RULE = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


class DeclarationError(TypeError):
    """A module whose code cannot work; the text names the handler and the mend. Raised at import or start."""


@dataclass(frozen=True)
class Handler:
    """The function that answers a rule's requests, the loader of its resource, and the status of its
    answer.
    """

    rule: str
    function: Function
    resource: Function | None
    status: int | None

    @property
    def where(self) -> str:
        """How messages call it: ``blog.posts.create``."""
        return f"{self.function.__module__}.{self.function.__qualname__}"


class Module:
    """A backend module: ``module = Module("blog")``, then handlers for the rules of its Routes.

    Args:
        name: the Module resource's name.
        config: the module's own settings; their group is named after the module.

    Raises:
        DeclarationError: the name is none that a Module resource could have.
    """

    def __init__(self, name: str, *, config: type[Config] | None = None) -> None:
        if not _NAME.fullmatch(name):
            raise DeclarationError(f"a module cannot be called {name!r}: use at most 40 of a-z, 0-9 and -")
        self.name = name
        self.config = config
        self.handlers: dict[str, Handler] = {}

    def handle(
        self, rule: str, *, resource: Function | None = None, status: int | None = None
    ) -> Callable[[F], F]:
        """Answer the requests of *rule* with the decorated coroutine function.

        Its parameters say what it needs: `Db`, `User` (or ``User | None``), `Request`, a `Paging` or other
        `Query`, one `Model` for the body; ``id: UUID`` gets the path's ``{id}``, ``q: str | None = None`` the
        query parameter ``q``. It returns what is sent: a `Model`, a page, a row (see `moorage.Out`), or None
        for 204.

        Args:
            rule: a rule's name, best a member of the generated ``Routes``.
            resource: loads what the request is about. It gets its parameters as a handler does; the
            permission's
                condition sees its result as ``resource``, and the handler's parameter of its type gets it.
                ``None`` as a result is 404.
            status: the status of success; default: 200, or 204 for None.
        """
        if not _RULE.fullmatch(rule):
            raise DeclarationError(f"{rule!r} cannot be the name of a rule")

        def register(function: F) -> F:
            handler = Handler(str(rule), function, resource, status)
            other = self.handlers.get(handler.rule)
            if other is not None and other.where != handler.where:
                raise DeclarationError(f"rule {rule!r} has two handlers: {other.where} and {handler.where}")
            self.handlers[handler.rule] = handler
            return function

        return register
