"""What goes in and out."""

from datetime import datetime
from functools import partial
from typing import Annotated
from uuid import UUID

from pydantic import Field, StringConstraints

from blog.tables import Status
from moorage import Model, Query

Text = partial(StringConstraints, strip_whitespace=True, min_length=1)
"""What somebody writes: it has to say something."""
Slug = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=50)]


class PostIn(Model):
    """A post as its author writes it."""

    title: Annotated[str, Text(max_length=200)]
    content: Annotated[str, Field(max_length=100_000)] = ""
    tags: list[Slug] = Field(default_factory=list, max_length=20)
    category: Slug | None = None


class PostOut(PostIn):
    """A post as readers get it."""

    id: UUID
    author_id: UUID
    status: Status
    created_at: datetime
    updated_at: datetime
    published_at: datetime | None


class PostFilter(Query):
    """Which posts a reader wants to see."""

    tag: Slug | None = None
    category: Slug | None = None
    author_id: UUID | None = None


class CommentIn(Model):
    """A comment as somebody writes it."""

    content: Annotated[str, Text(max_length=5000)]


class CommentOut(CommentIn):
    """A comment as readers get it."""

    id: UUID
    post_id: UUID
    author_id: UUID
    created_at: datetime


class CategoryIn(Model):
    """A category as an editor adds it."""

    slug: Slug
    name: Annotated[str, Text(max_length=100)]


class CategoryOut(CategoryIn):
    """A category as readers get it."""

    id: UUID


class TagOut(Model):
    """A tag and the number of published posts that bear it."""

    name: str
    posts: int
