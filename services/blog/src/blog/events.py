"""What other modules are told of posts."""

from datetime import datetime
from uuid import UUID

from blog.tables import Status
from moorage import Event


class PostEvent(Event):
    """What each of them says."""

    id: UUID
    author_id: UUID
    title: str
    status: Status


class PostCreated(PostEvent, type="blog.post.created", key="id"):
    """A draft was written."""


class PostUpdated(PostEvent, type="blog.post.updated", key="id"):
    """What its author wrote was changed, or it was archived."""


class PostPublished(PostEvent, type="blog.post.published", key="id"):
    """Everybody can read it from now on."""

    published_at: datetime


class PostDeleted(PostEvent, type="blog.post.deleted", key="id"):
    """It is gone; ``status`` is what it was."""
