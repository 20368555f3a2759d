"""The audit record of a module with the guard in its process: what is in it when the client has its answer."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from aiohttp import web

from moorage import Model, Module, NotFound, User, WebSocket
from moorage.errors import AppError
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]

PARTS: dict[str, dict[str, Any]] = {
    "ok": {},
    "missing": {},
    "denied": {"permission": "shop.item.read"},
    "conditional": {"permission": "shop.item.edit"},
    "broken": {},
    "malformed": {},
    "busy": {},
    "slow": {"timeout": "100ms"},
    "limited": {"auth": "none", "rateLimit": {"perRule": "1/hour"}},
    "small": {"methods": ["POST"], "maxBody": 4},
    "unbound": {},
    "events": {},
    "socket": {"methods": ["GET"]},
}
RULES = [
    {"name": f"{name}-{mode}", "path": f"/{mode}/{name}/{{id}}", "audit": mode, **part}
    for mode in ("none", "failures", "all")
    for name, part in PARTS.items()
]


class Note(Model):
    text: str


class Shop:
    """A module whose handlers note that they were called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.go_on = asyncio.Event()
        self.module = Module("shop")
        for mode in ("none", "failures", "all"):
            self._add(mode)
            self._add_malformed(mode)

    def _add_malformed(self, mode: str) -> None:
        @self.module.handle(f"malformed-{mode}")
        async def malformed() -> web.Response:
            return web.Response(headers={"Location": "/x\r\nA: b"})

    def _add(self, mode: str) -> None:
        module = self.module

        async def load(id: str) -> Note:
            return Note(text=id)

        @module.handle(f"ok-{mode}")
        @module.handle(f"denied-{mode}")
        @module.handle(f"limited-{mode}")
        async def fine(id: str) -> str:
            self.calls.append(id)
            return "fine"

        @module.handle(f"conditional-{mode}", resource=load)
        async def conditional(note: Note) -> Note:
            return note

        @module.handle(f"small-{mode}")
        async def small(body: Note) -> None: ...

        @module.handle(f"missing-{mode}")
        async def missing(id: str) -> str:
            NotFound.throw("item", id)

        @module.handle(f"broken-{mode}")
        async def broken() -> str:
            raise RuntimeError("boom")

        @module.handle(f"busy-{mode}")
        async def busy() -> str:
            raise AppError("Later.", status=429, code="busy")

        @module.handle(f"slow-{mode}")
        async def slow() -> str:
            await asyncio.sleep(5)
            return ""

        @module.handle(f"events-{mode}")
        async def events(id: str) -> AsyncIterator[Note]:
            if id == "late":
                self.calls.append(id)
                await self.go_on.wait()
            yield Note(text="first")
            await self.go_on.wait()
            raise RuntimeError("boom")

        @module.websocket(f"socket-{mode}")
        async def socket(user: User, socket: WebSocket[Any, Any]) -> None:
            await socket.receive()


@pytest.fixture
def shop() -> Shop:
    return Shop()


class Served:
    """The module, and its record."""

    def __init__(self, harness: ModuleHarness, record: Path) -> None:
        self.harness = harness
        self._record = record
        self.client = harness.client(roles=["author"], tenant="acme")

    def entries(self) -> list[dict[str, Any]]:
        text = self._record.read_text() if self._record.exists() else ""
        assert not text or text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]

    async def metric(self, name: str) -> float:
        exposed = (await self.harness.admin.get("/metrics")).content.decode()
        return sum(float(line.split()[-1]) for line in exposed.splitlines() if line.startswith(name))


@pytest.fixture
def start(serve: Serve, shop: Shop, tmp_path: Path) -> Callable[..., Awaitable[Served]]:
    async def start(record: Path = tmp_path / "audit.jsonl") -> Served:
        permissions = {
            "shop.item.read": "user.tenant == 'other'",
            "shop.item.edit": "resource.text == 'mine'",
        }
        environ = {"GUARD_AUDIT_FILE": str(record)}
        return Served(await serve(shop.module, RULES, permissions=permissions, environ=environ), record)

    return start


@pytest.fixture
async def served(start: Callable[..., Awaitable[Served]]) -> Served:
    return await start()


# -- what is recorded


