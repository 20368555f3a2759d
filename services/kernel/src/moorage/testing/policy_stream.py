"""A stand-in for the service that makes the overlay: real HTTP on loopback, and every way in which a stream can fail.

    async with PolicyStream() as stream:
        stream.change(sessions=["the revoked one"])
        stream.cut()                                # whoever is connected has to come again

Whatever it promises is written down in `moorage.testing.stream_contract`, which any other server must keep as well.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web

from moorage.errors import AppError, BadRequest, NotFound, Unauthenticated, error_body
from moorage.guard import signing
from moorage.guard.overlay import HEARTBEAT_S, Change, Heartbeat, Overlay, OverlayDocument
from moorage.guard.sealing import Certificate, certified, seal
from moorage.guard.stream import MEDIA_TYPE, PATH

_KEPT: Final = 100
_YEAR_S: Final = 365 * 24 * 3600

Place = tuple[str, str]


def encode(name: str, data: str, sequence: int) -> bytes:
    """One event of the stream."""
    lines = [f"event: {name}", f"id: {sequence}", *(f"data: {line}" for line in data.split("\n"))]
    return ("\n".join(lines) + "\n\n").encode()


@dataclass(eq=False)
class _Connection:
    place: Place
    transport: asyncio.Transport
    queue: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue)


class PolicyStream:
    """A stream server with any number of replicas, open for the length of an ``async with`` block.

    Args:
        policy_key: the policy signing key (PEM) that certifies the overlay's; ``None``: a new one.
        modules: namespace and name of those who may follow.
        replicas: servers, each at a port of its own, which all send the same sequence.
        heartbeat: seconds; ``None``: heartbeats are sent by `heartbeat` alone.
        clock: seconds since the epoch, for `heartbeat_at`.
    """

    def __init__(
        self,
        *,
        policy_key: bytes | None = None,
        modules: tuple[Place, ...] = (("default", "blog"),),
        core_namespace: str = "moorage-system",
        replicas: int = 1,
        heartbeat: float | None = HEARTBEAT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.policy_key = policy_key or signing.new_key()
        self.modules = set(modules)
        self.core_namespace = core_namespace
        self.token = "the-modules-own-token"  # noqa: S105 - of this stub alone
        self.asked: list[Mapping[str, str]] = []
        """The query of each connection, in order."""
        self.urls: list[str] = []
        self.cut_at: int | None = None
        """Bytes of the body after which connections are cut off; ``None``: never."""
        self.pause = 0.0
        """Seconds before each byte; 0: everything at once."""
        self.refusing: int | None = None
        """A status with which every connection is refused; ``None``: none is."""
        self._replicas = replicas
        self._heartbeat = heartbeat
        self._clock = clock
        self._key = signing.new_key()
        self.certificate = self.certify()
        self._overlay = Overlay(0, {}, {}, frozenset(), None)
        self._changes: dict[int, dict[str, Any]] = {}
        self._stamp = 0
        self._open: list[_Connection] = []
        self._stack = AsyncExitStack()
        self._folder = Path()

    async def __aenter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="moorage-stream-")))
        self.token_file.write_text(self.token)
        for _ in range(self._replicas):
            app = web.Application()
            app.router.add_get(PATH, self._answer)
            runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            self._stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        await self._stack.aclose()

    # ---- what followers need

    @property
    def token_file(self) -> Path:
        """A file with the token that connections need."""
        return self._folder / "token"

    @property
    def trust(self) -> bytes:
        """The trust anchor (PEM)."""
        return signing.public_pem(self.policy_key)

    @property
    def environ(self) -> dict[str, str]:
        """Variables with which a module follows this stream."""
        return {
            "MOORAGE_POLICY_STREAM": ",".join(self.urls),
            "MOORAGE_CORE_NAMESPACE": self.core_namespace,
            "CLIENT_TOKEN_FILE": str(self.token_file),
            "GUARD_HEARTBEAT": f"{self._heartbeat or HEARTBEAT_S}s",
        }

    # ---- what the service does

    @property
    def overlay(self) -> Overlay:
        """The overlay that followers end up with."""
        return self._overlay

    @property
    def sequence(self) -> int:
        """That of the overlay."""
        return self._overlay.sequence

    @property
    def connections(self) -> int:
        """How many are connected."""
        return len(self._open)

    def change(self, **parts: Any) -> int:
        """Make and send the next change; *parts* are `Change`'s fields. Its sequence."""
        sequence = self.gap(**parts)
        self._send(lambda place: self.message("change", place, sequence))
        return sequence

    def heartbeat(self) -> None:
        """Send a heartbeat to everybody."""
        self._send(lambda place: self.message("heartbeat", place))

    def snapshot(self) -> None:
        """Send the whole overlay to everybody, though nobody asked."""
        self._send(lambda place: self.message("snapshot", place))

    def message(self, name: str, place: Place | None = None, sequence: int | None = None) -> bytes:
        """An event as it is sent now; *sequence*: of a change, ``None``: the newest."""
        namespace, module = place or min(self.modules)
        self._stamp = max(self._stamp + 1, int(self._clock() * 1000))
        number = self.sequence if sequence is None else sequence
        head: dict[str, Any] = {
            "namespace": namespace,
            "module": module,
            "sequence": number,
            "heartbeat_at": self._stamp,
        }
        document: OverlayDocument | Change | Heartbeat
        if name == "change":
            document = Change(**head, **self._changes[number])
        elif name == "heartbeat":
            document = Heartbeat(**head)
        else:
            document = OverlayDocument(**head, **_whole(self._overlay))
        return encode(name, seal(document.canonical(), self._key, self.certificate), number)

    # ---- what can go wrong

    def certify(self, **changes: Any) -> Certificate:
        """A certificate for the key that signs here; *changes* replace `sealing.certify`'s arguments."""
        values = {"namespace": self.core_namespace, "not_after": int(self._clock()) + _YEAR_S}
        policy_key = changes.pop("policy_key", self.policy_key)
        return certified(self._key, policy_key, **{**values, **changes})

    def gap(self, **parts: Any) -> int:
        """Make the next change and send it to nobody: followers miss it. Its sequence."""
        sequence = self.sequence + 1
        head: dict[str, Any] = {"namespace": "default", "module": "blog", "heartbeat_at": 0}
        self._overlay = self._overlay.after(Change(sequence=sequence, **head, **parts))
        self._changes[sequence] = parts
        self._changes.pop(sequence - _KEPT, None)
        return sequence

    def cut(self) -> None:
        """Cut all connections off."""
        for connection in self._open:
            connection.transport.abort()

    def replay(self, sequence: int) -> None:
        """Send an old change again, to everybody."""
        self._send(lambda place: self.message("change", place, sequence))

    def garbage(self, content: bytes) -> None:
        """Send any bytes to everybody."""
        self._send(lambda _: content)

    # ---- the server

    def _send(self, make: Callable[[Place], bytes]) -> None:
        for connection in self._open:
            connection.queue.put_nowait(make(connection.place))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            place, after = self._check(request)
        except AppError as error:
            return web.json_response(error_body(error, ""), status=error.status, headers=error.headers)
        response = web.StreamResponse(headers={"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"})
        async with self._connected(request, place) as connection:
            for message in self._beginning(place, after):
                connection.queue.put_nowait(message)
            await response.prepare(request)
            left = self.cut_at
            while True:
                message = await self._next(connection)
                if left is not None and left <= len(message):
                    await response.write(message[:left])
                    connection.transport.close()
                    return response
                left = None if left is None else left - len(message)
                for piece in [message] if not self.pause else [bytes([one]) for one in message]:
                    await asyncio.sleep(self.pause)
                    await response.write(piece)

    @asynccontextmanager
    async def _connected(self, request: web.Request, place: Place) -> AsyncIterator[_Connection]:
        assert isinstance(request.transport, asyncio.Transport)
        connection = _Connection(place, request.transport)
        self._open.append(connection)
        try:
            yield connection
        finally:
            self._open.remove(connection)

    def _check(self, request: web.Request) -> tuple[Place, int | None]:
        self.asked.append(dict(request.query))
        if self.refusing is not None:
            raise AppError(status=self.refusing)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            raise Unauthenticated
        place = (request.query.get("namespace", ""), request.query.get("module", ""))
        if place not in self.modules:
            raise NotFound
        after = request.query.get("after")
        if after is not None and not (after.isascii() and after.isdecimal()):
            raise BadRequest("after is no sequence.")
        return place, None if after is None else int(after)

    def _beginning(self, place: Place, after: int | None) -> list[bytes]:
        """What a new connection gets at once: what it missed, or the whole, or a sign of life."""
        if after == self.sequence:
            return [self.message("heartbeat", place)]
        missed = [] if after is None else list(range(after + 1, self.sequence + 1))
        if missed and all(sequence in self._changes for sequence in missed):
            return [self.message("change", place, sequence) for sequence in missed]
        return [self.message("snapshot", place)]

    async def _next(self, connection: _Connection) -> bytes:
        try:
            async with asyncio.timeout(self._heartbeat):
                return await connection.queue.get()
        except TimeoutError:
            return self.message("heartbeat", connection.place)


def _whole(overlay: Overlay) -> dict[str, Any]:
    return {
        "roles": {role: list(codes) for role, codes in overlay.roles.items()},
        "users": dict(overlay.users),
        "sessions": sorted(overlay.sessions),
        "keys": None if overlay.keys is None else [dict(key) for key in overlay.keys],
    }
