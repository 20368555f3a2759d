"""What goes in and out of handlers: pydantic models, query parameters and pages."""

from typing import Any, Generic, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

Out = Union[T, Any]  # noqa: UP007 - a generic alias; PEP 604 has none for a bare type variable
"""``-> Out[PostOut]``: the handler answers with a `PostOut`, or with anything that has its attributes.

Such as a row: the answer is made from its attributes after the last change was flushed, so that what the
database computes is in it. For a type checker it is a `PostOut` or anything; ``-> PostOut`` works as well,
where the handler really makes one.
"""


class Model(BaseModel):
    """A JSON object in a request or an answer: snake_case, unknown fields refused, made from rows as well.

    A body has to have the very types that the schema says: ``"5"`` is no number there.
    """

    model_config = ConfigDict(extra="forbid", from_attributes=True)


class Query(Model):
    """Parameters of the query string: a handler's parameter of a subclass gets them, checked."""


class Paging(Query):
    """Which part of a list: ``?limit=20&offset=40``."""

    limit: int = Field(20, ge=1, le=100, description="Items at most.")
    offset: int = Field(0, ge=0, le=2**31, description="Items to skip.")


class Page(Model, Generic[T]):
    """A part of a list, and how long the whole list is."""

    items: list[T]
    limit: int
    offset: int
    total: int


class CursorPaging(Query):
    """Which part of a list, by where the last one ended: ``?limit=20&cursor=…``."""

    limit: int = Field(20, ge=1, le=100, description="Items at most.")
    cursor: str | None = Field(
        None, max_length=2048, description="The last page's `next_cursor`; absent: from the beginning."
    )


class CursorPage(Model, Generic[T]):
    """A part of a list, and where the next one begins.

    Other than with offsets, what is added or removed meanwhile neither repeats nor skips the rest.
    """

    items: list[T]
    limit: int
    next_cursor: str | None = Field(description="For the next page; null: this is the last.")
