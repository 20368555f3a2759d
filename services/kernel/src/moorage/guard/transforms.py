"""Changes to headers that a rule asks for: to those of the request, as handler or upstream see them, and to those of
the answer.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Final, Self

from multidict import CIMultiDict
from pydantic import BaseModel, ConfigDict, Field, model_validator

from moorage.guard import reserved

MAX_FIELDS: Final = 32
NAME: Final = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
_SOUND_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,128}")
_SOUND_VALUE: Final = re.compile(r"[\t -~]{0,1024}")
FieldName = Annotated[str, Field(pattern=NAME, max_length=128)]


class Transform(BaseModel):
    """Fields to take off, then fields to set."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    set: Annotated[dict[str, str], Field(max_length=MAX_FIELDS)] = Field(default_factory=dict)
    remove: Annotated[list[FieldName], Field(max_length=MAX_FIELDS)] = Field(default_factory=list)

    def apply(self, headers: "CIMultiDict[str]") -> None:
        """Change *headers*; what is set replaces whatever was there."""
        for name in self.remove:
            headers.popall(name, None)
        for name, value in self.set.items():
            headers[name] = value

    def apply_removals(self, headers: "CIMultiDict[str]") -> None:
        """Only take off."""
        for name in self.remove:
            headers.popall(name, None)


class RequestTransform(Transform):
    """Of a request; can claim nothing that the guard says."""

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        _raise_first(request_faults(self))
        return self


class ResponseTransform(Transform):
    """Of an answer; can hide neither its framing nor what the guard says."""

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        _raise_first(response_faults(self))
        return self


def request_faults(transform: Transform) -> Iterator[tuple[str, str]]:
    """What is wrong with a request's *transform*: the field in it, and why."""
    yield from _faults_of_names_and_values(transform)
    for part, name in named(transform):
        if (why := reserved.in_request(name)) is not None:
            yield part, f"`{name}` {why}"


def response_faults(transform: Transform) -> Iterator[tuple[str, str]]:
    """What is wrong with a response's *transform*: the field in it, and why."""
    yield from _faults_of_names_and_values(transform)
    for part, name in named(transform):
        if (why := reserved.in_response(name, removed=part == "remove")) is not None:
            yield part, f"`{name}` {why}"


def named(transform: Transform) -> Iterator[tuple[str, str]]:
    """Every field that *transform* changes: ``set`` or ``remove``, and its name."""
    for name in transform.set:
        yield "set", name
    for name in transform.remove:
        yield "remove", name


def _faults_of_names_and_values(transform: Transform) -> Iterator[tuple[str, str]]:
    """Names that two programs could read differently, and whatever could end a line."""
    seen: set[str] = set()
    for name, value in transform.set.items():
        if _SOUND_NAME.fullmatch(name) is None:
            yield "set", f"`{name[:128]}` is not a name of letters, digits and `-`"
        if _SOUND_VALUE.fullmatch(value) is None:
            yield "set", f"the value of `{name[:128]}` is not printable ASCII text of at most 1024 characters"
        if name.lower() in seen:
            yield "set", f"`{name[:128]}` is there twice, as capitals make no difference"
        seen.add(name.lower())


def _raise_first(faults: Iterator[tuple[str, str]]) -> None:
    for part, why in faults:
        raise ValueError(f"{part}: {why}")
