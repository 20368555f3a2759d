"""Comments on posts."""

from typing import Any

import pytest

from moorage.testing import Client, ModuleHarness

pytestmark = pytest.mark.postgres
POSTS = "/api/v1/blog/posts"


async def test_whoever_is_logged_in_may_comment_and_everybody_reads_it(
    blog: ModuleHarness, reader: Client, published: dict[str, Any]
) -> None:
    path = f"{POSTS}/{published['id']}/comments"
    user = blog.client(roles=["user"])
    made = await user.post(path, json={"content": "Nice"})
    assert made.status == 201
    assert (made.body["author_id"], made.body["post_id"]) == (str(user.user_id), published["id"])
    await user.post(path, json={"content": "Really"})
    assert [comment["content"] for comment in (await reader.get(path)).body["items"]] == ["Nice", "Really"]
    assert (await reader.post(path, json={"content": "Spam"})).status == 401


async def test_a_draft_has_no_comments_for_those_who_cannot_see_it(
    author: Client, other: Client, draft: dict[str, Any]
) -> None:
    path = f"{POSTS}/{draft['id']}/comments"
    assert (await other.get(path)).status == 404
    assert (await other.post(path, json={"content": "Early"})).status == 404
    assert (await author.post(path, json={"content": "Note to self"})).status == 201


async def test_a_comment_is_taken_back_by_its_author_or_a_moderator(
    author: Client, other: Client, editor: Client, published: dict[str, Any]
) -> None:
    """Not by the author of the post."""
    path = f"{POSTS}/{published['id']}/comments"
    comments = [(await other.post(path, json={"content": "x"})).body["id"] for _ in range(2)]
    assert (await author.delete(f"{path}/{comments[0]}")).status == 403
    assert (await other.delete(f"{path}/{comments[0]}")).status == 204
    assert (await editor.delete(f"{path}/{comments[1]}")).status == 204
    assert (await other.get(path)).body["total"] == 0


async def test_a_comment_is_found_below_its_own_post_alone(
    author: Client, other: Client, draft: dict[str, Any]
) -> None:
    comment = (await author.post(f"{POSTS}/{draft['id']}/comments", json={"content": "x"})).body
    second = (await author.post(POSTS, json={"title": "Other"})).body
    answer = await author.delete(f"{POSTS}/{second['id']}/comments/{comment['id']}")
    assert answer.code == "comment_not_found"


@pytest.mark.parametrize("comment", [{}, {"content": ""}, {"content": " "}, {"content": "x" * 5001}])
async def test_a_comment_says_something(
    author: Client, published: dict[str, Any], comment: dict[str, Any]
) -> None:
    assert (await author.post(f"{POSTS}/{published['id']}/comments", json=comment)).status == 422
