"""Types that configuration needs and pydantic has not."""

import re
from typing import Annotated, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo

T = TypeVar("T")

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


def seconds(value: object) -> object:
    """Read a duration as Kubernetes users write it (``30s``, ``1m30s``, ``250ms``); numbers are seconds."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _DURATION.fullmatch(text):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no duration; write 30s, 5m or 1m30s") from None


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0, allow_inf_nan=False)]
"""Seconds, written as ``30s``, ``5m``, ``1m30s``, ``250ms`` or a number."""


class _Reloads:
    """Marks a field whose new value is taken while the process runs."""


Reloadable = Annotated[T, _Reloads()]
"""``per_page: Reloadable[int] = 20``: a changed value is in force from the next request on, without a restart.

For fields that are read anew each time, as a handler reads the group that it is given; a component that keeps what it
was made with has to subscribe (`moorage.config.live.Live.subscribe`), or its fields must not be marked.
"""


def reloads(info: FieldInfo) -> bool:
    """Whether the field is `Reloadable`."""
    return any(isinstance(one, _Reloads) for one in info.metadata) or any(
        isinstance(one, _Reloads) for one in getattr(info.annotation, "__metadata__", ())
    )


def is_duration(info: FieldInfo) -> bool:
    """Whether the field is a `Duration`."""
    return any(isinstance(one, BeforeValidator) and one.func is seconds for one in info.metadata)


def is_redis_url(text: str) -> bool:
    """Whether it is of a form that a client of Redis understands."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("redis", "rediss", "unix") and parts.port != 0 and len(text) > len("unix:///")
    except ValueError:
        return False
