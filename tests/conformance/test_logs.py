"""Logs for machines and for people say the same, hide the same, and let no value write a line."""

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr

from moorage import logs
from moorage.config import load

Printed = Callable[[], list[str]]


@pytest.fixture(params=["console", "json"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def printed(backend: str, tmp_path: Path) -> Iterator[Printed]:
    """The lines that were printed so far."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    environ = {"LOGGING_FORMAT": backend, "MOORAGE_VERSION": "1.2.3"}
    logs.configure(load(environ=environ, folder=tmp_path), service="shop", for_good=False)
    stream = io.StringIO()
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    yield lambda: stream.getvalue().rstrip("\n").split("\n")
    structlog.reset_defaults()
    root.handlers[:], level = before
    root.setLevel(level)


def test_a_line_says_what_happened_who_says_so_and_for_whom(printed: Printed) -> None:
    with structlog.contextvars.bound_contextvars(
        request_id="r-1", trace_id="t-1", user_id="u-1", tenant_id="n-1"
    ):
        structlog.get_logger("orders").info("placed", number=7)
        logging.getLogger("mail").warning("no answer from %s", "mail:25")
    first, second = printed()
    for word in ("info", "placed", "orders", "7"):
        assert word in first
    for word in ("warning", "no answer from mail:25", "mail"):
        assert word in second
    for line in (first, second):
        assert all(word in line for word in ("shop", "1.2.3", "r-1", "t-1", "u-1", "n-1"))
        assert re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line)


def test_secrets_are_in_no_line(printed: Printed) -> None:
    log = structlog.get_logger()
    log.error("x", password="hunter2", key=SecretStr("hunter2"), deep=[{"api_key": "hunter2"}])
    log.error("postgresql://u:hunter2@h/d", value=ValueError("password=hunter2"))
    try:
        raise ValueError("Bearer hunter2hunter2")
    except ValueError:
        logging.getLogger().exception("it failed")
    text = "\n".join(printed())
    assert "hunter2" not in text
    assert "it failed" in text
    assert "ValueError" in text


def test_a_value_writes_no_line_and_nothing_to_the_terminal(printed: Printed) -> None:
    evil = "one\ntwo\r\x1b[2J\x1b]0;x\x07\u2028"
    structlog.get_logger().warning(evil, value=evil, deep={"a": [evil]})
    logging.getLogger().warning(evil)
    lines = printed()
    assert len(lines) == 2
    assert not set("".join(lines)) & set("\r\x1b\x07\u2028")


def test_local_variables_are_not_shown(printed: Printed) -> None:
    def fail(argument: str) -> None:
        local = argument * 2
        raise ValueError(len(local))

    try:
        fail("sesame")
    except ValueError:
        structlog.get_logger().exception("it failed")
    text = "\n".join(printed()).replace('fail("sesame")', "").replace('fail(\\"sesame\\")', "")
    assert "sesame" not in text


def test_the_level_counts_from_the_next_line_on(printed: Printed, tmp_path: Path) -> None:
    log = structlog.get_logger()
    log.debug("one")
    logs.set_level(load(environ={"LOGGING_LEVEL": "debug"}, folder=tmp_path))
    log.debug("two")
    assert "two" in printed()[0]
    assert len(printed()) == 1


def test_a_flood_of_one_line_is_bounded(printed: Printed) -> None:
    for _ in range(1000):
        logging.getLogger("a").error("the same")
    assert len(printed()) == 20


def test_a_huge_value_is_cut(printed: Printed) -> None:
    structlog.get_logger().warning("x", body="y" * 1_000_000, rows=[json.dumps(["z"] * 1000)] * 10_000)
    assert len(printed()[0]) < 70_000
