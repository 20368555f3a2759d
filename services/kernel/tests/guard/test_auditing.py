"""What of a request gets into the audit record, and what an `Auditing` does when its trail hangs or fails."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from multidict import CIMultiDict

from moorage.audit.entry import Entry
from moorage.errors import AppError, Forbidden, NotFound, RateLimited, Unavailable
from moorage.guard import auditing
from moorage.guard.auditing import Auditing
from moorage.guard.decision import RequestFacts, receive
from moorage.guard.engine import Guard
from moorage.guard.policy import BaseDocument, Rule
from moorage.health import Health
from moorage.metrics import Metrics

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"


class Memory:
    """A trail that can be made to fail and to hang."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.fails = False
        self.tries = 0
        self.hangs: asyncio.Event | None = None

    async def record(self, entry: Entry) -> None:
        self.tries += 1
        if self.hangs is not None:
            await self.hangs.wait()
        if self.fails:
            raise OSError("full")
        self.entries.append(entry)

    async def ping(self) -> None:
        self.tries += 1
        if self.hangs is not None:
            await self.hangs.wait()
        if self.fails:
            raise OSError("full")

    async def close(self) -> None: ...


@pytest.fixture
def trail() -> Memory:
    return Memory()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(module="blog", version="1", revision="r")


@pytest.fixture
def record(trail: Memory, metrics: Metrics) -> Auditing:
    return Auditing(trail, metrics, timeout=0.2)


Met = Callable[..., RequestFacts]


@pytest.fixture
def met(make_document: Callable[..., BaseDocument], make_token: Callable[..., str]) -> Met:
    """The facts of a request that has met a rule."""

    def meet(
        target: str = "/posts/7",
        *,
        audit: str = "all",
        path: str = "/posts/{id}",
        agent: str = "curl",
        **more: Any,
    ) -> RequestFacts:
        rule = Rule.model_validate({"name": "read", "path": path, "audit": audit, "auth": "optional", **more})
        guard = Guard.from_document(make_document(rules=[rule]), clock=lambda: 1_800_000_000.0)
        guard.bind_proxy()
        headers = CIMultiDict(
            {"User-Agent": agent, "Cookie": "a=b", "Authorization": f"Bearer {make_token('r')}"}
        )
        facts = receive("GET", target, headers, peer="192.0.2.1")
        guard.decide(facts)
        return facts

    return meet


async def answered(record: Auditing, facts: RequestFacts, status: int = 200) -> None:
    await record.begin(facts)
    await record.answered(facts, status)


async def only(record: Auditing, trail: Memory, facts: RequestFacts) -> dict[str, Any]:
    await answered(record, facts)
    (entry,) = trail.entries
    return entry.as_dict()


async def test_a_rule_without_audit_leaves_nothing_to_do(met: Met) -> None:
    assert met(audit=None).attempt is None


async def test_bytes_that_are_no_text_and_tokens_do_not_get_in(
    record: Auditing, trail: Memory, met: Met
) -> None:
    found = await only(record, trail, met(f"/posts/{JWT}?q={JWT}", agent=f"a\udcff {JWT}\x00\x1b"))
    assert found["resource_id"] == "***"
    assert found["metadata"]["path"] == "/posts/***"
    assert found["user_agent"] == "a? ***\\x00\\x1b"


async def test_what_the_path_captures_as_a_secret_is_hidden(
    record: Auditing, trail: Memory, met: Met
) -> None:
    found = await only(record, trail, met("/reset/abc/def", path="/reset/{reset_token}/{id}"))
    assert found["metadata"]["path"] == "/reset/{reset_token}/{id}"
    assert found["resource_id"] == "def"
    trail.entries.clear()
    found = await only(record, trail, met("/reset/abc", path="/reset/{reset_token}"))
    assert found["resource_id"] == "***"


@pytest.mark.parametrize(
    ("path", "target", "found"),
    [
        ("/posts", "/posts", ""),
        ("/posts/{id}/comments/{comment}", "/posts/7/comments/9", "9"),
        ("/posts/{id}", "/posts/" + "x" * 2000, "x" * auditing.MAX_TEXT),
    ],
)
async def test_the_resource_is_what_the_path_captured_last(
    record: Auditing, trail: Memory, met: Met, path: str, target: str, found: str
) -> None:
    assert (await only(record, trail, met(target, path=path)))["resource_id"] == found


async def test_a_request_is_recorded_once(record: Auditing, trail: Memory, met: Met) -> None:
    facts = met()
    await answered(record, facts)
    await record.answered(facts, 500)
    await record.gone(facts)
    assert [entry.metadata["status"] for entry in trail.entries] == ["200"]


async def test_a_trail_that_does_not_work_is_not_tried_by_each_request(
    record: Auditing, trail: Memory, met: Met
) -> None:
    trail.fails = True
    for _ in range(20):
        with pytest.raises(Unavailable) as refused:
            await record.begin(met())
        assert refused.value.code == "audit_unavailable"
        assert await record.refused(met(audit="failures"), error := Forbidden()) is error
    assert trail.tries == 1


async def test_requests_that_come_at_once_wait_for_the_first_try(record: Auditing, met: Met) -> None:
    await asyncio.gather(*(answered(record, met()) for _ in range(20)))


