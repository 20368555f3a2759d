"""Headlines of another module's posts, kept by its events alone."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Mapped, mapped_column

from moorage import Db, Event, EventInfo, Model, Module, Out, Page, Paging, Table

module = Module("digest")


class PostEvent(Event):
    """What is read of the blog's events."""

    id: UUID
    title: str
    status: str


class PostPublished(PostEvent, type="blog.post.published", key="id"):
    """A post can be read."""


class PostUpdated(PostEvent, type="blog.post.updated", key="id"):
    """Its title may be another, and it may be archived."""


class PostDeleted(PostEvent, type="blog.post.deleted", key="id"):
    """It is gone."""


class Headline(Table):
    """A published post's title, and the trace of the request that published it."""

    post_id: Mapped[UUID] = mapped_column(unique=True)
    title: Mapped[str]
    trace_id: Mapped[str | None]


class HeadlineOut(Model):
    """A headline as readers get it."""

    post_id: UUID
    title: str
    trace_id: str | None


@module.handle("list-headlines")
async def index(paging: Paging, db: Db) -> Out[Page[HeadlineOut]]:
    """All headlines, the oldest first."""
    return await db.page(select(Headline).order_by(Headline.created_at), paging)


@module.on(PostPublished)
async def add(event: PostPublished, info: EventInfo, db: Db) -> None:
    """Keep the headline."""
    await db.add(Headline(post_id=event.id, title=event.title, trace_id=info.trace_id))


@module.on(PostUpdated)
async def change(event: PostUpdated, db: Db) -> None:
    """Follow a new title; forget what was archived."""
    headline = await _of(event.id, db)
    if headline is None:
        return
    if event.status == "archived":
        await db.delete(headline)
    else:
        headline.title = event.title


@module.on(PostDeleted)
async def forget(event: PostDeleted, db: Db) -> None:
    """Forget the headline."""
    headline = await _of(event.id, db)
    if headline is not None:
        await db.delete(headline)


async def _of(post_id: UUID, db: Db) -> Headline | None:
    return await db.scalar(select(Headline).where(Headline.post_id == post_id))
