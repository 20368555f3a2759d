"""The stream's client over real HTTP: whatever happens to a connection, it comes back to the same overlay."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from aiohttp import web

from moorage.guard.feed import Feed
from moorage.guard.overlay import Overlay
from moorage.guard.stream import PATH, StreamClient
from moorage.metrics import Metrics
from moorage.testing import PolicyStream

SURE_S = 30.0


async def until(
    condition: Callable[[], object], pause: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Wait for *condition*; a limit that only a mistake reaches."""
    async with asyncio.timeout(SURE_S):
        while not condition():
            await pause(0.005)


class Recorder:
    """Stands where a guard does, and keeps every overlay."""

    def __init__(self, trust: bytes) -> None:
        self.trust = trust
        self.seen: list[Overlay] = []

    def overlay(self, overlay: Overlay) -> None:
        self.seen.append(overlay)


class Follower:
    """A client that runs."""

    def __init__(self, stream: PolicyStream, **options: Any) -> None:
        self.recorder = Recorder(stream.trust)
        self.feed = Feed(
            self.recorder,
            namespace="default",
            module="blog",
            core_namespace="moorage-system",
            max_staleness=900,
        )
        self.metrics = Metrics(module="blog", version="1", revision="r")
        settings = {"token_file": stream.token_file, "heartbeat": 5.0, "first_pause": 0.01}
        urls = options.pop("urls", stream.urls)
        self.client = StreamClient(self.feed, urls, metrics=self.metrics, **{**settings, **options})
        self.task = asyncio.create_task(self.client.run())

    async def until(self, condition: Callable[[], object]) -> None:
        await until(lambda: self.task.done() or condition())
        assert not self.task.done()

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    def metric(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0

    def refused(self, reason: str) -> float | None:
        name = "guard_overlay_refused_total"
        return self.metrics.registry.get_sample_value(name, {"reason": reason})


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


Start = Callable[..., Awaitable[Follower]]


@pytest.fixture
async def stream(stack: AsyncExitStack) -> PolicyStream:
    return await stack.enter_async_context(PolicyStream(heartbeat=None))


@pytest.fixture
async def follow(stack: AsyncExitStack, stream: PolicyStream) -> Start:
    async def start(by: PolicyStream | None = None, **options: Any) -> Follower:
        follower = Follower(by or stream, **options)
        stack.push_async_callback(follower.stop)
        return follower

    return start


async def synced(follower: Follower, stream: PolicyStream) -> None:
    await follower.until(lambda: follower.feed.overlay == stream.overlay and follower.feed.connected)


async def test_it_gets_the_whole_and_then_every_change(follow: Start, stream: PolicyStream) -> None:
    stream.gap(sessions=["s1"])
    follower = await follow()
    await synced(follower, stream)
    assert stream.asked == [{"namespace": "default", "module": "blog"}]
    stream.change(sessions=["s2"])
    stream.change(roles={"clerk": ["blog.*"]})
    await synced(follower, stream)
    assert [overlay.sequence for overlay in follower.recorder.seen] == [1, 2, 3]
    assert follower.metric("guard_stream_connected") == 1
    assert 0 <= follower.metric("guard_overlay_age_seconds") < SURE_S
    assert follower.metric("guard_stream_connections_total") == 1


async def test_cut_off_it_resumes_where_it_was(follow: Start, stream: PolicyStream) -> None:
    follower = await follow()
    await synced(follower, stream)
    for number in range(3):
        stream.cut()
        stream.gap(sessions=[f"while away {number}"])
        await follower.until(lambda: follower.feed.overlay == stream.overlay)
    assert [query.get("after") for query in stream.asked][:1] == [None]
    assert {query.get("after") for query in stream.asked[1:]} <= {"0", "1", "2", "3"}
    # One after the other, no snapshot in between.
    assert [overlay.sequence for overlay in follower.recorder.seen] == [0, 1, 2, 3]


async def test_a_stream_that_is_cut_anywhere_leads_to_the_same_end(
    follow: Start, stream: PolicyStream
) -> None:
    """Over the network at some bytes; `test_feed` has the same for each byte."""
    follower = await follow(chance=lambda: 0.0)
    await synced(follower, stream)
    for percent in range(0, 101, 4):
        before = follower.feed.sequence
        sequence = stream.gap(sessions=[f"s{percent}"])
        length = len(stream.message("change", sequence=sequence))
        stream.cut_at = max(1, length * percent // 100)
        stream.cut()
        connections = len(stream.asked)
        await follower.until(lambda at=connections: len(stream.asked) > at + 1)  # type: ignore[misc]
        assert follower.feed.sequence in ((sequence,) if percent == 100 else (before,))
        stream.cut_at = None
        await synced(follower, stream)
    assert len(follower.recorder.seen) == stream.sequence + 1


async def test_a_gap_is_mended_with_the_whole(follow: Start, stream: PolicyStream) -> None:
    follower = await follow()
    await synced(follower, stream)
    stream.gap(sessions=["missed"])
    stream.change(sessions=["seen"])
    await synced(follower, stream)
    assert "after" not in stream.asked[-1]
    stream.gap(sessions=["missed, too"])
    stream.heartbeat()
    await synced(follower, stream)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\n\n",
        b"event: change\nid: 1\ndata: {}\n\n",
        b"event: snapshot\nid: 99\ndata: a\ndata: b\ndata: c\ndata: d\n\n",
    ],
)
async def test_garbage_is_refused_and_the_last_good_stays(
    follow: Start, stream: PolicyStream, content: bytes
) -> None:
    follower = await follow()
    await synced(follower, stream)
    stream.refusing = 503  # it stays away for a while
    stream.garbage(content)
    await follower.until(lambda: not follower.feed.connected)
    assert follower.feed.error
    assert follower.feed.sequence == 0
    assert len(follower.recorder.seen) == 1
    assert follower.refused("seal") == (content[:5] == b"event"), "the other one was no message"
    stream.refusing = None
    stream.gap(sessions=["s1"])
    await synced(follower, stream)
    assert follower.feed.error is None


