"""What the blog keeps."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from moorage import Table


class Status(StrEnum):
    """The stations of a post, in their order."""

    DRAFT = "draft"
    PUBLISHED = "published"
    ARCHIVED = "archived"


class Category(Table):
    """What a post is about; posts refer to it by its slug."""

    slug: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]


class Post(Table):
    """A post of one author."""

    __table_args__ = (
        Index("ix_post_tags", "tags", postgresql_using="gin"),
        Index("ix_post_status_published_at", "status", "published_at"),
    )

    title: Mapped[str]
    content: Mapped[str]
    author_id: Mapped[UUID] = mapped_column(index=True)
    status: Mapped[str] = mapped_column(default=Status.DRAFT)
    tags: Mapped[list[str]] = mapped_column(ARRAY(String))
    category: Mapped[str | None] = mapped_column(ForeignKey("category.slug"))
    published_at: Mapped[datetime | None]


class Comment(Table):
    """What somebody says about a post; it goes with the post."""

    post_id: Mapped[UUID] = mapped_column(ForeignKey("post.id", ondelete="CASCADE"), index=True)
    author_id: Mapped[UUID]
    content: Mapped[str]
