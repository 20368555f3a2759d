"""The access log: one line for each request, whichever host of the guard has answered it.

Written for every request, so its JSON is made here at once. The way of all other lines (structlog, then logging, then
its formatter) gives the same line, and takes as long as a third of a request; it is taken where the format is another,
or where somebody else listens too.
"""

import logging
import time
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Final

import structlog
from structlog.contextvars import get_contextvars

from moorage import redaction
from moorage.errors import AppError
from moorage.guard.decision import Decision, RequestFacts
from moorage.guard.identity import User
from moorage.logs.lines import lines_of

NAME: Final = "moorage.access"
_LONGEST_PATH: Final = 512
_LEVELS: Final = {logging.INFO: "info", logging.WARNING: "warning"}

_logger: Final = logging.getLogger(NAME)
_plain: Final = structlog.get_logger(NAME)


def write(
    facts: RequestFacts,
    *,
    rule: str | None,
    template: str | None,
    status: int,
    seconds: float,
    error: AppError | None = None,
    decision: Decision | None = None,
    module: str | None = None,
) -> None:
    """Write the line of one request.

    Args:
        rule: name of the rule that it met.
        template: path of that rule.
        status: of the answer.
        seconds: that it took.
        module: ``namespace/module`` to which a proxy gave it; ``None`` where this is a module's own process.
    """
    level = logging.WARNING if status >= 500 else logging.INFO
    path = redaction.request_path(facts.target, template)[:_LONGEST_PATH]
    more = _optional(module, decision.user if decision is not None else None, error)
    output = lines_of(_logger)
    if output is None or get_contextvars():  # what the code has bound is in every line
        _plain.log(
            level,
            "request",
            method=facts.method,
            path=path,
            route=rule,
            status=status,
            duration_ms=round(seconds * 1000, 2),
            client=facts.client.address,
            request_id=facts.request_id,
            **more,
        )
    elif _logger.isEnabledFor(level):
        output.later(_line, time.time(), level, facts, path, rule, status, seconds, more)


def _line(
    now: float,
    level: int,
    facts: RequestFacts,
    path: str,
    rule: str | None,
    status: int,
    seconds: float,
    more: dict[str, str],
) -> str:
    client, trace = facts.client.address, facts.trace
    line = (
        f'{{"time": "{_time(now)}", "level": "{_LEVELS[level]}", "logger": "{NAME}", "message": "request", '
        f'"method": {quoted(facts.method)}, "path": {quoted(redaction.text(path))}, '
        f'"route": {"null" if rule is None else quoted(rule)}, "status": {status}, '
        f'"duration_ms": {round(seconds * 1000, 2)}, "client": {"null" if client is None else quoted(client)}, '
        f'"request_id": "{facts.request_id}", "trace_id": "{trace.trace_id}", "span_id": "{trace.span_id}"'
    )
    for name, value in more.items():
        line += f', "{name}": {quoted(redaction.text(value))}'
    return line


def _optional(module: str | None, user: User | None, error: AppError | None) -> dict[str, str]:
    """The fields that not every line has."""
    more: dict[str, str] = {}
    if module is not None:
        more["module"] = module
    if user is not None:
        more["user_id"] = str(user.id)
        if user.tenant_id is not None:
            more["tenant_id"] = user.tenant_id
    if error is not None:
        more["code"] = str(error.code)
        if error.reason:
            more["reason"] = str(error.reason)
    return more


def _time(now: float) -> str:
    """RFC 3339 with microseconds."""
    whole = int(now)
    return f"{_to_the_second(whole)}.{int((now - whole) * 1e6):06d}Z"


@lru_cache(maxsize=2)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
