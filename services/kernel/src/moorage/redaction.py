"""What must not be shown, recognised by type, by name and by shape; and values made small enough to show.

One judge for logs, reports of errors and `moorage config`. It runs for each line that is logged, so what it learns
about a name it keeps, and what cannot hold a secret it does not look at.
"""

import dataclasses
import datetime
import decimal
import enum
import pathlib
import re
import uuid
from collections.abc import Collection, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, Final

from pydantic import BaseModel, SecretBytes, SecretStr

HIDDEN: Final = "***"
SECRET_NAMES: Final = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "credential",
    "token",
    "authorization",
    "cookie",
    "dsn",
    "api_key",
    "apikey",
    "private_key",
    "privatekey",
)
"""A name that contains one of these (``-`` counts as ``_``, case does not count) has a secret value."""
OURS: Final = frozenset(
    {
        *("time", "level", "logger", "service", "version", "request_id", "trace_id", "span_id"),
        *("exc_info", "_record", "_from_structlog"),  # not shown as they are
    }
)
"""Names of a log line that the kernel itself fills, with values that it made or checked."""

_MAX_TEXT: Final = 8192
_MAX_INNER_TEXT: Final = 1024
_MAX_DEPTH: Final = 6
_MAX_VALUES: Final = 500
_MAX_CHARACTERS: Final = 32768
_MAX_JUDGED: Final = 4096
_CAPTURE: Final = re.compile(r"\{(\w+)\}")
"""A capture of a rule's path, whose grammar is the matcher's."""

_judged: dict[str, bool] = {}
_PLAIN: Final = frozenset({int, float, bool, type(None)})
_BY_STR: Final = (
    uuid.UUID,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    pathlib.PurePath,
)
_SECRET: Final = (SecretStr, SecretBytes)

_SHAPES: Final[tuple[tuple[str, re.Pattern[str], str], ...]] = (
    # user:password@ of an address
    ("://", re.compile(r"(://[^\s/@:]*):[^\s/@]+@"), rf"\1:{HIDDEN}@"),
    # credentials of an Authorization header
    ("earer ", re.compile(r"\b([Bb]earer )[A-Za-z0-9._~+/=-]{8,}"), rf"\1{HIDDEN}"),
    # a JSON Web Token
    ("eyJ", re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"), HIDDEN),
    # libpq's and many others' `password=…`, JSON's `"password": "…"`
    (
        "assw",
        re.compile(r"""(?i)(passw(?:or)?d["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s,;&)]+)"""),
        rf"\1{HIDDEN}",
    ),
    # aiohttp's errors show the whole address that was asked for, its query included
    ("url=", re.compile(r"""\burl=(?:'[^']*'|"[^"]*"|URL\('[^']*'\))"""), f"url={HIDDEN}"),
    # pydantic's errors show what came in, SQLAlchemy's the values of a statement
    ("input_value=", re.compile(r"input_value=.*?(?=, input_type=)", re.DOTALL), f"input_value={HIDDEN}"),
    ("[parameters: ", re.compile(r"\[parameters: .*?\](?=\n|$)", re.DOTALL), f"[parameters: {HIDDEN}]"),
)
_ANY_MARK: Final = re.compile("|".join(re.escape(mark) for mark, _, _ in _SHAPES)).search


def is_secret(name: str) -> bool:
    """Whether a value called *name* is to be hidden."""
    known = _judged.get(name)
    if known is None:
        plain = name.lower().replace("-", "_")
        known = any(word in plain for word in SECRET_NAMES)
        if len(_judged) < _MAX_JUDGED:  # names may come from outside, as keys of a body do
            _judged[name] = known
    return known


def text(value: str, longest: int = _MAX_TEXT) -> str:
    """*value* without passwords of addresses, bearer tokens and the like, cut to *longest* characters."""
    if len(value) > longest:
        value = f"{value[:longest]}… ({len(value) - longest} more characters)"
    for mark, pattern, instead in _SHAPES:
        if mark in value:
            value = pattern.sub(instead, value)
    return value


def request_path(target: str, template: str | None) -> str:
    """The path of the request target *target*, as it may be kept: without its query, which may hold what is nobody's
    business; and as *template*, the rule's path, where that captures a secret, such as `/reset/{token}`.
    """
    if template is not None and _captures_secret(template):
        return template
    return target.partition("?")[0]


@lru_cache(maxsize=1024)
def _captures_secret(template: str) -> bool:
    return any(is_secret(name) for name in _CAPTURE.findall(template))


def mask(event: MutableMapping[str, Any]) -> None:
    """Replace what is secret in *event*, and cut what is huge, in place."""
    for name, value in event.items():
        if name in OURS or type(value) in _PLAIN:
            continue
        if (known := _judged.get(name)) or (known is None and is_secret(name)):
            event[name] = HIDDEN
        elif type(value) is not str:
            event[name] = shown(value)
        elif len(value) > _MAX_TEXT or _ANY_MARK(value):
            event[name] = text(value)


def shown(value: object) -> object:
    """*value* as JSON could hold it, without what is secret in it at any depth: models, dataclasses, mappings,
    collections and exceptions are looked into; of anything else it is the ``repr``.
    """
    return _Walk().visit(value, 0)


class _Walk:
    """One walk through a value, which ends when enough was seen."""

    def __init__(self) -> None:
        self.left = _MAX_VALUES
        self.room = _MAX_CHARACTERS

    def visit(self, value: object, depth: int) -> object:
        self.left -= 1
        if type(value) in _PLAIN:
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, _SECRET):
            return HIDDEN
        if isinstance(value, enum.Enum):
            return self.visit(value.value, depth)
        if isinstance(value, _BY_STR):
            return str(value)
        if isinstance(value, BaseException):
            return self._text(f"{type(value).__name__}: {value}")
        if depth >= _MAX_DEPTH or self.left <= 0:
            return "…"
        return self._inside(value, depth + 1)

    def _text(self, value: str) -> str:
        shown = text(value, _MAX_INNER_TEXT)
        self.room -= len(shown)
        if self.room < 0:
            self.left = 0  # whatever comes is left out
        return shown

    def _inside(self, value: object, depth: int) -> object:
        if isinstance(value, Mapping):
            return self._named(value.items(), depth)
        if isinstance(value, BaseModel):
            return self._named(value.__dict__.items(), depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [each.name for each in dataclasses.fields(value) if each.repr]
            return self._named([(name, getattr(value, name, None)) for name in names], depth)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return f"({len(value)} bytes)"
        if isinstance(value, Collection):
            return self._items(value, depth)
        try:
            return self._text(repr(value))
        except Exception as exc:  # noqa: BLE001 - somebody's __repr__; a line about it is still to be written
            return f"({type(value).__name__}, whose repr raised {type(exc).__name__})"

    def _named(self, pairs: Collection[tuple[Any, object]], depth: int) -> dict[str, object]:
        result: dict[str, object] = {}
        for name, value in pairs:
            if self.left <= 0:
                result["…"] = f"{len(pairs) - len(result)} more"
                break
            key = name if isinstance(name, str) else str(self.visit(name, depth))
            hidden = is_secret(key) and type(value) not in _PLAIN
            result[text(key, 256)] = HIDDEN if hidden else self.visit(value, depth)
        return result

    def _items(self, values: Collection[object], depth: int) -> list[object]:
        result: list[object] = []
        for value in values:
            if self.left <= 0:
                result.append(f"… {len(values) - len(result)} more")
                break
            result.append(self.visit(value, depth))
        return result
