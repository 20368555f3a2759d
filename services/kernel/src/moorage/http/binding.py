"""A module's handlers, understood and ready to be dispatched by a rule's name."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from aiohttp import web
from pydantic import BaseModel

from moorage.errors import NotFound
from moorage.guard.matcher import segments
from moorage.http import apidocs, conditional, docstrings, idempotency
from moorage.http.answers import Answer, answering
from moorage.http.body import UnsupportedMediaTypeError, read_any, read_body
from moorage.http.docstrings import Docs
from moorage.http.parameters import Providers, Signature, Value, loaded_type, understand
from moorage.http.request import Context
from moorage.http.websocket import Sockets, check_origins
from moorage.kept import AnswerStore
from moorage.model import Query
from moorage.module import DeclarationError, Handler, Module
from moorage.scope import Stack


@dataclass(frozen=True)
class Bound:
    """One handler: its loader's parameters, its own, what its docstring says, and how it answers."""

    handler: Handler
    loader: Signature | None
    signature: Signature
    answer: Answer
    docs: Docs = field(default_factory=Docs)

    @property
    def captures(self) -> frozenset[str]:
        """What the rule's path must capture."""
        return self.signature.captures | (self.loader.captures if self.loader else frozenset())

    async def run(self, context: Context, store: AnswerStore | None) -> web.StreamResponse:
        """Load the resource, ask the guard about it, call the handler, make the answer.

        Raises:
            NotFound: the loader returned None.
            Forbidden: the permission's condition does not hold for the resource.
            PreconditionFailed: the request names another state of the resource.
        """
        keyed, method = None, context.web.method
        keeps = self.keeps_answers(method)
        if keeps or self.body is not None:
            await self._take_body(context, keeps=keeps)
        if keeps:
            keyed = await idempotency.keyed(context, store, required=bool(self.handler.idempotent))
        if keyed is not None and (before := await keyed.before(context)) is not None:
            # Before the loader: what was done may have removed the resource, or made it another's.
            return before
        await self.load(context)
        if method not in conditional.SAFE and conditional.asked(context):
            current = await conditional.tag_of_resource(context, self.answer, self.handler)
            conditional.require(context, current)
        result = await self.signature.call(context)
        response = await self.answer(context, result)
        response = await conditional.tag_answer(context, self.handler, result, response)
        if keyed is not None:
            await keyed.after(context, response)
        return response

    async def _take_body(self, context: Context, *, keeps: bool) -> None:
        """Have the body before a loader opens a transaction: a few clients that send slowly would hold the whole pool.

        It is looked at later; one of a type that is refused then is not even read.
        """
        if keeps and idempotency.HEADER in context.web.headers:
            await read_any(context)  # whatever its type, since the key is of all of it
        elif self.body is not None:
            with suppress(UnsupportedMediaTypeError):
                await read_body(context)

    async def connect(self, context: Context, sockets: Sockets) -> web.StreamResponse:
        """Load the resource, ask the guard about it, and let the handler talk with the client.

        What was opened for the loader is finished before: a unit of work would be open as long as the connection.
        """
        outer, found = context.stack, dict(context.found)
        async with Stack() as context.stack:
            await self.load(context)
        context.stack, context.found, context.run = outer, found, None
        context.before_answer.clear()
        assert self.handler.socket is not None
        return await sockets.serve(context, self.handler.socket, self.signature.socket, self.signature.call)

    async def load(self, context: Context) -> None:
        """Load the resource, if there is a loader, and ask the guard about it."""
        if self.loader is not None:
            resource = await self.loader.call(context)
            if resource is None:
                raise NotFound
            context.resource = resource
        context.guard.authorize(context.decision, context.resource)

    def keeps_answers(self, method: str) -> bool:
        """Whether an idempotency key counts: not for streams, whose answers are not kept."""
        wanted = self.handler.idempotent is not False and not self.answer.streams
        return wanted and (self.handler.idempotent is True or method in idempotency.METHODS)

    @property
    def values(self) -> tuple[Value, ...]:
        """The plain parameters of loader and handler."""
        loaded = self.loader.values if self.loader is not None else ()
        return tuple({value.name: value for value in (*loaded, *self.signature.values)}.values())

    @property
    def queries(self) -> tuple[type[Query], ...]:
        """The models of the query string."""
        loaded = self.loader.queries if self.loader is not None else ()
        return tuple(dict.fromkeys((*loaded, *self.signature.queries)))

    @cached_property
    def body(self) -> type[BaseModel] | None:
        """The model of the body; None: there is none."""
        return self.signature.body or (self.loader.body if self.loader is not None else None)

    @property
    def provided(self) -> frozenset[type]:
        """The types that ports have to provide for it."""
        return self.signature.provided | (self.loader.provided if self.loader else frozenset())

    @property
    def needs_caller(self) -> bool:
        """Whether it cannot answer an anonymous request."""
        return self.signature.needs_caller or (self.loader is not None and self.loader.needs_caller)

    def fits(self, path: str) -> str:
        """Why it cannot answer the requests of a rule with this *path*; empty if it can."""
        given = {part[1:-1] for part in segments(path) if part.startswith("{")}
        missing = sorted(self.captures - given)
        if not missing:
            return ""
        return f"{self.handler.where} needs {{{missing[0]}}}, which the path {path} does not capture"


def bind(module: Module, providers: Providers) -> Mapping[str, Bound]:
    """Understand every handler of *module*.

    Raises:
        DeclarationError: one cannot work; the text names it and the parameter.
    """
    handlers = dict(module.handlers)
    for what, rule in module.described.items():
        if rule in handlers:
            raise DeclarationError(
                f"rule {rule!r} has two handlers: {handlers[rule].where} and Module.serve_openapi"
            )
        function = apidocs.document if what == "document" else apidocs.page
        handlers[rule] = Handler(rule, function, cache="no-cache", etag=True, idempotent=False)
    return {rule: _bind(handler, providers) for rule, handler in handlers.items()}


def _bind(handler: Handler, providers: Providers) -> Bound:
    loader = None
    resource = None
    if handler.resource is not None:
        resource = loaded_type(handler.resource)
        loader = understand(handler.resource, providers)
    signature = understand(handler.function, providers, resource=resource)
    answer = answering(handler, signature.returns)
    _check_socket(handler, signature)
    conditional.check_declaration(handler, answer)
    return Bound(handler, loader, signature, answer, docstrings.read(handler))


def _check_socket(handler: Handler, signature: Signature) -> None:
    if handler.socket is not None:
        if signature.socket is None or signature.body is not None:
            raise DeclarationError(f"{handler.where} needs a parameter of type WebSocket, and has no body")
        check_origins(handler.where, handler.socket)
    elif signature.socket is not None:
        raise DeclarationError(f"{handler.where} takes a WebSocket: declare it with @module.websocket")
