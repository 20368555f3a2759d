"""What pods answer about their policy is input like any other."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from moorage_operator.plan.facts import PodFact
from moorage_operator.reconcile import guards as subject

POD = PodFact("p", "r", ready=True, ip="127.0.0.1")


def test_a_whole_answer() -> None:
    answer = {
        "sequence": 7,
        "unbound_rules": ["b", "a"],
        "missing_loaders": ["c"],
        "bypassable": [":80"],
        "error": None,
    }
    found = subject.report(POD, json.dumps(answer).encode())
    assert (found.sequence, found.unbound_rules, found.missing_loaders) == (7, ("a", "b"), ("c",))
    assert found.bypassable == (":80",)
    assert found.error is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"sequence": "7", "unbound_rules": 3}'])
def test_an_answer_that_makes_no_sense_is_no_policy(content: bytes) -> None:
    found = subject.report(POD, content)
    assert found.sequence is None
    assert found.unbound_rules == ()


def test_names_are_bounded() -> None:
    found = subject.report(POD, json.dumps({"sequence": 1, "unbound_rules": ["x" * 1000] * 9000}).encode())
    assert len(found.unbound_rules) <= 4096
    assert all(len(name) <= 128 for name in found.unbound_rules)


@pytest.fixture
async def admin(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Any]]:
    answers: list[Any] = []

    async def policy(_: web.Request) -> web.Response:
        return web.json_response(answers[0][1], status=answers[0][0])

    app = web.Application()
    app.add_routes([web.get("/policy", policy)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(subject, "ADMIN_PORT", runner.addresses[0][1])
    yield answers
    await runner.cleanup()


async def test_pods_are_asked_by_their_address(admin: list[Any]) -> None:
    admin.append((200, {"sequence": 9}))
    async with subject.HttpGuards() as guards:
        nobody = PodFact("q", "r", ready=False)
        (found,) = await guards.ask([POD, nobody])
        assert (found.pod, found.sequence, found.answered) == ("p", 9, True)
        admin[0] = (500, {})
        (found,) = await guards.ask([POD])
        assert (found.answered, found.error) == (False, "its guard answers 500")


async def test_a_silent_guard_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "ADMIN_PORT", 1)
    async with subject.HttpGuards() as guards:
        (found,) = await guards.ask([POD])
    assert found.answered is False
    assert "does not answer" in str(found.error)