async def test_what_is_refused_is_counted_by_why_and_a_reason_that_never_was_is_0(
    follow: Start, stream: PolicyStream
) -> None:
    follower = await follow()
    await synced(follower, stream)
    stream.garbage(stream.message("heartbeat", ("default", "shop")))
    await follower.until(lambda: follower.refused("place") == 1)
    await synced(follower, stream)
    assert [follower.refused(one) for one in ("seal", "form", "content", "old", "gap")] == [0.0] * 5
    assert follower.refused("anything") is None


async def test_an_endless_line_does_not_fill_the_memory(
    follow: Start, stream: PolicyStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage.guard.stream.MAX_EVENT", 10_000)
    follower = await follow()
    await synced(follower, stream)
    stream.refusing = 503
    for _ in range(20):
        stream.garbage(b"x" * 1000)
    await follower.until(lambda: not follower.feed.connected)
    stream.refusing = None
    await synced(follower, stream)


async def test_old_messages_change_nothing(follow: Start, stream: PolicyStream) -> None:
    follower = await follow()
    stream.change(sessions=["s1"])
    await synced(follower, stream)
    stream.change(sessions=["s2"], sessions_removed=["s1"])
    stream.replay(1)
    stream.change(sessions=["s3"])
    await synced(follower, stream)
    assert len(stream.asked) == 1, "and are no reason to connect again"


async def test_replicas_are_tried_in_turn_and_send_one_sequence(follow: Start, stack: AsyncExitStack) -> None:
    stream = await stack.enter_async_context(PolicyStream(heartbeat=None, replicas=2))
    dead = "http://127.0.0.1:9"
    follower = await follow(stream, urls=[dead, *stream.urls], chance=lambda: 0.0)
    await synced(follower, stream)
    for number in range(4):
        stream.gap(sessions=[f"s{number}"])
        stream.cut()
        await synced(follower, stream)
    assert [overlay.sequence for overlay in follower.recorder.seen] == [0, 1, 2, 3, 4]


async def test_the_token_is_read_for_each_connection(follow: Start, stream: PolicyStream) -> None:
    stream.token_file.write_text("the old one")
    follower = await follow()
    await follower.until(lambda: "401" in (follower.feed.error or ""))
    stream.token_file.unlink()
    await follower.until(lambda: "no token" in (follower.feed.error or ""))
    stream.token_file.write_text(f"{stream.token}\n")
    await synced(follower, stream)


@pytest.mark.parametrize("status", [301, 404, 500])
async def test_another_answer_is_no_stream(follow: Start, stream: PolicyStream, status: int) -> None:
    stream.refusing = status
    follower = await follow()
    await follower.until(lambda: str(status) in (follower.feed.error or ""))
    assert follower.feed.overlay is None
    stream.refusing = None
    await synced(follower, stream)


async def test_another_type_is_no_stream(follow: Start, stack: AsyncExitStack) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="event: snapshot\n\n", content_type="text/html")

    app = web.Application()
    app.router.add_get(PATH, page)
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    follower = await follow(urls=[f"http://127.0.0.1:{runner.addresses[0][1]}"])
    await follower.until(lambda: "text/html" in (follower.feed.error or ""))


async def test_a_silent_connection_is_given_up(follow: Start, stream: PolicyStream) -> None:
    follower = await follow(heartbeat=0.05)
    await synced(follower, stream)
    await follower.until(lambda: len(stream.asked) > 2)
    await synced(follower, stream)


async def test_a_connection_on_which_nothing_counts_is_given_up(follow: Start, stream: PolicyStream) -> None:
    follower = await follow(heartbeat=0.1)
    await synced(follower, stream)

    async def comments() -> None:
        while True:
            stream.garbage(b": still here\n")
            await asyncio.sleep(0.02)

    noise = asyncio.create_task(comments())
    await follower.until(lambda: len(stream.asked) > 1)
    noise.cancel()


async def test_bytes_that_come_slowly_are_no_reason_to_give_up(follow: Start, stream: PolicyStream) -> None:
    stream.pause = 0.0005
    follower = await follow()
    await synced(follower, stream)
    assert len(stream.asked) == 1


async def test_a_large_snapshot_is_taken_whole(follow: Start, stream: PolicyStream) -> None:
    stream.gap(sessions=[f"session {number}" for number in range(30_000)])
    follower = await follow()
    await synced(follower, stream)
    stream.change(sessions=["one more"])
    await synced(follower, stream)
    assert len(stream.asked) == 1


async def test_pauses_grow_up_to_a_limit_each_with_chance_in_it(
    monkeypatch: pytest.MonkeyPatch, follow: Start, stream: PolicyStream
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    stream.refusing = 503
    monkeypatch.setattr("moorage.guard.stream.asyncio.sleep", noted)
    follower = await follow(first_pause=0.5, chance=lambda: 0.5)
    await until(lambda: len(pauses) >= 12, sleep)
    await follower.stop()
    assert pauses[:8] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert max(pauses) == 15.0


async def test_it_ends_when_it_is_told_to(follow: Start, stream: PolicyStream) -> None:
    follower = await follow()
    await synced(follower, stream)
    await follower.stop()
    assert not follower.feed.connected
    await until(lambda: not stream.connections)
