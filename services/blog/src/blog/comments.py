"""Comments on posts."""

from uuid import UUID

from sqlalchemy import select

from blog.app import module
from blog.generated import Routes
from blog.models import CommentIn, CommentOut
from blog.posts import readable
from blog.tables import Comment, Post
from moorage import Db, NotFound, Out, Page, Paging, User


async def load(id: UUID, comment_id: UUID, db: Db) -> Comment:
    """The comment of the path, which must be one on the post of the path."""
    comment = await db.get(Comment, comment_id)
    return comment if comment and comment.post_id == id else NotFound.throw("comment", comment_id)


@module.handle(Routes.LIST_COMMENTS, resource=readable)
async def index(post: Post, paging: Paging, db: Db) -> Out[Page[CommentOut]]:
    """The comments on a post, the oldest first."""
    comments = select(Comment).where(Comment.post_id == post.id).order_by(Comment.created_at)
    return await db.page(comments, paging)


@module.handle(Routes.CREATE_COMMENT, resource=readable, status=201)
async def create(post: Post, new: CommentIn, user: User, db: Db) -> Out[CommentOut]:
    """Say something about a post that one can read."""
    return await db.add(Comment(post_id=post.id, author_id=user.id, content=new.content))


@module.handle(Routes.DELETE_COMMENT, resource=load)
async def delete(comment: Comment, db: Db) -> None:
    """Take a comment back."""
    await db.delete(comment)
