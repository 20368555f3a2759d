"""The access log: the line made at once is the one that every other way gives."""

import asyncio
import json
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog
from multidict import CIMultiDict

from moorage import access, who
from moorage.errors import AppError, Unavailable
from moorage.guard.decision import RequestFacts, receive
from moorage.logs.lines import Lines, _forget, undisturbed
from moorage.trace import enter, leave

LogLines = Callable[[], list[dict[str, Any]]]
_EVIL = '/a"b\\\n\x1b[2J\x00\udcff\u2028Bearer abcdefghijkl?token=hunter2'


def _facts(target: str = "/things/7?token=hunter2") -> RequestFacts:
    return receive("GET", target, CIMultiDict({"X-Request-ID": "r-1"}), peer="192.0.2.7")


def _written(
    facts: RequestFacts,
    status: int,
    error: AppError | None,
    module: str | None,
    template: str = "/things/{id}",
) -> None:
    token = enter(facts.trace)
    asker = who.asker.set(who.Asker("r-1"))
    try:
        access.write(
            facts, rule="read", template=template, status=status, seconds=0.012345, error=error, module=module
        )
    finally:
        who.asker.reset(asker)
        leave(token)


class _Listening(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record)


@contextmanager
def _alone() -> Iterator[logging.Handler]:
    """Nobody else listens, as outside of tests: pytest does, in each phase of each."""
    before = logging.root.handlers[:]
    logging.root.handlers[:] = [handler for handler in before if isinstance(handler, Lines)]
    yield logging.root.handlers[0]
    logging.root.handlers[:] = before


@pytest.mark.parametrize("target", ["/things/7?token=hunter2", _EVIL, "/" + "x" * 9000])
@pytest.mark.parametrize(
    ("status", "error"), [(200, None), (503, Unavailable("no", reason="postgresql://u:hunter2@h/d\n"))]
)
@pytest.mark.parametrize("module", [None, "default/blog"])
def test_both_ways_say_the_same(
    log_lines: LogLines, target: str, status: int, error: AppError | None, module: str | None
) -> None:
    facts = _facts(target)
    with _alone():
        _written(facts, status, error, module)
        logging.getLogger(access.NAME).addHandler(listening := _Listening())
        _written(facts, status, error, module)
        logging.getLogger(access.NAME).removeHandler(listening)
    assert len(listening.seen) == 1
    at_once, formatted = log_lines()
    times = at_once.pop("time"), formatted.pop("time")
    assert at_once == formatted
    assert [len(time) for time in times] == [27, 27]
    assert all(time.endswith("Z") for time in times)
    assert "hunter2" not in json.dumps(at_once)
    assert "abcdefghijkl" not in json.dumps(at_once)
    assert at_once["level"] == ("info" if status < 500 else "warning")


@pytest.mark.parametrize(("level", "number"), [(logging.INFO, 2), (logging.WARNING, 1), (logging.ERROR, 0)])
def test_the_level_decides(log_lines: LogLines, level: int, number: int) -> None:
    before = logging.root.level
    logging.root.setLevel(level)
    with _alone():
        _written(_facts(), 200, None, None)
        _written(_facts(), 500, None, None)
    logging.root.setLevel(before)
    assert len(log_lines()) == number


