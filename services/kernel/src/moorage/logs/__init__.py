"""Logs: JSON lines for machines, colours for people; never a secret, never a line that a stranger has written.

Everything that is logged in this process, by structlog or by the standard library, takes the same way: what the
context knows is added, `moorage.redaction` hides and shortens, lines that only repeat are counted instead of written.
"""

import contextlib
import logging
import sys
from typing import Final, Literal, TextIO

import structlog
from structlog.typing import Processor

from moorage import redaction, trace, who
from moorage.config.settings import Settings
from moorage.logs.lines import Lines
from moorage.logs.rendering import Event, renderers
from moorage.logs.repeats import Repeats

_NOISY: Final = (
    "asyncio",
    "aiohttp.access",
    "sqlalchemy",
    "moorage.database.engine.Connections",  # SQLAlchemy names a pool's logger after the pool's class
    "aiokafka",
    "kafka",
    "opentelemetry",
    "urllib3",
)
"""Libraries that are chatty at debug, about things that are not the developer's."""


def configure(settings: Settings, *, service: str, for_good: bool = True) -> None:
    """Send everything that is logged in this process to standard output.

    Each line has time, level, message (``event``), logger, service and version; within a request also
    request_id, trace_id, span_id, user_id and tenant_id (`moorage.who`, `structlog.contextvars`).
    """
    form = form_of(settings)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        who.log_fields,
        trace.log_fields,
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
    handler: logging.StreamHandler[TextIO]
    if form == "json":
        handler = Lines(sys.stdout, service=service, version=settings.moorage.version)
    else:
        handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers(form)],
        )
    )
    handler.addFilter(Repeats(settings.logging.repeats))
    root = logging.getLogger()
    for before in root.handlers:
        with contextlib.suppress(Exception):  # whose stream may be closed
            before.flush()
    root.handlers[:] = [handler]
    set_level(settings)


def form_of(settings: Settings) -> Literal["json", "console"]:
    """In which form this process writes lines."""
    if settings.logging.format is not None:
        return settings.logging.format
    return "console" if settings.development or sys.stdout.isatty() else "json"


def set_level(settings: Settings) -> None:
    """Show what *settings* ask for, from the next line on."""
    level: str = settings.logging.level
    if settings.development and "level" not in settings.logging.model_fields_set:
        level = "debug"
    number = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    root.setLevel(number)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    for handler in root.handlers:
        for each in handler.filters:
            if isinstance(each, Repeats):
                each.most = settings.logging.repeats


def redact(_: object, __: str, event: Event) -> Event:
    """Hide values whose type or name says that they are secret, and cut what is huge."""
    try:
        redaction.mask(event)
    except Exception as exc:  # noqa: BLE001 - somebody's __str__; whoever logs must not fail for it
        for name in event.keys() - redaction.OURS - {"event"}:
            event[name] = f"(not shown: {type(exc).__name__})"
    return event


def _service(service: str, version: str) -> Processor:
    def add(_: object, __: str, event: Event) -> Event:
        event.setdefault("service", service)
        event.setdefault("version", version)
        return event

    return add
