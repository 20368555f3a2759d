"""Logs: JSON lines for machines, colours for people; never a secret."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog
from pydantic import SecretBytes, SecretStr
from structlog.typing import Processor

from moorage.config.settings import Settings

_SECRET_NAMES: Final = (
    "password",
    "passwd",
    "secret",
    "token",
    "authorization",
    "cookie",
    "dsn",
    "api_key",
    "private_key",
)
HIDDEN: Final = "***"


def configure(settings: Settings, *, service: str, for_good: bool = True) -> None:
    """Send everything that is logged in this process, by structlog or the standard library, to standard
    output.

    Each line has time, level, message (``event``), logger, service and version; within a request also
    request_id, trace_id and user_id (`structlog.contextvars`).
    """
    level = settings.logging.level
    if settings.development and "level" not in settings.logging.model_fields_set:
        level = "debug"
    form = settings.logging.format
    if form is None:
        form = "console" if settings.development or sys.stdout.isatty() else "json"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _service(service, settings.moorage.version),
        redact,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=for_good,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(form)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Libraries that are chatty at debug, about things that are not the developer's.
    for noisy in ("asyncio", "aiohttp.access", "sqlalchemy", "watchfiles"):
        logging.getLogger(noisy).setLevel(max(logging.getLevelName(level.upper()), logging.WARNING))


def redact(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide values whose type or name says that they are secret."""
    for name, value in event.items():
        named = isinstance(value, (str, bytes)) and any(word in name.lower() for word in _SECRET_NAMES)
        if named or isinstance(value, (SecretStr, SecretBytes)):
            event[name] = HIDDEN
        elif isinstance(value, dict):
            event[name] = redact(None, "", dict(value))
    return event


def _service(service: str, version: str) -> Processor:
    def add(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("service", service)
        event.setdefault("version", version)
        return event

    return add


def _rendering(form: str) -> list[Processor]:
    if form == "json":
        return [
            # Without local variables: they hold bodies, tokens and passwords.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ]
    return [
        structlog.dev.ConsoleRenderer(
            timestamp_key="time",
            colors=sys.stdout.isatty(),
            # Not rich's, the default where it is installed: it prints local variables, and takes seconds for them in
            # the event loop.
            exception_formatter=structlog.dev.plain_traceback,
        )
    ]
