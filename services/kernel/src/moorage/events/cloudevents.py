"""CloudEvents 1.0 in JSON, structured mode (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md).

Written and read strictly; only what the emitter's own data holds is read with tolerance, by `Event`.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import pydantic_core
from pydantic import ValidationError

from moorage import trace as traces
from moorage.events.event import LONGEST_KEY, Event, EventInfo
from moorage.trace import Trace

CONTENT_TYPE: Final = "application/cloudevents+json"
LARGEST: Final = 900_000
"""Bytes of an encoded event; below Kafka's default limit for a message with all that is around it."""
LARGEST_READ: Final = 2 * 1024 * 1024
"""Bytes of a message that are looked at, and kept of one that cannot be read: those of others may have any size."""
_LONGEST: Final = 1024
_LONGEST_KEY: Final = 4 * LONGEST_KEY
"""Bytes, as they come. More would not fit the inbox's indexes, and its event would stop its partition for ever."""
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)")

E = TypeVar("E", bound=Event)


class Undecodable(ValueError):  # noqa: N818 - says what the message is
    """A message that is no CloudEvent, or whose data is not of its class; the text names the attribute or field."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an event comes from: what goes into its envelope besides itself."""

    source: str
    tenant: str | None = None
    user_id: str | None = None
    request_id: str | None = None
    trace: Trace | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """A received event, with its data still as JSON."""

    id: str
    source: str
    type: str
    key: str
    time: datetime
    data: bytes
    tenant: str | None = None
    user_id: UUID | None = None
    request_id: str | None = None
    trace: Trace | None = None
    """The emitter's span (remote)."""

    @property
    def request(self) -> str:
        """The id of the request that led to it; of an event that none led to, its own."""
        return self.request_id or self.id

    @property
    def context(self) -> dict[str, str]:
        """Who and what led to it, by the names that logs and reports of errors have for requests."""
        known = {
            "request_id": self.request,
            "trace_id": None if self.trace is None else self.trace.trace_id,
            "user_id": None if self.user_id is None else str(self.user_id),
            "tenant_id": self.tenant,
        }
        return {name: value for name, value in known.items() if value is not None}

    def info(self, attempt: int) -> EventInfo:
        """What a handler may know."""
        return EventInfo(
            id=self.id,
            type=self.type,
            source=self.source,
            key=self.key,
            time=self.time,
            tenant=self.tenant,
            user_id=self.user_id,
            trace_id=self.trace.trace_id if self.trace is not None else None,
            attempt=attempt,
        )


def encode(event: Event, origin: Origin, *, id: UUID, time: datetime) -> str:
    """The event as it is stored in the outbox, sent, and kept as a dead letter; *time* in UTC.

    Raises:
        ValueError: it is larger than `LARGEST`, or its key is empty or too long.
    """
    key = event.event_key
    if not 0 < len(key) <= LONGEST_KEY:
        raise ValueError(
            f"{event.__event_type__}: its key has {len(key)} characters, and must have 1 to {LONGEST_KEY}"
        )
    if "\0" in key:
        raise ValueError(f"{event.__event_type__}: its key holds a NUL, which PostgreSQL cannot store")
    attributes: dict[str, str] = {
        "specversion": "1.0",
        "id": str(id),
        "source": origin.source,
        "type": event.__event_type__,
        "subject": key,
        "time": time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "partitionkey": key,
    }
    if origin.tenant is not None:
        attributes["tenantid"] = origin.tenant
    if origin.user_id is not None:
        attributes["userid"] = origin.user_id
    if origin.request_id is not None:
        attributes["requestid"] = origin.request_id
    if origin.trace is not None:
        traces.inject(attributes, origin.trace)
    data = event.__pydantic_serializer__.to_json(event).decode()
    # The data is encoded once, and put in as it is.
    text = f'{pydantic_core.to_json(attributes).decode()[:-1]},"data":{data}}}'
    if len(text) > LARGEST // 4 and (size := len(text.encode())) > LARGEST:
        raise ValueError(
            f"{event.__event_type__}: encoded it has {size} bytes, more than {LARGEST}; an event says what happened: "
            "keep the content where others can ask for it"
        )
    return text


def decode(body: bytes | str) -> Envelope:
    """Read an envelope.

    Raises:
        Undecodable: it is none.
    """
    if len(body) > LARGEST_READ:
        raise Undecodable(f"it has {len(body)} bytes, more than {LARGEST_READ}")
    try:
        content = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise Undecodable(f"not JSON: {exc}") from None
    if not isinstance(content, dict):
        raise Undecodable("not a JSON object")
    if content.get("specversion") != "1.0":
        raise Undecodable(f"specversion is {_shown(content.get('specversion'))}, not '1.0'")
    content_type = _text(content, "datacontenttype", optional=True) or "application/json"
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Undecodable(f"datacontenttype is {_shown(content_type)}, not application/json")
    if "data" not in content:
        raise Undecodable("it has no data" + (" but data_base64" if "data_base64" in content else ""))
    user = _text(content, "userid", optional=True)
    key = _key(content, "partitionkey") or _key(content, "subject")
    return Envelope(
        id=_needed(content, "id"),
        source=_needed(content, "source"),
        type=_needed(content, "type"),
        key=key or "",
        time=_time(_text(content, "time", optional=True)),
        data=pydantic_core.to_json(content["data"]),
        tenant=_text(content, "tenantid", optional=True),
        user_id=_uuid(user) if user is not None else None,
        request_id=_text(content, "requestid", optional=True),
        trace=traces.parse(
            _text(content, "traceparent", optional=True), _text(content, "tracestate", optional=True)
        ),
    )


def read(cls: type[E], envelope: Envelope) -> E:
    """The event itself; fields that *cls* does not know are ignored.

    Raises:
        Undecodable: a field that *cls* needs is missing or of another type; no value is quoted.
    """
    try:
        return cast("E", cls.__pydantic_validator__.validate_json(envelope.data))
    except ValidationError as exc:
        problems = exc.errors(include_url=False, include_input=False, include_context=False)
        named = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'data'}: {problem['msg']}"
            for problem in problems[:5]
        )
        raise Undecodable(f"its data is no {cls.__name__}: {named}") from None
    except Exception as exc:
        # A mistake in the class's own code, such as a validator's; the partition must not stand still for it.
        raise Undecodable(f"its data is no {cls.__name__}: it raised {type(exc).__name__}") from exc


def _needed(content: dict[str, Any], name: str) -> str:
    text = _text(content, name)
    assert text is not None
    return text


def _key(content: dict[str, Any], name: str) -> str | None:
    return _text(content, name, optional=True, longest=_LONGEST_KEY)


def _text(
    content: dict[str, Any], name: str, *, optional: bool = False, longest: int = _LONGEST
) -> str | None:
    """An attribute; *longest* in bytes. PostgreSQL's texts hold no NUL."""
    value = content.get(name)
    if value is None and optional:
        return None
    if not isinstance(value, str) or not value:
        raise Undecodable(f"{name} is {_shown(value)}, not a text")
    if len(value.encode()) > longest:
        raise Undecodable(f"{name} has more than {longest} bytes")
    if "\0" in value:
        raise Undecodable(f"{name} holds a NUL")
    return value


def _time(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    if _TIME.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper())
        except ValueError:
            pass
    raise Undecodable(f"time is {_shown(text)}, not a time as RFC 3339 has it")


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Undecodable(f"userid is {_shown(text)}, not a UUID") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
