"""Something that is away is left alone, tried in the background, and asked again when it is back."""

import asyncio
import itertools

import pytest

from moorage import outage
from moorage.outage import Outage


class Thing:
    """What may be away, and what was said about it."""

    def __init__(self) -> None:
        self.fails: Exception | None = ConnectionError("no\nroute")
        self.probes: list[float] = []
        self.said: list[str] = []
        self.back = asyncio.Event()
        self.outage = Outage("thing", self.probe, lost=self.lost, back=self.found)

    async def probe(self) -> None:
        self.probes.append(asyncio.get_running_loop().time())
        if self.fails is not None:
            raise self.fails

    def lost(self, why: str) -> None:
        self.said.append(why)

    def found(self, seconds: float) -> None:
        self.said.append("back")
        assert seconds > 0
        assert not self.outage.away
        self.back.set()

    async def tried(self, times: int) -> None:
        async with asyncio.timeout(10):
            while len(self.probes) < times:  # noqa: ASYNC110 - what is tested tells nobody
                await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(outage, "LONGEST_PAUSE", 0.08)


async def test_three_failures_in_a_row_are_an_outage_and_an_answer_between_them_is_none() -> None:
    thing = Thing()
    for _ in range(3):
        thing.outage.failed(TimeoutError())
        thing.outage.failed(OSError("gone"))
        assert not thing.outage.away
        thing.outage.worked()
    assert thing.outage.why == "OSError: gone"
    for _ in range(5):
        thing.outage.failed(TimeoutError())
    assert thing.outage.away
    assert thing.said == ["TimeoutError"], "once, and why"
    await thing.outage.close()


async def test_a_refusal_is_an_answer() -> None:
    thing = Thing()
    for _ in range(10):
        thing.outage.failed(ValueError("full"), answered=True)
    assert (thing.outage.away, thing.outage.why) == (False, "ValueError: full")


async def test_it_is_tried_until_it_is_back_and_then_counts_anew() -> None:
    thing = Thing()
    thing.outage.leave_alone()
    assert thing.outage.away
    await thing.tried(2)
    assert thing.outage.why == "ConnectionError: no", "the first line of what the probe said"
    thing.fails = None
    await thing.back.wait()
    assert (thing.outage.away, thing.outage.why, thing.said) == (False, "", ["", "back"])
    thing.outage.failed(TimeoutError())
    assert not thing.outage.away, "failures before the outage are forgotten"


async def test_pauses_grow_and_no_longer_than_the_longest() -> None:
    thing = Thing()
    began = asyncio.get_running_loop().time()
    thing.outage.leave_alone()
    await thing.tried(5)
    await thing.outage.close()
    pauses = [b - a for a, b in itertools.pairwise([began, *thing.probes])]
    for pause, least in zip(pauses, (0.02, 0.04, 0.08, 0.08, 0.08), strict=False):
        assert pause > least * 0.74


async def test_whatever_a_probe_raises_it_goes_on() -> None:
    thing = Thing()
    thing.fails = ZeroDivisionError()
    thing.outage.leave_alone()
    await thing.tried(2)
    thing.fails = None
    await thing.back.wait()


async def test_closing_ends_the_task_and_may_be_done_twice() -> None:
    thing = Thing()
    await thing.outage.close()
    thing.outage.leave_alone()
    await thing.outage.close()
    await thing.outage.close()
    assert thing.outage.away
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "thing"]