def test_what_cannot_be_written_breaks_nothing(
    log_lines: LogLines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with _alone() as handler:
        monkeypatch.setattr(handler, "stream", Full())
        _written(_facts(), 200, None, None)
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize("listening", [False, True])
def test_a_secret_in_the_path_is_not_shown(log_lines: LogLines, listening: bool) -> None:
    with _alone() as handler:
        if listening:
            logging.root.addHandler(_Listening())
        _written(_facts("/reset/hunter2"), 200, None, None, "/reset/{reset_token}")
        _written(_facts("/reset/7"), 200, None, None, "/reset/{id}")
        handler.flush()
        assert [line["path"] for line in log_lines()] == ["/reset/{reset_token}", "/reset/7"]


def test_what_a_request_starts_is_logged_as_its_own(log_lines: LogLines) -> None:
    token = who.asker.set(who.Asker("r-1", user="u-1", tenant="acme"))
    logging.getLogger("x").warning("within")
    who.asker.reset(token)
    logging.getLogger("x").warning("outside")
    within, outside = log_lines()
    assert (within["request_id"], within["user_id"], within["tenant_id"]) == ("r-1", "u-1", "acme")
    assert not {"request_id", "user_id", "tenant_id"} & outside.keys()


async def test_lines_are_written_soon_and_before_any_other(log_lines: LogLines) -> None:
    with _alone():
        for number in range(3):
            _written(_facts(f"/{number}"), 200, None, None)
        assert log_lines() == []
        logging.getLogger("x").warning("another")
        _written(_facts("/3"), 200, None, None)
        async with asyncio.timeout(30):
            while len(log_lines()) < 5:  # noqa: ASYNC110 - what is waited for is a timer of the log's own
                await asyncio.sleep(0.01)
    assert [line.get("path", line["message"]) for line in log_lines()] == ["/0", "/1", "/2", "another", "/3"]


async def test_no_more_than_some_lines_wait(log_lines: LogLines) -> None:
    with _alone():
        for number in range(200):
            _written(_facts(f"/{number}"), 200, None, None)
        assert 128 <= len(log_lines()) <= 200
        logging.shutdown([weakref.ref(logging.root.handlers[0])])  # as at the end of a process
    assert [line["path"] for line in log_lines()] == [f"/{number}" for number in range(200)]


async def test_a_line_that_cannot_be_made_takes_no_others_along(
    log_lines: LogLines, capsys: pytest.CaptureFixture[str]
) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def fail() -> str:
        raise RuntimeError("no line")

    with _alone() as handler:
        assert isinstance(handler, Lines)
        _written(_facts("/0"), 200, None, None)
        handler.later(fail)
        _written(_facts("/1"), 409, AppError(reason=ValueError("odd")), None)  # type: ignore[arg-type]  # as users do
        handler.flush()
    assert [line["path"] for line in log_lines()] == ["/0", "/1"]
    assert "no line" in capsys.readouterr().err


async def test_what_the_code_has_bound_is_in_the_line(log_lines: LogLines) -> None:
    with _alone(), structlog.contextvars.bound_contextvars(order_id="o-1"):
        _written(_facts(), 200, None, None)
    assert log_lines()[0]["order_id"] == "o-1"


async def test_a_forked_process_leaves_what_waits_to_its_parent(log_lines: LogLines) -> None:
    with _alone() as handler:
        assert isinstance(handler, Lines)
        _written(_facts(), 200, None, None)
        _forget()  # what a fork runs in the child
        handler.flush()
    assert log_lines() == []


def test_an_audit_line_comes_behind_what_waits_and_ends_a_torn_line(
    log_lines: LogLines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with _alone() as handler, monkeypatch.context() as patch:
        patch.setattr(handler, "stream", Full())
        logging.getLogger("x").warning("torn")
        with undisturbed() as torn:
            assert torn
        with undisturbed() as torn:
            assert not torn
    assert "No space left" in capsys.readouterr().err


def test_a_line_of_a_loop_that_was_left_waits_for_no_other(log_lines: LogLines) -> None:
    """As in processes that run one loop after the other."""
    with _alone():
        left, other = asyncio.new_event_loop(), asyncio.new_event_loop()

        async def log(path: str, then: float = 0.0) -> None:
            _written(_facts(path), 200, None, None)
            await asyncio.sleep(then)

        left.run_until_complete(log("/left"))
        other.run_until_complete(log("/other", then=0.2))
        found = [line["path"] for line in log_lines()]
        left.close()
        other.close()
    assert found == ["/left", "/other"]
