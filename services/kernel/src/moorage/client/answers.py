"""What comes back from a call: read within bounds, decoded tolerantly, refusals made into errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, cast

import aiohttp
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json

from moorage.client.errors import (
    UpstreamConflict,
    UpstreamError,
    UpstreamNotFound,
    UpstreamTimeout,
    UpstreamUnavailable,
)

_LONGEST_TEXT = 200
_MOST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer (2xx), whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, decoded; raises `ValueError` if it is no JSON."""
        return from_json(self.body)


class TooLarge(Exception):  # noqa: N818 - it says how the answer is
    """The answer has more bytes than are taken."""


class _Problem(BaseModel):
    code: str = ""
    message: str = ""
    details: dict[str, object] = {}


class _Refusal(BaseModel):
    error: _Problem


async def read(response: aiohttp.ClientResponse, largest: int) -> bytes:
    """The body, unpacked; raises `TooLarge` as soon as it is known to have more than *largest* bytes."""
    announced = 0 if response.method == "HEAD" else response.content_length or 0
    if announced > largest:
        raise TooLarge(f"{announced} bytes announced")
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > largest:
            raise TooLarge(f"more than {largest} bytes")
        parts.append(part)
    return b"".join(parts)


def decode(target: str, answer: Answer, kind: object) -> Any:
    """The body as a *kind*. Fields that it does not know are ignored: the other module may be newer.

    Raises:
        UpstreamError: it is none.
    """
    try:
        return _adapter(kind).validate_json(answer.body, extra="ignore")
    except ValidationError as exc:
        problem = exc.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        reason = f"its answer is no {getattr(kind, '__name__', kind)}: {where}: {problem['msg']}"
        raise UpstreamError(target, reason, answered=answer.status) from None


@lru_cache(maxsize=512)
def _adapter(kind: object) -> TypeAdapter[Any]:
    return TypeAdapter(cast("Any", kind))


def refusal(target: str, answer: Answer) -> UpstreamError:
    """The error for an answer that is not 2xx."""
    status = answer.status
    try:
        problem = _Refusal.model_validate_json(answer.body).error
    except ValidationError:
        problem = _Problem()
    said = f"answered {status} {problem.code} {problem.message}".rstrip()[:_LONGEST_TEXT]
    if 300 <= status < 400:
        said += ": redirects are not followed"
    return _KINDS.get(status, UpstreamError)(
        target,
        said,
        answered=status,
        upstream_code=problem.code or None,
        upstream_message=problem.message,
        upstream_details=problem.details,
        retry_after=retry_after(answer.headers),
    )


_KINDS: Mapping[int, type[UpstreamError]] = {
    404: UpstreamNotFound,
    409: UpstreamConflict,
    412: UpstreamConflict,
    429: UpstreamUnavailable,
    503: UpstreamUnavailable,
    504: UpstreamTimeout,
}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` asks to wait, as a number or a date (RFC 9110, 10.2.3); None without a good one."""
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        seconds = float(text) if text.isdigit() else _until(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), _MOST_SECONDS)


def _until(text: str) -> float:
    then = parsedate_to_datetime(text)
    return ((then if then.tzinfo else then.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
