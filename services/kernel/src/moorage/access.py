"""The access log: one line for each request, whichever host of the guard has answered it.

Written for every request, so its JSON is made here at once. The way of all other lines (structlog, then logging, then
its formatter) gives the same line, and takes as long as a third of a request; it is taken where the format is another,
or where somebody else listens too.
"""

import logging
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import Final

import structlog

from moorage import logs, redaction
from moorage.errors import AppError
from moorage.guard.decision import Decision, RequestFacts
from moorage.trace import Trace

NAME: Final = "moorage.access"
_LONGEST_PATH: Final = 512
_LEVELS: Final = {logging.INFO: "info", logging.WARNING: "warning"}

_logger: Final = logging.getLogger(NAME)
_plain: Final = structlog.get_logger(NAME)


def write(
    facts: RequestFacts,
    *,
    rule: str | None,
    status: int,
    seconds: float,
    error: AppError | None = None,
    decision: Decision | None = None,
    module: str | None = None,
) -> None:
    """Write the line of one request.

    Args:
        rule: name of the rule that it met.
        status: of the answer.
        seconds: that it took.
        module: ``namespace/module`` to which a proxy gave it; ``None`` where this is a module's own process.
    """
    level = logging.WARNING if status >= 500 else logging.INFO
    output = logs.lines(_logger)
    fields: dict[str, str | int | float | None] = {
        "method": facts.method,
        "path": facts.target.partition("?")[0][:_LONGEST_PATH],  # a query may hold what is nobody's business
        "route": rule,
        "status": status,
        "duration_ms": round(seconds * 1000, 2),
        "client": facts.client.address,
        "request_id": facts.request_id,
    }
    if module is not None:
        fields["module"] = module
    user = decision.user if decision is not None else None
    if user is not None:
        fields["user_id"] = str(user.id)
        if user.tenant_id is not None:
            fields["tenant_id"] = user.tenant_id
    if error is not None:
        fields["code"] = error.code
        if error.reason:
            fields["reason"] = error.reason
    if output is None:
        _plain.log(level, "request", **fields)
    elif _logger.isEnabledFor(level):
        output.write(_line(level, facts.trace, fields))


def _line(level: int, trace: Trace, fields: dict[str, str | int | float | None]) -> str:
    now = datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00")
    line = (
        f'{{"time": "{now}Z", "level": "{_LEVELS[level]}", "logger": "{NAME}", "message": "request", '
        f'"trace_id": "{trace.trace_id}", "span_id": "{trace.span_id}"'
    )
    for name, value in fields.items():
        if type(value) is str:
            line += f', "{name}": {quoted(redaction.text(value))}'
        else:
            line += f', "{name}": {"null" if value is None else value}'
    return line
