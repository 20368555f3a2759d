"""A guard whose issuer publishes its keys, with time in the test's hands."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

from key_server import KeyServer

from moorage.errors import AppError
from moorage.guard import tokens
from moorage.guard.decision import Decision
from moorage.guard.engine import Guard
from moorage.guard.folder import Loaded
from moorage.guard.keyring import Keyring
from moorage.guard.limits.limiter import Limiter
from moorage.guard.policy import BaseDocument, Issuer
from moorage.metrics import Metrics

Facts = Callable[..., Any]
SURE_S = 30.0
OLD, NEW, OTHER = (tokens.new_es256_key() for _ in range(3))


def kid(key: bytes) -> str:
    return tokens.public_jwk(key)["kid"]


async def until(condition: Callable[[], object]) -> None:
    """Wait for *condition*; a limit that only a mistake reaches."""
    async with asyncio.timeout(SURE_S):
        while not condition():  # noqa: ASYNC110 - what is asked for sets no event
            await asyncio.sleep(0.005)


class World:
    """One guard, its key ring, and an issuer's server. Time stands still unless `later` is called."""

    def __init__(
        self, server: KeyServer, make_document: Callable[..., BaseDocument], facts: Facts, now: float
    ) -> None:
        self.server = server
        self.now = now
        self.rising = 1000.0
        self.degraded = ""
        self.make_document = make_document
        self.facts = facts
        self.metrics = Metrics(module="blog", version="1", revision="r")
        self.tasks: list[asyncio.Task[None]] = []

    def issuer(self, *keys: bytes, **changes: Any) -> Issuer:
        values: dict[str, Any] = {
            "issuer": "https://moorage.test",
            "audiences": ["test"],
            "algorithms": ["ES256"],
            "keys": [dict(tokens.public_jwk(key)) for key in keys],
            "subject": "user",
            "jwks_uri": self.server.address,
        }
        return Issuer(**values | changes)

    def start(
        self, *issuers: Issuer, regularly: bool = True, limiter: Limiter | None = None, **options: Any
    ) -> None:
        document = self.make_document(issuers=list(issuers) or [self.issuer()])
        self.guard = Guard.from_document(document, clock=lambda: self.now, limiter=limiter)
        self.guard.bind_proxy()
        self.keyring = Keyring(
            self.guard,
            metrics=self.metrics,
            degraded=lambda why: setattr(self, "degraded", why),
            clock=lambda: self.now,
            rising=lambda: self.rising,
            chance=lambda: 0.5,
            **options,
        )
        self.guard.find_keys(self.keyring)
        if regularly:
            self.tasks.append(asyncio.create_task(self.keyring.run()))

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def later(self, seconds: float) -> None:
        """So much later; what is due then has begun."""
        self.rising += seconds
        self.keyring._wake.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def use_up(self) -> None:
        """Let somebody have had keys fetched just now."""
        for place in self.keyring._places.values():
            place.demanded = self.rising

    async def settled(self) -> None:
        """What is under way has ended."""
        await asyncio.sleep(0)
        await until(lambda: not self.keyring._flights)

    def token(self, key: bytes, **changes: Any) -> str:
        values: dict[str, Any] = {
            "issuer": "https://moorage.test",
            "audience": "test",
            "user_id": UUID(int=7),
            "roles": ["author"],
            "now": self.now,
        }
        return tokens.issue_user_token(key, **values | changes)

    async def admit(self, key: bytes, **changes: Any) -> Decision:
        return await self.guard.admit(self.request(self.token(key, **changes)))

    def request(self, token: str, target: str = "/me") -> Any:
        return self.facts("GET", target, {"Authorization": f"Bearer {token}"})

    async def outcome(self, key: bytes, **changes: Any) -> str:
        """The rule that let a token of *key* in, or the code of the refusal."""
        try:
            return (await self.admit(key, **changes)).name
        except AppError as error:
            return error.code

    def fetches(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("guard_key_fetches_total", {"result": result}) or 0.0

    @property
    def status(self) -> dict[str, Any]:
        (status,) = self.guard.status()["keys"]
        assert isinstance(status, dict)
        return status

    async def ready(self) -> None:
        """The first fetch has brought keys, and nothing is under way."""
        await until(lambda: not self.guard.waiting)
        await self.settled()

    def switch(self, *issuers: Issuer) -> None:
        """Put the next policy in force, with these issuers."""
        assert self.guard.policy is not None
        document = self.make_document(issuers=list(issuers), sequence=self.guard.policy.document.sequence + 1)
        self.guard._switch(Loaded(document, document.canonical()))


@asynccontextmanager
async def a_world(
    make_document: Callable[..., BaseDocument], facts: Facts, now: float
) -> AsyncIterator[World]:
    """One whose server publishes `OLD`; nothing runs before `start`."""
    async with KeyServer(OLD) as server:
        world = World(server, make_document, facts, now)
        try:
            yield world
        finally:
            await world.stop()
