"""The HTTP client port: `Clients` for whoever asks. The pool of connections is made by the first call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moorage.client.calls import Caller, Target
from moorage.client.client import Clients, states
from moorage.client.identity import Identity, OwnToken
from moorage.client.observed import Counts
from moorage.client.targets import Dns, Registry
from moorage.scope import Scope

if TYPE_CHECKING:
    from moorage.assembly import Assembly


def attach(assembly: Assembly) -> None:
    """Give `Clients` parameters the process's clients.

    Raises:
        ConfigError: `client.registry` cannot be read.
    """
    settings = assembly.settings.client
    targets: dict[str, Target] = {}
    caller = Caller(
        settings,
        places=Dns() if settings.registry is None else Registry(settings.registry),
        identity=assembly.get(Identity) or OwnToken(Path(settings.token_file)),  # type: ignore[type-abstract]
        counts=Counts(assembly.metrics, lambda: states(targets)),
        tracer=assembly.tracer,
    )
    clients = Clients(
        caller,
        targets,
        namespace=assembly.namespace,
        core_namespace=assembly.settings.moorage.core_namespace,
    )

    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await caller.close()

    async def give(_: Scope) -> object:
        return clients

    assembly.share(Clients, clients)
    assembly.resource("clients", opened)
    assembly.provide(Clients, give)
