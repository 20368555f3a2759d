"""A module's handlers, understood and ready to be dispatched by a rule's name."""

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from moorage.errors import NotFound
from moorage.guard.engine import Guard
from moorage.guard.matcher import segments
from moorage.http.answers import Answer, answering
from moorage.http.parameters import Providers, Signature, loaded_type, understand
from moorage.http.request import Context
from moorage.module import Handler, Module


@dataclass(frozen=True)
class Bound:
    """One handler: its loader's parameters, its own, and how it answers."""

    handler: Handler
    loader: Signature | None
    signature: Signature
    answer: Answer

    @property
    def captures(self) -> frozenset[str]:
        """What the rule's path must capture."""
        return self.signature.captures | (self.loader.captures if self.loader else frozenset())

    async def run(self, context: Context, guard: Guard) -> web.StreamResponse:
        """Load the resource, ask the guard about it, call the handler, make the answer.

        Raises:
            NotFound: the loader returned None.
            Forbidden: the permission's condition does not hold for the resource.
        """
        if self.loader is not None:
            resource = await self.loader.call(context)
            if resource is None:
                raise NotFound
            context.resource = resource
        guard.authorize(context.decision, context.resource)
        result = await self.signature.call(context)
        return await self.answer(context, result)

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
    return {rule: _bind(handler, providers) for rule, handler in module.handlers.items()}


def _bind(handler: Handler, providers: Providers) -> Bound:
    loader = None
    resource = None
    if handler.resource is not None:
        resource = loaded_type(handler.resource)
        loader = understand(handler.resource, providers)
    signature = understand(handler.function, providers, resource=resource)
    return Bound(handler, loader, signature, answering(handler, signature.returns))
