"""Tags and categories."""

from typing import Any

import pytest

from moorage.testing import Client

pytestmark = pytest.mark.postgres
API = "/api/v1/blog"


async def test_tags_are_those_of_published_posts_with_their_number(
    author: Client, reader: Client, published: dict[str, Any]
) -> None:
    second = (await author.post(f"{API}/posts", json={"title": "x", "tags": ["news"]})).body
    await author.post(f"{API}/posts", json={"title": "A draft", "tags": ["secret"]})
    await author.post(f"{API}/posts/{second['id']}/publish")
    assert (await reader.get(f"{API}/tags")).body == [
        {"name": "news", "posts": 2},
        {"name": "python", "posts": 1},
    ]


async def test_editors_add_categories_and_posts_refer_to_them(
    author: Client, editor: Client, reader: Client
) -> None:
    category = {"slug": "releases", "name": "Releases"}
    assert (await author.post(f"{API}/categories", json=category)).status == 403
    assert (await editor.post(f"{API}/categories", json=category)).status == 201
    again = await editor.post(f"{API}/categories", json=category)
    assert (again.status, again.code) == (409, "already_exists")
    (listed,) = (await reader.get(f"{API}/categories")).body
    assert listed | category == listed
    post = await author.post(f"{API}/posts", json={"title": "1.0", "category": "releases"})
    assert post.body["category"] == "releases"


async def test_a_post_cannot_be_in_a_category_that_is_not_there(author: Client) -> None:
    answer = await author.post(f"{API}/posts", json={"title": "x", "category": "nothing"})
    assert (answer.status, answer.code) == (422, "unknown_reference")