@pytest.mark.parametrize(
    ("name", "status", "outcome", "code"),
    [
        ("ok", 200, "success", None),
        ("missing", 404, "failed", "item_not_found"),
        ("denied", 403, "denied", "forbidden"),
        ("conditional", 403, "denied", "forbidden"),
        ("broken", 500, "failed", "internal"),
        ("malformed", 500, "failed", "internal"),
        ("busy", 429, "failed", "busy"),
        ("slow", 504, "failed", "timeout"),
    ],
)
@pytest.mark.parametrize("mode", ["none", "failures", "all"])
async def test_the_entry_is_there_when_the_answer_is(
    served: Served, mode: str, name: str, status: int, outcome: str, code: str | None
) -> None:
    answer = await served.client.get(f"/{mode}/{name}/7?token=s3cret")
    entries = served.entries()
    assert answer.status == status
    if mode == "none" or (mode == "failures" and outcome == "success"):
        assert entries == []
        return
    (entry,) = entries
    UUID(entry.pop("id"))
    assert entry.pop("timestamp").endswith("Z")
    assert entry.pop("ip_address") == "127.0.0.1"
    assert "aiohttp" in entry.pop("user_agent")
    permission = PARTS[name].get("permission")
    assert entry == {
        "user_id": str(served.client.user_id),
        "action": permission or f"shop.{name}-{mode}",
        "resource": f"default/shop/{mode}/{name}/{{id}}",
        "resource_id": "7",
        "request_id": answer.headers["X-Request-ID"],
        "metadata": {
            "method": "GET",
            "path": f"/{mode}/{name}/7",
            "rule": f"{name}-{mode}",
            "status": str(status),
            "outcome": outcome,
            **({"code": code} if code else {}),
            "tenant": "acme",
        },
    }
    assert await served.metric(f'audit_entries_total{{outcome="{outcome}"}}') == 1
    assert await served.metric("audit_failed_total") == 0


@pytest.mark.parametrize("mode", ["failures", "all"])
async def test_refusals_before_anybody_is_known_have_no_user(served: Served, mode: str) -> None:
    anonymous = served.harness.anonymous()
    assert (await anonymous.get(f"/{mode}/ok/7")).status == 401
    bad = {"Authorization": "Bearer eyJhbGciOiJFUzI1NiJ9.e30.AAAA"}
    assert (await anonymous.get(f"/{mode}/ok/7", headers=bad)).status == 401
    assert (await served.client.post(f"/{mode}/small/7", json={"text": "12345"})).status == 413
    assert (await served.client.get(f"/{mode}/unbound/7")).status == 503
    told = [(entry["user_id"], entry["metadata"]["code"]) for entry in served.entries()]
    user = str(served.client.user_id)
    assert told == [("", "unauthenticated"), ("", "invalid_token"), (user, "too_large"), ("", "unbound_rule")]
    assert "eyJ" not in json.dumps(served.entries())


async def test_what_a_limit_refuses_does_not_fill_the_record(served: Served) -> None:
    anonymous = served.harness.anonymous()
    assert [(await anonymous.get("/all/limited/7")).status for _ in range(3)] == [200, 429, 429]
    assert [entry["metadata"]["status"] for entry in served.entries()] == ["200"]


async def test_what_meets_no_rule_and_preflights_are_not_recorded(served: Served) -> None:
    anonymous = served.harness.anonymous()
    for method, path in (("GET", "/all/nothing"), ("DELETE", "/all/small/7"), ("GET", "/all//ok")):
        assert (await anonymous.request(method, path)).status in (400, 404, 405)
    assert served.entries() == []


async def test_a_stream_is_recorded_before_its_first_byte(served: Served, shop: Shop) -> None:
    async with (
        aiohttp.ClientSession(headers=served.client.headers) as session,
        session.get(f"{served.harness.url}/all/events/7") as answer,
    ):
        assert answer.status == 200
        assert [entry["metadata"]["status"] for entry in served.entries()] == ["200"]
        assert await answer.content.readline() == b'{"text":"first"}\n'
        shop.go_on.set()
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    assert len(served.entries()) == 1, "how it ended is no second entry"


async def test_a_websocket_is_recorded_when_it_begins(served: Served) -> None:
    async with (
        aiohttp.ClientSession(headers=served.client.headers) as session,
        session.ws_connect(f"{served.harness.url}/all/socket/7") as socket,
    ):
        (entry,) = served.entries()
        assert (entry["metadata"]["status"], entry["metadata"]["outcome"]) == ("101", "success")
        await socket.send_json(1)
    assert len(served.entries()) == 1
    assert (await served.client.get("/all/socket/7")).status == 426
    assert [entry["metadata"]["status"] for entry in served.entries()] == ["101", "426"]


@pytest.mark.parametrize("mode", ["failures", "all"])
async def test_a_client_that_does_not_wait_is_499(served: Served, shop: Shop, mode: str) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(served.harness.url.rpartition(":")[2]))
    token = served.client.headers["Authorization"]
    writer.write(f"GET /{mode}/events/late HTTP/1.1\r\nHost: a\r\nAuthorization: {token}\r\n\r\n".encode())
    await eventually(lambda: bool(shop.calls))
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    writer.transport.abort()
    await asyncio.sleep(0.1)
    shop.go_on.set()
    await eventually(lambda: bool(served.entries()))
    (entry,) = served.entries()
    assert (entry["metadata"]["status"], entry["metadata"]["outcome"]) == ("499", "failed")


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.02)


async def test_hostile_values_stay_on_their_line(served: Served) -> None:
    agent = "\x1b[2J" + "\u2028" + "x" * 8000
    headers = {"User-Agent": agent.replace("\x1b", "\x9b")}
    path = "/all/ok/a%E2%80%A8b%F0%9F%98%80"
    answer = await served.client.get(path, headers=headers)
    assert answer.status == 200
    (entry,) = served.entries()
    assert len(entry["user_agent"]) == 512
    assert entry["resource_id"] == "a\\u2028b\U0001f600"
    assert entry["metadata"]["path"] == path
    assert all(value.isprintable() for value in (*entry["metadata"].values(), entry["user_agent"]))


