"""Tags, which come and go with posts, and categories, which editors add."""

from sqlalchemy import func, select

from blog.app import module
from blog.generated import Routes
from blog.models import CategoryIn, CategoryOut, TagOut
from blog.tables import Category, Post, Status
from moorage import Db, Out


@module.handle(Routes.LIST_TAGS)
async def tags(db: Db) -> list[TagOut]:
    """The hundred tags that most published posts bear."""
    tag, posts = func.unnest(Post.tags).label("tag"), func.count().label("posts")
    query = (
        select(tag, posts).where(Post.status == Status.PUBLISHED).group_by(tag).order_by(posts.desc(), tag)
    )
    return [TagOut(name=row.tag, posts=row.posts) for row in await db.execute(query.limit(100))]


@module.handle(Routes.LIST_CATEGORIES)
async def categories(db: Db) -> Out[list[CategoryOut]]:
    """All categories by name."""
    return await db.scalars(select(Category).order_by(Category.name))


@module.handle(Routes.CREATE_CATEGORY, status=201)
async def create_category(new: CategoryIn, db: Db) -> Out[CategoryOut]:
    """A new category; its slug is taken once."""
    return await db.add(Category(**new.model_dump()))
