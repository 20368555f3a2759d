"""Redis that is killed, hangs or refuses: each process counts its share, and nobody waits."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
from multidict import CIMultiDict

from moorage.config import load
from moorage.config.loading import ConfigError
from moorage.errors import AppError
from moorage.guard import tokens
from moorage.guard.decision import receive
from moorage.guard.engine import Guard
from moorage.guard.limits import gcra
from moorage.guard.limits.buckets import Buckets, LimitsUnavailable
from moorage.guard.limits.document import Limit, Limits
from moorage.guard.limits.gcra import Charge
from moorage.guard.limits.limiter import Limiter
from moorage.guard.limits.memory import MemoryBuckets
from moorage.guard.limits.port import limiting
from moorage.guard.limits.redis import RedisBuckets
from moorage.guard.limits.shared import SharedBuckets
from moorage.guard.policy import BaseDocument, Issuer, Rule
from moorage.health import Health, NotReady
from moorage.metrics import Metrics

DAY = 86_400 * gcra.SECOND


@pytest.fixture(scope="module")
def rig() -> Iterator[Any]:
    """A Redis of this module's own, which it may kill."""
    from rigs import redis
    from rigs.plugin import available

    with available(), redis.running() as server:
        yield server


class Process:
    """One process's buckets on the rig."""

    def __init__(self, url: str) -> None:
        self.alone = self.refused = 0
        prefix = f"test:{secrets.token_hex(4)}:".encode()

        async def connect() -> RedisBuckets:
            return RedisBuckets(url, prefix=prefix, timeout=0.2, max_connections=10, client_name="t")

        self.buckets = SharedBuckets(
            connect, timeout=0.2, local=MemoryBuckets(), alone=self._count, refused=self._refuse
        )

    def _count(self) -> None:
        self.alone += 1

    def _refuse(self) -> None:
        self.refused += 1

    async def passed(self, times: int, parts: int = 1, requests: int = 10) -> int:
        charge = Charge("user", "a", requests, DAY)
        return sum([(await self.buckets.take([charge], parts)).passed for _ in range(times)])

    async def back(self) -> None:
        async with asyncio.timeout(30):
            while self.buckets.away:  # noqa: ASYNC110 - what is tested tells nobody
                await asyncio.sleep(0.02)


@pytest.fixture
async def process(rig: Any) -> AsyncIterator[Process]:
    made = Process(rig.url)
    yield made
    await made.buckets.close()


async def test_while_redis_is_away_each_process_counts_its_share_and_then_all_together_again(
    rig: Any, process: Process
) -> None:
    assert await process.passed(1, requests=3) == 1
    rig.kill()
    try:
        with structlog.testing.capture_logs() as logs:
            assert await process.passed(20, parts=3) == 10 // 3
            assert process.buckets.away
            assert process.alone == 20
        told = [line for line in logs if line["log_level"] == "warning"]
        assert len(told) == 1, "once, not for each request"
        with pytest.raises(NotReady, match="counts by itself"):
            await process.buckets.ping()
    finally:
        rig.start()
    await process.back()
    await process.buckets.ping()
    assert await process.passed(20) == 10
    assert process.alone == 20


async def test_a_redis_that_hangs_costs_three_short_waits_and_no_more(rig: Any, process: Process) -> None:
    assert await process.passed(1) == 1
    rig.freeze()
    try:
        began = time.monotonic()
        await process.passed(3)
        assert process.buckets.away
        waited = time.monotonic() - began
        began = time.monotonic()
        await process.passed(200, parts=2)
        assert time.monotonic() - began < waited + 1, "it is left alone"
    finally:
        rig.thaw()
    await process.back()
    assert await process.passed(1) == 1


async def test_a_share_of_less_than_one_request_is_one_in_more_time(rig: Any, process: Process) -> None:
    rig.kill()
    try:
        assert await process.passed(10, parts=4, requests=2) == 1
    finally:
        rig.start()


async def test_one_failure_is_counted_alone_and_redis_asked_again(rig: Any, process: Process) -> None:
    assert await process.passed(1) == 1
    rig.kill()
    await process.passed(1)
    rig.start()
    assert not process.buckets.away
    assert await process.passed(1) == 1
    assert process.alone == 1


