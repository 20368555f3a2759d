"""Posts: written as drafts, published, archived."""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import select

from blog.app import module
from blog.events import PostCreated, PostDeleted, PostPublished, PostUpdated
from blog.generated import Permissions, Routes
from blog.models import PostFilter, PostIn, PostOut
from blog.tables import Post, Status
from moorage import Conflict, Db, NotFound, Out, Page, Paging, User


async def load(id: UUID, db: Db) -> Post:
    """The post of the path, for whoever may do something to it: the permission's condition decides."""
    return await db.get(Post, id, lock=True) or NotFound.throw("post", id)


async def readable(id: UUID, user: User | None, db: Db) -> Post:
    """The post of the path for a reader; a draft does not exist but for its author and for moderators."""
    post = await db.get(Post, id)
    if post is None or not (post.status == Status.PUBLISHED or _may_see_drafts(user, post.author_id)):
        NotFound.throw("post", id)
    return post


def _may_see_drafts(user: User | None, author_id: UUID) -> bool:
    return user is not None and (user.id == author_id or user.has(Permissions.POST_MODERATE))


@module.handle(Routes.LIST_POSTS)
async def index(wanted: PostFilter, paging: Paging, db: Db) -> Out[Page[PostOut]]:
    """Published posts, the newest first."""
    posts = select(Post).where(Post.status == Status.PUBLISHED).order_by(Post.published_at.desc())
    if wanted.tag is not None:
        posts = posts.where(Post.tags.contains([wanted.tag]))
    if wanted.category is not None:
        posts = posts.where(Post.category == wanted.category)
    if wanted.author_id is not None:
        posts = posts.where(Post.author_id == wanted.author_id)
    return await db.page(posts, paging)


@module.handle(Routes.LIST_DRAFTS)
async def drafts(paging: Paging, user: User, db: Db) -> Out[Page[PostOut]]:
    """One's own unpublished posts, or everybody's for moderators, the last changed first."""
    posts = select(Post).where(Post.status != Status.PUBLISHED).order_by(Post.updated_at.desc())
    if not user.has(Permissions.POST_MODERATE):
        posts = posts.where(Post.author_id == user.id)
    return await db.page(posts, paging)


@module.handle(Routes.READ_POST, resource=readable)
async def read(post: Post) -> Out[PostOut]:
    """One post."""
    return post


@module.handle(Routes.CREATE_POST, status=201)
async def create(new: PostIn, user: User, db: Db) -> Out[PostOut]:
    """A new draft."""
    post = await db.add(Post(**new.model_dump(), author_id=user.id))
    await db.emit(PostCreated.model_validate(post))
    return post


@module.handle(Routes.UPDATE_POST, resource=load)
async def update(post: Post, changed: PostIn, db: Db) -> Out[PostOut]:
    """Replace what the author wrote; the status stays."""
    post.assign(changed)
    await db.emit(PostUpdated.model_validate(post))
    return post


@module.handle(Routes.DELETE_POST, resource=load)
async def delete(post: Post, db: Db) -> None:
    """Delete a post with its comments."""
    await db.delete(post)
    await db.emit(PostDeleted.model_validate(post))


@module.handle(Routes.PUBLISH_POST, resource=load)
async def publish(post: Post, db: Db) -> Out[PostOut]:
    """Show a draft to everybody."""
    _move(post, Status.DRAFT, Status.PUBLISHED)
    post.published_at = datetime.now(UTC)
    await db.emit(PostPublished.model_validate(post))
    return post


@module.handle(Routes.ARCHIVE_POST, resource=load)
async def archive(post: Post, db: Db) -> Out[PostOut]:
    """Take a published post out of sight."""
    _move(post, Status.PUBLISHED, Status.ARCHIVED)
    await db.emit(PostUpdated.model_validate(post))
    return post


def _move(post: Post, before: Status, after: Status) -> None:
    if post.status != before:
        raise Conflict(
            f"Only a {before} post can become {after}; this one is {post.status}.", code="wrong_status"
        )
    post.status = after
