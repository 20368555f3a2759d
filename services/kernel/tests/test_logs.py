"""Logs: one JSON object a line, with who and where, and no secret in it."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from moorage import logs
from moorage.config import load

Lines = Callable[[], list[dict[str, Any]]]


def test_both_libraries_lines_have_the_same_fields(log_lines: Lines) -> None:
    structlog.get_logger("a").warning("one", count=1)
    logging.getLogger("b").warning("two %s", "2", extra={"count": 2})
    one, two = log_lines()
    assert (one["message"], two["message"]) == ("one", "two 2")
    for line in (one, two):
        assert line["level"] == "warning"
        assert (line["service"], line["version"]) == ("shop", "0.0.0")
        assert line["time"].endswith("Z")
    assert (one["count"], two["count"]) == (1, 2)


@pytest.mark.parametrize(
    "name", ["password", "db_password", "Authorization", "refresh_token", "dsn", "api_key"]
)
def test_values_with_secret_names_are_hidden_at_any_depth(log_lines: Lines, name: str) -> None:
    structlog.get_logger().error("x", **{name: "hunter2", "nested": {name: "hunter2"}})
    text = json.dumps(log_lines())
    assert "hunter2" not in text
    assert "***" in text


def test_secrets_are_hidden_by_type(log_lines: Lines) -> None:
    structlog.get_logger().error("x", value=SecretStr("hunter2"))
    assert log_lines()[0]["value"] == "***"


def test_an_exception_is_one_line_without_local_variables(log_lines: Lines) -> None:
    def fail(argument: str) -> None:
        raise ValueError("wrong")

    try:
        fail("hunter2")
    except ValueError as exc:
        structlog.get_logger().error("failed", exc_info=exc)
    (line,) = log_lines()
    assert line["exception"][0]["exc_type"] == "ValueError"
    assert "hunter2" not in json.dumps(line["exception"][0].get("frames", []), default=str).replace(
        'fail(\\"hunter2\\")', ""
    )


def test_what_is_bound_to_the_context_is_in_every_line(log_lines: Lines) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        logging.getLogger("x").warning("inside")
    logging.getLogger("x").warning("outside")
    inside, outside = log_lines()
    assert inside["request_id"] == "r-1"
    assert "request_id" not in outside


@pytest.fixture
def console() -> Iterator[Callable[[], str]]:
    """Logging as on a developer's machine; gives what was printed so far."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.configure(load(environ={"ENVIRONMENT": "development"}), service="shop", for_good=False)
    stream = io.StringIO()
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    yield stream.getvalue
    structlog.reset_defaults()
    root.handlers[:], root.level = before


EVIL = "ok\n2026-01-01 [info] admin logged in\r\x1b[2J\x1b]0;title\x07\u2028\x00"


def test_a_value_cannot_write_lines_of_its_own(log_lines: Lines) -> None:
    structlog.get_logger("a").warning(EVIL, value=EVIL, deep=[EVIL])
    logging.getLogger("b").warning(EVIL)
    assert len(log_lines()) == 2


def test_on_a_terminal_a_line_stays_a_line(console: Callable[[], str]) -> None:
    structlog.get_logger("a").warning(EVIL, value=EVIL, deep=[EVIL])
    logging.getLogger("b").warning(EVIL)
    text = console()
    assert len(text.splitlines()) == 2
    assert not set(text) & {"\x1b", "\x07", "\r", "\x00", "\u2028"}


def test_on_a_terminal_a_traceback_is_readable_and_harmless(console: Callable[[], str]) -> None:
    try:
        raise ValueError(f"postgresql://u:hunter2@h/d {EVIL}")
    except ValueError:
        logging.getLogger("b").exception("it failed")
    text = console()
    assert "Traceback (most recent call last)" in text
    assert "ValueError: postgresql://u:***@h/d ok" in text
    assert not set(text) & {"\x1b", "\x07", "\r", "\x00"}
    assert "hunter2" not in text


def test_an_exceptions_text_is_masked_in_json_too(log_lines: Lines) -> None:
    try:
        raise ValueError("postgresql://u:hunter2@h/d")
    except ValueError as exc:
        cause = exc
    try:
        raise KeyError("password=hunter2") from cause
    except KeyError:
        logging.getLogger("b").exception("it failed")
    [line] = log_lines()
    assert [one["exc_value"] for one in line["exception"]] == ["'password=***", "postgresql://u:***@h/d"]


def test_the_level_changes_while_it_runs(log_lines: Lines) -> None:
    log = structlog.get_logger("a")
    log.debug("one")
    logs.set_level(load(environ={"LOGGING_LEVEL": "debug"}))
    log.debug("two")
    logging.getLogger("b").debug("three")
    logging.getLogger("aiohttp.access").info("not the developer's")
    logs.set_level(load(environ={"LOGGING_LEVEL": "error"}))
    log.warning("four")
    assert [line["message"] for line in log_lines()] == ["two", "three"]


def test_lines_that_only_repeat_are_counted_instead(
    log_lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.set_level(load(environ={"LOGGING_REPEATS": "3"}))
    log = structlog.get_logger("a")
    for number in range(50):
        with structlog.contextvars.bound_contextvars(request_id=str(number), trace_id=str(number)):
            log.warning("no connection", host="db")
            logging.getLogger("b").error("it is %s", "away")
        log.warning("different", number=number)
        structlog.get_logger("moorage.access").info("request", status=200)
    messages = [line["message"] for line in log_lines()]
    assert messages.count("no connection") == messages.count("it is away") == 3
    assert messages.count("different") == messages.count("request") == 50
    [repeats] = [one for handler in logging.getLogger().handlers for one in handler.filters]
    monkeypatch.setattr(repeats, "_until", 0.0)
    log.info("later")
    *_, first, second, last = log_lines()
    assert (first["message"], first["repeated"], first["level"]) == ("no connection", 47, "warning")
    assert (second["message"], second["repeated"]) == ("it is away", 47)
    assert last["message"] == "later"


def test_without_a_bound_every_line_is_written(log_lines: Lines) -> None:
    logs.set_level(load(environ={"LOGGING_REPEATS": "0"}))
    for _ in range(50):
        logging.getLogger("a").warning("again")
    assert len(log_lines()) == 50


def test_numbers_that_json_has_not_do_not_spoil_a_line(log_lines: Lines) -> None:
    structlog.get_logger().warning("x", share=float("nan"), most=float("inf"), n=1)
    [line] = log_lines()
    assert (line["share"], line["most"], line["n"]) == ("nan", "inf", 1)


def test_a_value_that_cannot_be_shown_costs_its_value_not_the_line(
    log_lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Evil(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    structlog.get_logger().warning("x", value=Evil(), other=1)
    [line] = log_lines()
    assert line["message"] == "x"
    assert line["value"] == "(not shown: RuntimeError)"


@pytest.mark.parametrize(
    ("environ", "form"),
    [({}, "json"), ({"ENVIRONMENT": "development"}, "console"), ({"LOGGING_FORMAT": "console"}, "console")],
)
def test_the_form_is_json_but_for_people(
    environ: dict[str, str], form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.configure(load(environ=environ), service="shop", for_good=False)
        logging.getLogger("a").warning("hello")
        text = capsys.readouterr().out
    finally:
        structlog.reset_defaults()
        root.handlers[:], root.level = before
    assert text.startswith("{") == (form == "json")
