"""Logs: one JSON object a line, with who and where, and no secret in it."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

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