async def test_what_has_to_be_counted_together_is_refused_from_the_first_failure_on(
    rig: Any, process: Process
) -> None:
    login = Charge("address", "a", 10, DAY)
    assert (await process.buckets.take([login], together=True)).passed
    rig.kill()
    try:
        for _ in range(5):
            with pytest.raises(LimitsUnavailable) as refused:
                await process.buckets.take([login], together=True)
        assert process.buckets.away
        assert await process.passed(1) == 1, "others are counted here"
    finally:
        rig.start()
    assert (refused.value.status, refused.value.code) == (503, "limits_unavailable")
    assert refused.value.headers == {"Retry-After": "5"}
    assert "Error" in refused.value.reason
    assert (process.refused, process.alone) == (5, 1)
    await process.back()
    assert (await process.buckets.take([login], together=True)).passed


class Login:
    """A guard with a rule that refuses in an outage, asked over the whole way of a request."""

    def __init__(self, buckets: Buckets | None) -> None:
        limits = Limits(address=Limit(count=5, seconds=86_400, scope="rule/login"), outage="refuse")
        lenient = Limits(address=Limit(count=5, seconds=86_400, scope="rule/list"))
        self.guard = Guard.from_document(
            BaseDocument(
                namespace="n",
                module="m",
                sequence=1,
                issued_at="",
                issuers=[
                    Issuer(
                        issuer="i",
                        audiences=["a"],
                        algorithms=["ES256"],
                        keys=[dict(tokens.public_jwk(tokens.new_es256_key()))],
                        subject="user",
                    )
                ],
                rules=[
                    Rule(name="login", path="/login", auth="none", limits=limits),
                    Rule(name="change", path="/change", limits=limits),
                    Rule(name="list", path="/list", auth="none", limits=lenient),
                ],
            ),
            limiter=Limiter(buckets),
        )
        self.guard.bind_proxy()

    async def code(self, path: str, **headers: str) -> str:
        """The code of the refusal, ``ok`` without one."""
        try:
            await self.guard.admit(receive("POST", path, CIMultiDict(headers), peer="192.0.2.1"))
        except AppError as error:
            return error.code if error.route == path else f"{error.code} without its rule"
        return "ok"


async def test_a_rule_for_passwords_is_shut_while_nobody_counts_and_the_others_go_on(
    rig: Any, process: Process
) -> None:
    login = Login(process.buckets)
    assert [await login.code("/login"), await login.code("/list")] == ["ok", "ok"]
    rig.kill()
    try:
        assert {await login.code("/login") for _ in range(10)} == {"limits_unavailable"}
        assert await login.code("/list") == "ok"
        tries = [await login.code("/change"), await login.code("/change", Authorization="Bearer a.b.c")]
        assert tries == ["limits_unavailable"] * 2, "nor are tokens tried out there"
    finally:
        rig.start()
    await process.back()
    counted = [await login.code("/login") for _ in range(6)]
    assert counted == ["ok"] * 5 + ["rate_limited"], "Redis had forgotten the first one"


async def test_without_redis_there_is_no_outage() -> None:
    login = Login(None)
    assert [await login.code("/login") for _ in range(6)] == ["ok"] * 5 + ["rate_limited"]


# -- what a host makes of its settings


def made(**environ: str) -> Any:
    settings = load(environ=environ)
    return limiting(settings, "blog", Metrics(module="blog", version="1", revision="r"))


def test_without_redis_it_counts_in_memory() -> None:
    assert made().shared is None
    assert made(REDIS_URL="redis://127.0.0.1:1/0", LIMITS_BACKEND="memory").shared is None
    assert made(REDIS_URL="redis://127.0.0.1:1/0").shared is not None


def test_everything_that_an_address_sends_is_counted_where_a_setting_says_so() -> None:
    assert made().limiter.arrivals is None
    assert made(LIMITS_ADDRESS="0").limiter.arrivals is None
    assert made(LIMITS_ADDRESS="6000").limiter.arrivals is not None


@pytest.mark.parametrize("environ", [{"LIMITS_BACKEND": "redis"}, {"REDIS_URL": "http://somewhere"}])
def test_a_redis_that_cannot_be_is_refused_at_the_start(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"redis\.url"):
        made(**environ)


async def test_away_is_degraded_and_not_down() -> None:
    limits = made(REDIS_URL="redis://127.0.0.1:1/0", LIMITS_TIMEOUT="200ms")
    health = Health(started=True)
    async with limits.opened(health, now=True):
        ready, problems = await health.ready()
    assert ready
    assert problems["limits"]
    assert health.dependencies["limits"].state == "degraded"
