"""What every server of the policy stream promises, as checks that any of them can be put to.

A test gives each of `CHECKS` a `Server`, freshly started; a check raises `AssertionError`. Limits of time are generous:
a check waits for what has to come, and fails only when it is sure that it does not.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import aiohttp

from moorage.guard.feed import KINDS, Document
from moorage.guard.overlay import Change, Heartbeat, Overlay, OverlayDocument, parse
from moorage.guard.sealing import Seals
from moorage.guard.sse import EventParser
from moorage.guard.stream import MAX_EVENT, MEDIA_TYPE, PATH

_SURE_S: Final = 30.0


class Server(Protocol):
    """A server with at least two replicas, and what a check needs to know of it and do to it."""

    urls: Sequence[str]
    """Of its replicas."""
    token: str
    """Of a module that may follow."""
    place: tuple[str, str]
    """Namespace and name of that module."""
    trust: bytes
    """The trust anchor (PEM)."""
    core_namespace: str
    heartbeat: float
    """Seconds between two heartbeats."""

    async def change(self) -> None:
        """Have the overlay changed by one step, in whatever way: a session more that is revoked."""
        ...


class Reader:
    """One connection: every message verified, in order."""

    def __init__(self, server: Server, response: aiohttp.ClientResponse) -> None:
        self._server = server
        self._response = response
        self._seals = Seals(lambda: server.trust, namespace=server.core_namespace)
        self._parser = EventParser(MAX_EVENT)
        self._waiting: list[Document] = []

    async def next(self, kind: type[Document] | None = None) -> Document:
        """The next message; of *kind*, if it is given: others are passed over."""
        async with asyncio.timeout(_SURE_S):
            while True:
                while not self._waiting:
                    chunk = await self._response.content.readany()
                    assert chunk, "the server ended the stream"
                    self._waiting += [self._read(*event) for event in self._parser.feed(chunk)]
                found = self._waiting.pop(0)
                if kind is None or isinstance(found, kind):
                    return found

    def _read(self, name: str, data: str, id: str | None) -> Document:
        document: Document = parse(KINDS[name], self._seals.open(data))
        assert id == str(document.sequence), "the event's id is its sequence"
        assert (document.namespace, document.module) == self._server.place
        return document


@asynccontextmanager
async def following(server: Server, after: int | None = None, replica: int = 0) -> AsyncIterator[Reader]:
    """A connection to one of the replicas."""
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        _asked(session, server, replica, after=after) as response,
    ):
        assert response.status == 200
        assert response.content_type == MEDIA_TYPE
        yield Reader(server, response)


@asynccontextmanager
async def _asked(
    session: aiohttp.ClientSession, server: Server, replica: int = 0, **changes: object
) -> AsyncIterator[aiohttp.ClientResponse]:
    namespace, module = server.place
    token = changes.pop("token", server.token)
    given = {"namespace": namespace, "module": module, **changes}
    query = {name: str(value) for name, value in given.items() if value is not None}
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    url = f"{server.urls[replica]}{PATH}"
    async with session.get(url, params=query, headers=headers, allow_redirects=False) as response:
        yield response


async def who_asks_for_nothing_special_gets_the_whole_first(server: Server) -> None:
    """Without `after`, the first message is a snapshot."""
    await server.change()
    async with following(server) as reader:
        assert isinstance(await reader.next(), OverlayDocument)


async def who_has_everything_gets_a_sign_of_life_at_once(server: Server) -> None:
    """With `after` the newest sequence, the first message is a heartbeat, and changes follow."""
    async with following(server) as reader:
        sequence = (await reader.next()).sequence
    async with following(server, sequence) as reader:
        first = await reader.next()
        assert isinstance(first, Heartbeat)
        assert first.sequence == sequence
        await server.change()
        assert (await reader.next(Change)).sequence == sequence + 1


async def who_missed_something_gets_just_that_or_the_whole(server: Server) -> None:
    """With an older `after`, either every change since, or a snapshot; both lead to the same overlay."""
    async with following(server) as reader:
        first = await reader.next()
        assert isinstance(first, OverlayDocument)
        before = Overlay.of(first)
    for _ in range(3):
        await server.change()
    async with following(server) as reader:
        last = await reader.next()
        assert isinstance(last, OverlayDocument)
    async with following(server, before.sequence) as reader:
        now = before
        while now.sequence < last.sequence:
            message = await reader.next()
            if isinstance(message, Change):
                assert message.sequence == now.sequence + 1
                now = now.after(message)
            elif isinstance(message, OverlayDocument):
                now = Overlay.of(message)
    assert now == Overlay.of(last)


async def who_knows_more_than_the_server_gets_the_whole(server: Server) -> None:
    """With an `after` that the server does not know, a snapshot."""
    async with following(server, 2**52) as reader:
        assert isinstance(await reader.next(), OverlayDocument)


async def changes_come_in_order_without_a_gap(server: Server) -> None:
    """However many at once, and what they add up to is what a new follower gets."""
    async with following(server) as reader:
        first = await reader.next()
        assert isinstance(first, OverlayDocument)
        await asyncio.gather(*(server.change() for _ in range(20)))
        now = Overlay.of(first)
        for number in range(20):
            message = await reader.next(Change)
            assert isinstance(message, Change)
            assert message.sequence == first.sequence + 1 + number
            now = now.after(message)
    async with following(server) as reader:
        whole = await reader.next()
        assert isinstance(whole, OverlayDocument)
    assert now == Overlay.of(whole)


async def heartbeats_come_while_nothing_happens(server: Server) -> None:
    """Often enough for a guard, with a time that rises and the sequence that is in force."""
    async with following(server) as reader:
        sequence = (await reader.next()).sequence
        loop = asyncio.get_running_loop()
        began = loop.time()
        stamps = []
        for _ in range(3):
            message = await reader.next(Heartbeat)
            assert message.sequence == sequence
            stamps.append(message.heartbeat_at)
        # A machine that is busy may be late, but not by so much.
        assert loop.time() - began < 9 * server.heartbeat + 5
        assert all(a < b for a, b in itertools.pairwise(stamps))


async def replicas_send_the_same_sequence(server: Server) -> None:
    """A guard may go from one to the other with what it has."""
    async with following(server, replica=0) as one, following(server, replica=1) as other:
        assert _content(await one.next()) == _content(await other.next())
        for _ in range(5):
            await server.change()
        for _ in range(5):
            assert _content(await one.next(Change)) == _content(await other.next(Change))
        last = await one.next(Heartbeat)
    async with following(server, last.sequence, replica=1) as other:
        assert isinstance(await other.next(), Heartbeat)


async def only_modules_that_are_known_are_answered(server: Server) -> None:
    """404 for another namespace or module, 400 for an `after` that is no sequence, 401 without a good token."""
    cases: list[tuple[dict[str, object], int]] = [
        ({"namespace": "nowhere"}, 404),
        ({"module": "nothing"}, 404),
        ({"namespace": None}, 404),
        ({"after": "x"}, 400),
        ({"after": "-1"}, 400),
        ({"token": None}, 401),
        ({"token": "another"}, 401),
        ({"token": None, "namespace": "nowhere"}, 401),
    ]
    async with aiohttp.ClientSession() as session:
        for changes, status in cases:
            async with _asked(session, server, 0, **changes) as response:
                assert response.status == status, changes
                body = await response.json()
                assert set(body["error"]) == {"code", "message", "details", "request_id"}


def _content(document: Document) -> dict[str, object]:
    """*document* but for when it was signed, which each replica says for itself."""
    return document.model_dump(exclude={"heartbeat_at"})


CHECKS: Final[Sequence[Callable[[Server], Awaitable[None]]]] = (
    who_asks_for_nothing_special_gets_the_whole_first,
    who_has_everything_gets_a_sign_of_life_at_once,
    who_missed_something_gets_just_that_or_the_whole,
    who_knows_more_than_the_server_gets_the_whole,
    changes_come_in_order_without_a_gap,
    heartbeats_come_while_nothing_happens,
    replicas_send_the_same_sequence,
    only_modules_that_are_known_are_answered,
)
