"""What keys that issuers publish do to a policy, and what is made of answers that hold none, over real HTTP."""

import asyncio
import datetime
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from key_server import PATH, KeyServer
from key_world import NEW, OLD, OTHER, SURE_S, Facts, World, a_world, kid, until

from moorage.errors import AppError
from moorage.guard import jwks_client, tokens
from moorage.guard.jwks import MAX_BYTES
from moorage.guard.overlay import Overlay
from moorage.guard.policy import BaseDocument


@pytest.fixture
async def world(make_document: Callable[..., BaseDocument], facts: Facts, now: float) -> AsyncIterator[World]:
    async with a_world(make_document, facts, now) as world:
        yield world


# ---- what can be wrong with an answer


async def slowly(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(SURE_S)
    return web.Response()


async def trickle(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.01)


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 10_000)


def saying(body: bytes | str, status: int = 200, **headers: str) -> Callable[[KeyServer], None]:
    return lambda server: server.says(body, status, **headers)


def answering(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Callable[[KeyServer], None]:
    return lambda server: setattr(server, "answer", answer)


def private(server: KeyServer) -> None:
    server.keys[0]["d"] = "c2VjcmV0"


def twice(server: KeyServer) -> None:
    server.keys.append(server.keys[0])


def enough(server: KeyServer) -> None:
    server.keys += [{"kty": "XYZ"}] * 32


WRONG: dict[str, tuple[Callable[[KeyServer], None], str]] = {
    "slow": (answering(slowly), "TimeoutError"),
    "trickling": (answering(trickle), "TimeoutError"),
    "endless": (answering(endless), f"more than {MAX_BYTES} bytes"),
    "huge": (saying(b" " * (MAX_BYTES + 1)), f"more than {MAX_BYTES} bytes"),
    "garbage": (saying(b"\x00\xff"), "not strict JSON"),
    "a page": (saying("<html>", Content_Type="text/html"), "not strict JSON"),
    "empty": (saying(""), "not strict JSON"),
    "no keys": (saying('{"keys": []}'), "no key for ES256"),
    "duplicate": (twice, "two keys have the kid"),
    "twice a member": (saying('{"keys": [], "keys": []}'), "not strict JSON"),
    "private": (private, "private member d"),
    "many": (enough, "33 keys"),
    "gone": (saying("{}", 404), "404"),
    "nothing": (saying("", 204), "204"),
    "broken": (saying("{}", 500), "500"),
    "packed": (saying(b"\x1f\x8b", Content_Encoding="gzip"), "encoding"),
    "elsewhere": (saying("", 302, Location="/other"), "302"),
    "elsewhere for good": (saying("", 308, Location="/other"), "308"),
}


@pytest.mark.parametrize(("spoil", "why"), WRONG.values(), ids=WRONG)
async def test_a_bad_answer_changes_nothing_and_is_shown(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[KeyServer], None],
    why: str,
) -> None:
    monkeypatch.setattr(jwks_client, "FETCH_S", 0.3)
    caplog.set_level(logging.INFO, "moorage.guard")
    world.start()
    await world.ready()
    caplog.clear()
    world.server.publish(NEW)
    spoil(world.server)
    for _ in range(3):
        await world.later(301)
        await world.settled()
    assert world.server.asked == 4
    assert await world.outcome(OLD) == "me"
    world.use_up()
    assert await world.outcome(NEW) == "invalid_token"
    assert why in world.status["error"]
    assert why in world.degraded
    assert world.status["kids"] == [kid(OLD)]
    assert world.guard.waiting == ""
    assert world.fetches("failed") == 3
    assert len([line for line in caplog.records if line.levelno >= logging.WARNING]) == 1, (
        "not a line for each try"
    )
    world.server.answer = None
    world.server.publish(NEW)
    await world.later(31 * 1.1)
    await until(lambda: world.degraded == "")
    assert await world.outcome(NEW) == "me"
    assert world.status["error"] is None
    assert [line.getMessage() for line in caplog.records[1:]] == [
        "keys of an issuer in force",
        "keys of an issuer are fetched again",
    ]


async def test_while_the_issuer_is_away_its_keys_count_on(world: World) -> None:
    world.start()
    await world.ready()
    await world.server.stop()
    for _ in range(20):
        await world.later(301)
        await world.settled()
        assert await world.outcome(OLD) == "me"
    assert world.degraded.startswith("keys of https://moorage.test: ")
    assert await world.outcome(NEW) == "invalid_token"
    await world.server.again()
    world.server.publish(NEW)
    await world.later(34)
    await until(lambda: world.degraded == "")
    assert await world.outcome(NEW) == "me"


