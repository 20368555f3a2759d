"""Events as modules declare and see them."""

import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from moorage.module import DeclarationError

_TYPE = re.compile(r"[a-z][a-z0-9_]*(?:[.][a-z][a-z0-9_]*)+")
_LONGEST_TYPE: Final = 200
LONGEST_KEY: Final = 512
_KEYS: Final = (str, int, UUID, Enum)


class Reject(Exception):  # noqa: N818 - says what the handler does
    """Raised by a handler: this event can never be handled. To the dead letter at once, with this reason."""


class Event(BaseModel):
    """Something that happened, as other modules are told of it; always in the past tense.

    ``class Published(Event, type="blog.post.published", key="id"): id: UUID`` declares one. ``type`` is its CloudEvents
    type, ``key`` the field that order holds for: all events of one topic (the type without its last word) with
    one key are handled in the order in which they were committed. A subclass without both is a base for others.

    Who handles an event declares the same type with the fields that he needs: what he does not know is ignored, so
    that an emitter may add fields. Events cannot be changed.

    Raises:
        DeclarationError: at the class statement, if type or key cannot be used.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, from_attributes=True, ser_json_timedelta="float")

    __event_type__: ClassVar[str] = ""
    __event_key__: ClassVar[str] = ""

    def __init_subclass__(cls, *, type: str = "", key: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, *, type: str = "", key: str = "", **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.__event_type__, cls.__event_key__ = type, key
        if type or key:
            _check(cls, type, key)

    @property
    def event_key(self) -> str:
        """The key's value as text."""
        return key_text(getattr(self, self.__event_key__))


@dataclass(frozen=True, slots=True)
class EventInfo:
    """What is known of an event besides its data; a handler may ask for it by type."""

    id: str
    """Unique together with ``source``; a UUID version 7 if a kernel made it."""
    type: str
    source: str
    """``/<namespace>/<module>`` of the emitter."""
    key: str
    time: datetime
    """When it was emitted."""
    tenant: str | None
    """For whom the emitter worked; the handler's `Db` works for the same."""
    user_id: UUID | None
    """The user whose request led to it."""
    trace_id: str | None
    attempt: int
    """1 for the first delivery; duplicates that the inbox finds do not count."""


def topic_of(type: str) -> str:
    """The topic of a type: ``blog.post`` of ``blog.post.published``, so that one entity's events stay in order."""
    return type.rpartition(".")[0]


def key_text(value: object) -> str:
    """How a key's value is written: an enumeration by its value."""
    return str(value.value if isinstance(value, Enum) else value)


def declared(package: str) -> Iterator[type[Event]]:
    """The event classes with a type that are defined in *package* (a top-level name), by type and name."""
    found = [
        cls for cls in _below(Event) if cls.__event_type__ and cls.__module__.partition(".")[0] == package
    ]
    yield from sorted(found, key=lambda cls: (cls.__event_type__, cls.__qualname__))


def _below(cls: type[Event]) -> Iterator[type[Event]]:
    for child in cls.__subclasses__():
        yield child
        yield from _below(child)


def _check(cls: type[Event], type: str, key: str) -> None:
    where = f"{cls.__module__}.{cls.__qualname__}"
    if not (type and key):
        missing = "a key" if type else "a type"
        raise DeclarationError(
            f"{where}: an event needs a type and a key, and has no {missing[2:]}; write class {cls.__name__}(Event, "
            f'type="blog.post.published", key="id")'
        )
    if len(type) > _LONGEST_TYPE or not _TYPE.fullmatch(type):
        raise DeclarationError(
            f"{where}: {type!r} cannot be an event's type; use at least two lower-case words joined by dots, such as "
            f"blog.post.published, at most {_LONGEST_TYPE} characters"
        )
    if key not in cls.model_fields:
        raise DeclarationError(
            f"{where}: the key {key!r} is none of its fields ({', '.join(cls.model_fields) or 'it has none'})"
        )
    kind: object = cls.model_fields[key].annotation
    kind = getattr(kind, "__supertype__", kind)  # of a NewType
    if cls.__pydantic_complete__ and not (isinstance(kind, builtins.type) and issubclass(kind, _KEYS)):
        raise DeclarationError(
            f"{where}: the key {key!r} is a {cls.model_fields[key].annotation}; order holds for a UUID, str or int, "
            "never None"
        )
