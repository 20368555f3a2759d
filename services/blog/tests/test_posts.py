"""Posts: who may see them, who may change them, and in which order they move."""

from typing import Any
from uuid import uuid4

import pytest

from moorage.testing import Client, ModuleHarness

pytestmark = pytest.mark.postgres
POSTS = "/api/v1/blog/posts"


async def test_a_new_post_is_its_authors_draft(author: Client, draft: dict[str, Any]) -> None:
    assert draft["author_id"] == str(author.user_id)
    assert (draft["status"], draft["published_at"]) == ("draft", None)
    assert (draft["title"], draft["content"], draft["tags"]) == ("Hello", "First post", ["news", "python"])
    assert draft["created_at"] == draft["updated_at"]


async def test_a_draft_exists_for_its_author_and_for_moderators_alone(
    author: Client, other: Client, editor: Client, reader: Client, draft: dict[str, Any]
) -> None:
    path = f"{POSTS}/{draft['id']}"
    statuses = [(await client.get(path)).status for client in (author, editor, other, reader)]
    assert statuses == [200, 200, 404, 404]


async def test_a_published_post_is_for_everybody(reader: Client, published: dict[str, Any]) -> None:
    assert published["status"] == "published"
    assert published["published_at"] is not None
    assert (await reader.get(f"{POSTS}/{published['id']}")).body == published


@pytest.mark.parametrize(
    ("method", "suffix"), [("PUT", ""), ("DELETE", ""), ("POST", "/publish"), ("POST", "/archive")]
)
async def test_only_its_author_and_moderators_may_touch_a_post(
    blog: ModuleHarness, other: Client, draft: dict[str, Any], method: str, suffix: str
) -> None:
    """The permission alone is not enough: its condition asks whose the post is."""
    path = f"{POSTS}/{draft['id']}{suffix}"
    refused = await other.request(method, path, json={"title": "Mine"})
    assert (refused.status, refused.code) == (403, "forbidden")
    assert (await blog.client(roles=["user"]).request(method, path, json={"title": "Mine"})).status == 403
    assert (await blog.anonymous().request(method, path, json={"title": "Mine"})).status == 401


async def test_moderators_may_do_what_the_author_may(editor: Client, draft: dict[str, Any]) -> None:
    path = f"{POSTS}/{draft['id']}"
    assert (await editor.put(path, json={"title": "Better"})).body["author_id"] == draft["author_id"]
    assert (await editor.post(f"{path}/publish")).status == 200
    assert (await editor.delete(path)).status == 204


async def test_an_update_replaces_what_the_author_wrote(author: Client, draft: dict[str, Any]) -> None:
    answer = await author.put(f"{POSTS}/{draft['id']}", json={"title": "Changed"})
    assert answer.status == 200
    kept = {name: draft[name] for name in ("id", "author_id", "status", "created_at")}
    assert {name: answer.body[name] for name in kept} == kept
    assert (answer.body["title"], answer.body["content"], answer.body["tags"]) == ("Changed", "", [])
    assert answer.body["updated_at"] > draft["updated_at"]


async def test_a_post_goes_from_draft_to_published_to_archived(author: Client, draft: dict[str, Any]) -> None:
    path = f"{POSTS}/{draft['id']}"
    assert (await author.post(f"{path}/archive")).code == "wrong_status"
    assert (await author.post(f"{path}/publish")).body["status"] == "published"
    again = await author.post(f"{path}/publish")
    assert (again.status, again.code) == (409, "wrong_status")
    archived = await author.post(f"{path}/archive")
    assert archived.body["status"] == "archived"
    assert (await author.post(f"{path}/publish")).status == 409


async def test_an_archived_post_is_out_of_sight(
    author: Client, reader: Client, published: dict[str, Any]
) -> None:
    await author.post(f"{POSTS}/{published['id']}/archive")
    assert (await reader.get(f"{POSTS}/{published['id']}")).status == 404
    assert (await reader.get(POSTS)).body["total"] == 0


async def test_a_deleted_post_is_gone_with_its_comments(author: Client, published: dict[str, Any]) -> None:
    path = f"{POSTS}/{published['id']}"
    await author.post(f"{path}/comments", json={"content": "Nice"})
    assert (await author.delete(path)).status == 204
    assert (await author.get(path)).code == "post_not_found"
    assert (await author.delete(path)).status == 404


async def test_the_list_has_published_posts_newest_first(author: Client, reader: Client) -> None:
    titles = []
    for number in range(3):
        post = (await author.post(POSTS, json={"title": f"Post {number}"})).body
        titles.append(post["title"])
        await author.post(f"{POSTS}/{post['id']}/publish")
    await author.post(POSTS, json={"title": "A draft"})
    page = (await reader.get(POSTS)).body
    assert [post["title"] for post in page["items"]] == titles[::-1]
    assert (page["total"], page["limit"], page["offset"]) == (3, 20, 0)
    second = (await reader.get(POSTS, params={"limit": "2", "offset": "2"})).body
    assert [post["title"] for post in second["items"]] == titles[:1]


async def test_the_list_can_be_narrowed(author: Client, reader: Client, published: dict[str, Any]) -> None:
    for query, total in {
        "tag=news": 1,
        "tag=other": 0,
        "category=none": 0,
        f"author_id={author.user_id}": 1,
        f"author_id={uuid4()}": 0,
    }.items():
        assert (await reader.get(f"{POSTS}?{query}")).body["total"] == total, query
    assert (await reader.get(f"{POSTS}?tag=No Tag")).status == 422


async def test_drafts_are_listed_for_their_author_and_all_for_moderators(
    blog: ModuleHarness, author: Client, other: Client, editor: Client, draft: dict[str, Any]
) -> None:
    drafts = "/api/v1/blog/drafts"
    totals = [(await client.get(drafts)).body["total"] for client in (author, other, editor)]
    assert totals == [1, 0, 1]
    assert (await blog.client(roles=["user"]).get(drafts)).status == 403


@pytest.mark.parametrize(
    ("post", "field"),
    [
        ({}, "title"),
        ({"title": ""}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"title": "x", "tags": ["No Slug"]}, "tags.0"),
        ({"title": "x", "status": "published"}, "status"),
        ({"title": "x", "author_id": "6f0b8a0e-0000-4000-8000-000000000000"}, "author_id"),
    ],
)
async def test_a_bad_post_is_refused_with_its_field(author: Client, post: dict[str, Any], field: str) -> None:
    answer = await author.post(POSTS, json=post)
    assert answer.status == 422
    assert [problem["field"] for problem in answer.body["error"]["details"]["fields"]] == [field]


async def test_who_has_no_permission_writes_nothing(blog: ModuleHarness) -> None:
    assert (await blog.client(roles=["user"]).post(POSTS, json={"title": "x"})).status == 403
    assert (await blog.anonymous().post(POSTS, json={"title": "x"})).status == 401
    assert (await blog.anonymous().get("/api/v1/blog/nothing")).status == 404


async def test_an_id_that_is_none_is_not_found(reader: Client, author: Client) -> None:
    assert (await reader.get(f"{POSTS}/1")).status == 404
    assert (await author.post(f"{POSTS}/{uuid4()}/publish")).code == "post_not_found"