async def test_a_trail_that_hangs_costs_its_timeout_once(record: Auditing, trail: Memory, met: Met) -> None:
    loop = asyncio.get_running_loop()
    await answered(record, met())
    trail.hangs = asyncio.Event()
    began = loop.time()
    with pytest.raises(Unavailable):
        await answered(record, met())
    assert 0.15 < loop.time() - began < 5
    with pytest.raises(Unavailable):
        await record.begin(met())  # tries what is owed
    began = loop.time()
    with pytest.raises(Unavailable):
        await record.begin(met())
    assert loop.time() - began < 0.15


async def test_who_leaves_meanwhile_takes_no_entry_with_him(
    record: Auditing, trail: Memory, met: Met
) -> None:
    await answered(record, met())
    trail.hangs = asyncio.Event()
    task = asyncio.create_task(answered(record, met()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    trail.hangs.set()
    await asyncio.sleep(0.01)
    assert len(trail.entries) == 2


async def test_who_leaves_during_the_first_try_leaves_it_to_the_next(
    record: Auditing, trail: Memory, met: Met
) -> None:
    trail.hangs = asyncio.Event()
    task = asyncio.create_task(record.begin(met()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    trail.hangs.set()
    await answered(record, met())
    assert len(trail.entries) == 1


async def test_as_many_are_owed_as_memory_has_room_for_and_the_first_ones(
    record: Auditing, trail: Memory, met: Met, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "MAX_OWED", 3)
    trail.fails = True
    facts = [met(f"/posts/{number}", audit="failures") for number in range(5)]
    for one in facts:
        await record.refused(one, Forbidden())
    trail.fails = False
    async with record.opened(Health()):
        pass
    assert [entry.resource_id for entry in trail.entries] == ["0", "1", "2"]


async def test_readiness_says_what_is_wrong_and_stores_what_is_owed(
    record: Auditing, trail: Memory, met: Met
) -> None:
    health = Health(started=True)
    async with record.opened(health):
        trail.fails = True
        error: AppError = Forbidden()
        assert await record.refused(met(), error) is error
        ready, problems = await health.ready()
        assert ready
        assert "full" in problems["audit"]
        trail.fails = False
        await asyncio.sleep(1.1)
        assert (await health.check())["audit"] == ""
        assert [entry.metadata["outcome"] for entry in trail.entries] == ["denied"]


async def test_who_waits_behind_a_try_that_hangs_makes_none_of_his_own(
    trail: Memory, metrics: Metrics, met: Met
) -> None:
    """Also where a try takes longer than the pause between two."""
    record = Auditing(trail, metrics, timeout=auditing.RETRY_S + 0.2)
    trail.hangs = asyncio.Event()
    refused = await asyncio.gather(*(record.begin(met()) for _ in range(6)), return_exceptions=True)
    assert [type(error) for error in refused] == [Unavailable] * 6
    assert trail.tries == 1


async def test_what_was_done_takes_the_place_of_what_was_refused(
    record: Auditing, trail: Memory, metrics: Metrics, met: Met, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers can make any number of refusals."""
    monkeypatch.setattr(auditing, "MAX_OWED", 2)
    await answered(record, met())
    done = met("/posts/42")
    await record.begin(done)
    trail.fails = True
    for number in range(4):
        await record.refused(met(f"/posts/{number}", audit="failures"), Forbidden())
    with pytest.raises(Unavailable):
        await record.answered(done, 200)
    assert metrics.registry.get_sample_value("audit_broken") == 1
    trail.fails = False
    async with record.opened(Health()):
        pass
    assert [entry.resource_id for entry in trail.entries] == ["7", "1", "42"]
    assert metrics.registry.get_sample_value("audit_lost_total") == 3
    assert metrics.registry.get_sample_value("audit_broken") == 0


async def test_a_shutdown_that_is_cut_short_says_what_is_lost(
    record: Auditing, trail: Memory, metrics: Metrics, met: Met, caplog: pytest.LogCaptureFixture
) -> None:
    await answered(record, met())
    trail.hangs = asyncio.Event()

    async def serve() -> None:
        async with record.opened(Health()):
            task = asyncio.create_task(answered(record, met()))
            await asyncio.sleep(0.01)
            task.cancel()

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0.05)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert "audit entries are lost" in caplog.text
    assert metrics.registry.get_sample_value("audit_lost_total") == 1


@pytest.mark.parametrize(
    ("error", "entries"),
    [(RateLimited("user", 3), 0), (Unavailable(code="limits_unavailable"), 0), (Forbidden(), 1)],
)
async def test_what_limits_refuse_does_not_fill_the_record(
    record: Auditing, trail: Memory, met: Met, error: AppError, entries: int
) -> None:
    assert await record.refused(met(), error) is error
    assert len(trail.entries) == entries


@pytest.mark.parametrize("second", ["/posts/7", "/gone"])
async def test_a_request_is_recorded_by_the_rule_that_it_met_last(
    make_document: Callable[..., BaseDocument], second: str
) -> None:
    """It is decided on again when a key was fetched for it; by then there may be another policy."""
    facts = receive("GET", "/posts/7", CIMultiDict(), peer="192.0.2.1")
    for path, audit in (("/posts/{id}", "all"), (second, None)):
        rule = Rule.model_validate({"name": "read", "path": path, "auth": "none", "audit": audit})
        guard = Guard.from_document(make_document(rules=[rule]))
        guard.bind_proxy()
        with suppress(NotFound):
            guard.identify(facts)
    assert facts.attempt is None
