"""What other modules are told of posts."""

from typing import Any
from uuid import UUID

import pytest

from blog.events import PostCreated, PostDeleted, PostPublished, PostUpdated
from moorage.testing import Client, ModuleHarness

pytestmark = pytest.mark.postgres
API = "/api/v1/blog"


async def test_each_step_of_a_posts_life_is_told(
    blog: ModuleHarness, author: Client, published: dict[str, Any]
) -> None:
    post = f"{API}/posts/{published['id']}"
    await author.put(post, json={"title": "Hello again", "content": ""})
    await author.post(f"{post}/archive")
    await author.delete(post)

    (created,) = blog.emitted(PostCreated)
    assert (created.id, created.author_id) == (UUID(published["id"]), author.user_id)
    assert (created.title, created.status) == ("Hello", "draft")
    (told,) = blog.emitted(PostPublished)
    assert (told.status, told.published_at.isoformat()[:10]) == ("published", published["published_at"][:10])
    assert [(one.title, one.status) for one in blog.emitted(PostUpdated)] == [
        ("Hello again", "published"),
        ("Hello again", "archived"),
    ]
    assert [one.status for one in blog.emitted(PostDeleted)] == ["archived"]


async def test_what_is_refused_is_not_told(
    blog: ModuleHarness, author: Client, other: Client, draft: dict[str, Any]
) -> None:
    assert (await other.post(f"{API}/posts/{draft['id']}/publish")).status == 403
    assert (await author.post(f"{API}/posts/{draft['id']}/archive")).status == 409
    assert blog.emitted(PostPublished) == []
    assert blog.emitted(PostUpdated) == []