# -- a trail that does not work


async def test_what_cannot_be_recorded_is_not_answered_and_then_not_done(
    start: Callable[..., Awaitable[Served]], shop: Shop
) -> None:
    served = await start(Path("/dev/full"))
    first = await served.client.get("/all/ok/1")
    assert (first.status, first.code) == (503, "audit_unavailable")
    assert "may have been done" in first.body["error"]["message"]
    second = await served.client.get("/all/ok/2")
    assert (second.status, second.code) == (503, "audit_unavailable")
    assert second.headers["Retry-After"] == "5"
    assert shop.calls == ["1"], "nobody knew before the first one"
    assert await served.metric("audit_failed_total") == 1
    assert (await served.harness.admin.get("/readyz")).status == 200, "other rules can be served"
    assert "No space left" in (await served.harness.admin.get("/readyz")).content.decode()


async def test_of_a_broken_trail_failures_lose_their_answers_and_refusals_stay(
    start: Callable[..., Awaitable[Served]], shop: Shop
) -> None:
    served = await start(Path("/dev/full"))
    assert (await served.client.get("/failures/ok/1")).status == 200
    assert (await served.client.get("/none/missing/1")).status == 404
    assert (await served.client.get("/failures/missing/1")).status == 503
    for path, status in (
        ("/failures/denied/1", 403),
        ("/failures/conditional/1", 403),
        ("/all/denied/1", 403),
        ("/all/unbound/1", 503),
    ):
        answer = await served.client.get(path)
        assert (answer.status, answer.code == "audit_unavailable") == (status, False), path
    # Of this one the guard judges with what a handler's loader brings, and nothing of that is begun.
    assert (await served.client.get("/all/conditional/1")).code == "audit_unavailable"
    assert (await served.harness.anonymous().get("/all/ok/1")).status == 401


async def test_what_was_owed_is_stored_when_the_trail_works_again(
    start: Callable[..., Awaitable[Served]], tmp_path: Path
) -> None:
    record = tmp_path / "link"
    record.symlink_to("/dev/full")
    served = await start(record)
    assert (await served.client.get("/all/ok/1")).status == 503
    assert (await served.client.get("/failures/denied/2")).status == 403
    record.unlink()
    await asyncio.sleep(1.1)
    assert (await served.client.get("/all/ok/3")).status == 200
    told = [(entry["resource_id"], entry["metadata"]["status"]) for entry in served.entries()]
    assert told == [("1", "200"), ("2", "403"), ("3", "200")], "what was done, whatever the client was told"


async def test_without_a_place_for_the_record_nothing_is_done(
    start: Callable[..., Awaitable[Served]], shop: Shop, tmp_path: Path
) -> None:
    served = await start(tmp_path / "later" / "audit.jsonl")
    assert (await served.client.get("/all/ok/1")).status == 503
    assert shop.calls == []
    (tmp_path / "later").mkdir()
    await asyncio.sleep(1.1)
    assert (await served.client.get("/all/ok/2")).status == 200
    assert shop.calls == ["2"]


async def test_streams_and_websockets_do_not_begin_unrecorded(
    start: Callable[..., Awaitable[Served]], shop: Shop, tmp_path: Path
) -> None:
    record = tmp_path / "link"
    record.symlink_to("/dev/full")
    for path in ("/all/events/1", "/all/socket/1"):
        served = await start(record)
        async with aiohttp.ClientSession(headers=served.client.headers) as session:
            if "socket" in path:
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await session.ws_connect(served.harness.url + path)
                assert refused.value.status == 503
            else:
                async with session.get(served.harness.url + path) as answer:
                    assert (answer.status, (await answer.json())["error"]["code"]) == (
                        503,
                        "audit_unavailable",
                    )


# -- lines of the log


@pytest.mark.parametrize("form", ["json", "console"])
async def test_without_a_file_entries_are_lines_of_standard_output(
    serve: Serve, shop: Shop, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    environ = {"LOGGING_FORMAT": form, "LOGGING_LEVEL": "error", "LOGGING_REPEATS": "1"}
    harness = await serve(shop.module, RULES, permissions={"shop.item.read": None}, environ=environ)
    client = harness.client(roles=["author"])
    for _ in range(3):
        assert (await client.get("/all/ok/7", headers={"X-Request-ID": "r-1"})).status == 200
    lines = [line for line in capfd.readouterr().out.splitlines() if "moorage.audit" in line]
    assert len(lines) == 3, "neither the level nor the filter of repeats counts"
    if form == "json":
        line = json.loads(lines[0])
        assert line["entry"]["metadata"]["outcome"] == "success"
        del line["entry"], line["time"]
        assert line == {
            "level": "info",
            "logger": "moorage.audit",
            "message": "audit",
            "request_id": "r-1",
            "service": "shop",
            "version": "1.0.0",
        }
    else:
        assert " audit [moorage.audit] " in lines[0]
        assert f"user_id={client.user_id} action=shop.ok-all resource=default/shop/all/ok/{{id}}" in lines[0]
