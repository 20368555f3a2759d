"""The module as its author declares it: handlers bound to rules by name."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from moorage.config.settings import Config

if TYPE_CHECKING:
    from moorage.events.event import Event

Function = Callable[..., Awaitable[Any] | AsyncIterator[Any]]
"""``async def``, with ``return`` or, for answers that are sent piece by piece, with ``yield``."""
F = TypeVar("F", bound=Function)
P = TypeVar("P", bound=Callable[..., Any])

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_RULE = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


class DeclarationError(TypeError):
    """A module whose code cannot work; the text names the handler and the mend. Raised at import or start."""


@dataclass(frozen=True)
class SocketOptions:
    """Bounds of one kind of WebSocket: a message in bytes, unsent messages, other origins that may connect."""

    max_message: int = 64 * 1024
    queue: int = 64
    origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Handler:
    """The function that answers a rule's requests, the loader of its resource, and the status of its
    answer.
    """

    rule: str
    function: Function
    resource: Function | None = None
    status: int | None = None
    etag: bool | str = False
    cache: str | None = None
    idempotent: bool | None = None
    compress: bool = True
    socket: "SocketOptions | None" = None
    """Set for WebSockets."""

    @property
    def where(self) -> str:
        """How messages call it: ``blog.posts.create``."""
        return f"{self.function.__module__}.{self.function.__qualname__}"


@dataclass(frozen=True)
class Reaction:
    """The function that handles events of one type."""

    event: "type[Event]"
    function: Function

    @property
    def where(self) -> str:
        """How messages call it: ``blog.reactions.count``."""
        return f"{self.function.__module__}.{self.function.__qualname__}"


@dataclass(frozen=True)
class Provision:
    """A factory of something that handlers ask for by type; see `Module.provide`."""

    function: Callable[..., Any]
    per: Literal["process", "scope"]
    required: bool

    @property
    def where(self) -> str:
        """How messages call it: ``blog.mail.mailer``."""
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
        self.described: dict[Literal["document", "page"], str] = {}
        """Which rules the platform answers with what `serve_openapi` is about."""
        self.reactions: dict[str, Reaction] = {}
        self.provisions: list[Provision] = []

    def handle(
        self,
        rule: str,
        *,
        resource: Function | None = None,
        status: int | None = None,
        etag: bool | str = False,
        cache: str | None = None,
        idempotent: bool | None = None,
        compress: bool = True,
    ) -> Callable[[F], F]:
        """Answer the requests of *rule* with the decorated coroutine function.

        Its parameters say what it needs: `Db`, `User` (or ``User | None``), `Request`, a `Paging` or other
        `Query`, one `Model` for the body; ``id: UUID`` gets the path's ``{id}``, ``q: str | None = None`` the
        query parameter ``q``. It returns what is sent: a `Model`, a page, a row (see `moorage.Out`), or None
        for 204.

        Args:
            rule: a rule's name, best a member of the generated ``Routes``.
            resource: loads what the request is about. It gets its parameters as a handler does; the
                permission's condition sees its result as ``resource``, and the handler's parameter of its type
                gets it. ``None`` as a result is 404.
            status: the status of success; default: 200, or 204 for None.
            etag: answers carry an entity tag, ``If-None-Match`` and ``If-Match`` are judged. The tag is made from
                the attribute of that name (such as ``"updated_at"``) of the resource, or of what the handler
                returned; ``True``: from the answer's body.
            cache: the answer's ``Cache-Control``; default: ``no-store``, with *etag* that it be asked for again.
            idempotent: whether ``Idempotency-Key`` counts: ``None``: where a POST or PATCH has it and the module
                has a database; ``True``: it has to be there; ``False``: ignored, and no answer is ever stored.
            compress: ``False``: never compressed, for answers with a secret beside what others can put there.
        """

        _check_name(rule)

        def register(function: F) -> F:
            options = (resource, status, etag, cache, idempotent, compress)
            self._register(Handler(str(rule), function, *options))
            return function

        return register

    def on(self, event: "type[Event]") -> Callable[[F], F]:
        """Handle the events of a class's type with the decorated coroutine function; one for each type.

        One of its parameters is of the class; the others say what it needs, as those of `handle`: `Db`, `EventInfo`,
        the module's `Config`, what ports provide. What it changes by its `Db` is committed together with the note
        that the event was handled, so that it takes effect once. It raises `Reject` for what can never be handled;
        any other error is tried again.
        """
        if not event.__event_type__:
            raise DeclarationError(f"{event.__qualname__} has no type; give the class type= and key=")

        def register(function: F) -> F:
            reaction = Reaction(event, function)
            other = self.reactions.get(event.__event_type__)
            if other is not None and other.where != reaction.where:
                raise DeclarationError(
                    f"{event.__event_type__} has two handlers: {other.where} and {reaction.where}; let one call both"
                )
            self.reactions[event.__event_type__] = reaction
            return function

        return register

    def websocket(
        self,
        rule: str,
        *,
        resource: Function | None = None,
        max_message: int = 64 * 1024,
        queue: int = 64,
        origins: Sequence[str] = (),
    ) -> Callable[[F], F]:
        """Answer the requests of *rule*, one with GET, as WebSockets with the decorated coroutine function.

        It takes a `moorage.WebSocket`, and other parameters as those of `handle`; the socket is closed when it
        returns.

        Args:
            resource: as for `handle`; it is loaded, and the permission judged, before the connection is accepted.
            max_message: bytes of a message at most; a larger one ends the connection (1009).
            queue: unsent messages at most; with more the client is too slow and is dropped (1013).
            origins: origins (``https://app.example.com``) whose pages may connect, besides the module's own.
        """

        _check_name(rule)

        def register(function: F) -> F:
            options = SocketOptions(max_message, queue, tuple(origins))
            self._register(Handler(str(rule), function, resource, socket=options))
            return function

        return register

    @overload
    def provide(self, function: P, /) -> P: ...

    @overload
    def provide(
        self, /, *, per: Literal["process", "scope"] = "process", required: bool = True
    ) -> Callable[[P], P]: ...

    def provide(
        self,
        function: Any = None,
        /,
        *,
        per: Literal["process", "scope"] = "process",
        required: bool = True,
    ) -> Any:
        """Let handlers, and other factories, ask for what the decorated function makes, by its type::

            @module.provide
            async def mailer(config: ShopConfig) -> AsyncIterator[Mailer]:
                async with connect(config.mail_url) as mailer:
                    yield mailer

        A coroutine function returns it; an async generator yields it, and closes it after. Its own parameters are
        filled by type. If it has a coroutine method ``ping``, readiness asks it.

        Args:
            per: ``process``: it is made when the process starts, after what it needs, and waited for while it raises
                `ConnectionError`, `TimeoutError` or `NotReady`; ``scope``: anew for each request or event that
                asks for it, and closed when the handler has returned, what was made last first.
            required: whether the process is not ready while ``ping`` fails; ``False``: only degraded.
        """

        def register(made: Any) -> Any:
            provision = Provision(made, per, required)
            if all(other.where != provision.where for other in self.provisions):
                self.provisions.append(provision)
            return made

        return register if function is None else register(function)

    def serve_openapi(self, rule: str = "openapi", *, page: str | None = None) -> None:
        """Serve the module's OpenAPI document to whoever the *rule* lets in, and a page that shows it.

        Without this the document is on the admin port alone.

        Args:
            rule: name of the rule for the document, such as ``GET /openapi.json``.
            page: name of the rule for the page; ``None``: there is none.
        """
        for name in (rule, page or rule):
            _check_name(name)
        self.described = {"document": rule} if page is None else {"document": rule, "page": page}

    def _register(self, handler: Handler) -> None:
        other = self.handlers.get(handler.rule)
        if other is not None and other.where != handler.where:
            raise DeclarationError(
                f"rule {handler.rule!r} has two handlers: {other.where} and {handler.where}"
            )
        self.handlers[handler.rule] = handler


def _check_name(rule: str) -> None:
    if not _RULE.fullmatch(rule):
        raise DeclarationError(f"{rule!r} cannot be the name of a rule")