async def test_a_certificate_that_nobody_vouches_for_is_no_issuers(world: World, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    runner = web.ServerRunner(web.Server(world.server._answer))  # type: ignore[arg-type]
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        world.start(world.issuer(jwks_uri=f"https://127.0.0.1:{site.port}{PATH}"))
        await until(lambda: world.degraded)
        assert "certificate verify failed" in world.degraded.lower()
        assert await world.outcome(OLD) == "no_keys"
        assert world.server.asked == 0
    finally:
        await runner.cleanup()


def self_signed(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


# ---- with the rest of the policy


async def test_the_documents_own_keys_count_beside_them_and_win(world: World) -> None:
    world.server.publish(NEW)
    world.server.keys[0]["kid"] = kid(OLD)  # in the name of the document's key
    world.server.keys.append(dict(tokens.public_jwk(OTHER)))
    world.start(world.issuer(OLD))
    assert world.guard.waiting == "", "there is a key from the beginning"
    await until(lambda: kid(OTHER) in world.status["kids"])
    assert await world.outcome(OLD) == "me"
    assert await world.outcome(OTHER) == "me"
    assert world.status["kids"] == sorted([kid(OLD), kid(OTHER)])


async def test_the_overlays_keys_are_the_only_ones(world: World) -> None:
    """A key that was revoked does not come back by the issuer's set, nor by a fetch that was under way."""
    world.start()
    await world.ready()
    remembered = world.request(world.token(OLD))
    await world.guard.admit(remembered)
    world.server.publish(OLD, NEW)
    world.server.gate = asyncio.Event()
    await world.later(301)
    await until(lambda: world.server.asked == 2)
    world.guard.overlay(Overlay(1, {}, {}, frozenset(), (tokens.public_jwk(OTHER),)))
    with pytest.raises(AppError) as refused:
        await world.guard.admit(remembered)
    assert refused.value.code == "invalid_token"
    world.server.gate.set()
    await world.settled()
    assert [await world.outcome(key) for key in (OLD, NEW, OTHER)] == ["invalid_token", "invalid_token", "me"]
    await world.later(10_000)
    await world.settled()
    assert world.server.asked == 2, "nothing is fetched meanwhile"
    assert world.guard.status()["keys"] == []
    # Without them the set counts again, but what it says now, not what it said then.
    world.server.publish(NEW)
    world.guard.overlay(Overlay(2, {}, {}, frozenset(), None))
    await until(lambda: world.server.asked == 3)
    await world.settled()
    world.use_up()
    assert await world.outcome(NEW) == "me"
    assert await world.outcome(OLD) == "invalid_token"


async def test_the_same_key_by_another_way_ends_nothing(world: World) -> None:
    world.start()
    await until(lambda: not world.guard.waiting)
    request = world.request(world.token(OLD))
    decision = await world.guard.admit(request)
    ended: list[AppError] = []
    with world.guard.lasting.watching(decision, ended.append):
        world.guard.overlay(Overlay(1, {}, {}, frozenset(), (tokens.public_jwk(OLD),)))
        await asyncio.sleep(0.3)
    assert ended == []
    assert (await world.guard.admit(request)).verified is decision.verified


async def test_another_policy_keeps_what_was_fetched_from_the_same_place(world: World) -> None:
    world.start()
    await world.ready()
    world.switch(world.issuer(audiences=["test", "x"]))
    await world.settled()
    assert await world.outcome(OLD) == "me"
    assert world.server.asked == 1


async def test_another_place_or_other_algorithms_begin_with_nothing(world: World) -> None:
    world.start()
    await world.ready()
    async with KeyServer(NEW) as other:
        issuer = world.issuer(jwks_uri=other.address)
        world.switch(issuer)
        await until(lambda: other.asked == 1)
        await world.settled()
        assert [await world.outcome(key) for key in (NEW, OLD)] == ["me", "invalid_token"]
        world.switch(issuer.model_copy(update={"algorithms": ["RS256"]}))
        assert world.guard.policy is not None
        assert world.guard.policy.fetched == {}
        await until(lambda: "no key for RS256" in world.degraded)
    world.switch(world.issuer(NEW, jwks_uri=None))
    assert world.degraded == ""
    assert world.guard.status()["keys"] == []
    assert await world.outcome(NEW) == "me"


async def test_two_issuers_are_followed_each_by_itself(world: World) -> None:
    async with KeyServer(NEW) as other, AsyncExitStack() as stack:
        await world.server.stop()
        stack.push_async_callback(world.server.again)
        second = world.issuer(issuer="https://second.test", jwks_uri=other.address)
        world.start(world.issuer(), second)
        await until(lambda: other.asked)
        await until(lambda: world.fetches("failed"))
        await world.settled()
        assert await world.outcome(NEW, issuer="https://second.test") == "me"
        assert await world.outcome(NEW) == "no_keys"
        assert [one["error"] is None for one in world.guard.status()["keys"]] == [False, True]


async def test_when_it_ends_nothing_is_left_behind(world: World) -> None:
    world.server.gate = asyncio.Event()
    world.start()
    await until(lambda: world.server.asked == 1)
    await world.stop()
    assert not world.keyring._flights
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("keys of")]


async def test_without_a_place_to_ask_it_is_as_ever(world: World) -> None:
    world.start(world.issuer(OLD, jwks_uri=None))
    await asyncio.sleep(0)
    assert await world.outcome(OLD) == "me"
    assert await world.outcome(NEW) == "invalid_token"
    assert (world.guard.waiting, world.degraded, world.guard.status()["keys"]) == ("", "", [])
    assert world.server.asked == 0
