"""What conditions are given: plain, bounded values, made from models and requests.

Every doubt raises `ValueError`, on which the engine denies: a value of an unknown type, too long, too deep,
or naming one query parameter twice.
"""

import datetime
import enum
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

from moorage.guard.conditions import Node
from moorage.guard.headers import Headers, is_identity_header
from moorage.guard.identity import Caller, User

MAX_ITEMS: Final = 256
MAX_TEXT: Final = 16 * 1024
"""Characters."""
MAX_TOTAL_ITEMS: Final = 1024
MAX_TOTAL_TEXT: Final = 64 * 1024
_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
_AS_THEY_ARE: Final = (bool, int, float, datetime.timedelta)


def _timestamp(value: datetime.datetime) -> datetime.datetime:
    return value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)


def _midnight(value: datetime.date) -> datetime.datetime:
    return datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)


_CONVERTED: Final[dict[type, Callable[[Any], object]]] = {
    UUID: str,
    datetime.datetime: _timestamp,  # before date, of which it is a kind
    datetime.date: _midnight,
    Decimal: float,
}


def user_value(caller: Caller, members: frozenset[str]) -> dict[str, object] | None:
    """The members of `user` that a condition reads; a module has no user, so that reading one fails (and
    denies).
    """
    if not isinstance(caller, User):
        return None
    value: dict[str, object] = {}
    if "id" in members:
        value["id"] = str(caller.id)
    if "roles" in members:
        value["roles"] = _bounded(caller.roles)
    if "permissions" in members:
        value["permissions"] = _bounded(sorted(caller.permissions))
    # What is not known stays absent instead of null: `user.tenant == resource.tenant` must not hold for two
    # nulls.
    if "email" in members and caller.email is not None:
        value["email"] = caller.email
    if "tenant" in members and caller.tenant_id is not None:
        value["tenant"] = caller.tenant_id
    return value


def request_value(
    members: frozenset[str],
    *,
    method: str,
    path: str,
    params: Mapping[str, str],
    query: str,
    headers: Headers,
) -> dict[str, object]:
    """The members of `request` that a condition reads; *query* as it came."""
    value: dict[str, object] = {}
    if "method" in members:
        value["method"] = method
    if "path" in members:
        value["path"] = path
    if "params" in members:
        value["params"] = dict(params)
    if "query" in members:
        value["query"] = _query(query)
    if "headers" in members:
        value["headers"] = _headers(headers)
    return value


def resource_value(resource: object, tree: Node) -> object:
    """Take from *resource* (a model, dataclass or mapping) the members in *tree*, as plain values.

    UUIDs become text (as `user.id` is), enums their values, times timestamps (a naive one counts as UTC),
    dates midnight UTC. A member that the object does not have is left out.
    """
    if resource is None:
        raise ValueError("there is no resource")
    return _Taker().members(resource, tree)


_ABSENT: Final = object()


def _member(value: object, name: str) -> object:
    return value.get(name, _ABSENT) if isinstance(value, Mapping) else getattr(value, name, _ABSENT)


class _Taker:
    """Takes plain values out of objects, within one budget for all of them together."""

    __slots__ = ("items", "text")

    def __init__(self) -> None:
        self.items = MAX_TOTAL_ITEMS
        self.text = MAX_TOTAL_TEXT

    def members(self, value: object, tree: Node) -> dict[str, object]:
        """The members of *value* that are in *tree*; of a mapping its keys, of an object its attributes."""
        result: dict[str, object] = {}
        for name, node in tree.members.items():
            member = _member(value, name)
            if member is not _ABSENT:
                result[name] = self.plain(member, node)
        return result

    def plain(self, value: object, node: Node) -> object:
        """*value* as the evaluator takes it."""
        self.items -= 1
        if self.items < 0:
            raise ValueError(f"more than {MAX_TOTAL_ITEMS} values")
        if isinstance(value, enum.Enum):
            value = value.value
        if isinstance(value, str):
            return self._bounded_text(value)
        if value is None or isinstance(value, _AS_THEY_ARE):
            return value
        for kind, convert in _CONVERTED.items():
            if isinstance(value, kind):
                return convert(value)
        if isinstance(value, list | tuple | set | frozenset):
            return [self.plain(item, node) for item in _bounded(value)]
        if node.members:
            return self.members(value, node)
        if isinstance(value, Mapping):
            return {self._key(key): self.plain(item, _LEAF) for key, item in _bounded(value.items())}
        raise ValueError(f"a {type(value).__name__} cannot be given to a condition")

    def _bounded_text(self, value: str) -> str:
        self.text -= len(value)
        if len(value) > MAX_TEXT or self.text < 0:
            raise ValueError(
                f"a text has more than {MAX_TEXT} characters, or all have more than {MAX_TOTAL_TEXT}"
            )
        return value

    def _key(self, key: object) -> str:
        if not isinstance(key, str):
            raise ValueError("a mapping has keys that are not text")
        return self._bounded_text(key)


_LEAF: Final = Node()
T = TypeVar("T")


def _bounded(items: Iterable[T]) -> list[T]:
    result = list(items)
    if len(result) > MAX_ITEMS:
        raise ValueError(f"more than {MAX_ITEMS} items")
    return result


def _query(query: str) -> dict[str, str]:
    # Of two equal names the handler might take the one and the condition the other.
    pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_ITEMS, errors="strict")
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the query names a parameter twice")
    return result


def _headers(headers: Headers) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower in _SECRET_HEADERS or is_identity_header(lower):
            continue
        result[lower] = f"{result[lower]}, {value}" if lower in result else value
    if len(result) > MAX_ITEMS or sum(map(len, result.values())) > MAX_TEXT:
        raise ValueError("the headers are too long")
    return result
