"""The module as a whole: its code, manifests, names and migrations agree."""

from pathlib import Path

import pytest

import blog
from blog.tables import Post
from moorage.testing import ModuleHarness, check, schema_differences

FOLDER = Path(__file__).parents[1]


def test_code_and_manifests_agree() -> None:
    assert check(FOLDER) == []


@pytest.mark.postgres
async def test_migrations_make_the_tables_that_the_code_declares(blog: ModuleHarness) -> None:
    assert blog.database is not None
    assert await schema_differences(blog.database, Post.metadata) == []


@pytest.mark.postgres
async def test_every_rule_is_bound(blog: ModuleHarness) -> None:
    status = (await blog.admin.get("/policy")).body
    assert (status["unbound_rules"], status["unused_handlers"], status["missing_loaders"]) == ([], [], [])
    assert status["error"] is None


def test_the_module_object_is_what_the_manifest_names() -> None:
    assert blog.module.name == "blog"


@pytest.mark.postgres
async def test_its_api_is_described_for_everybody(blog: ModuleHarness) -> None:
    answer = await blog.anonymous().get("/api/v1/blog/openapi.json")
    assert answer.status == 200
    assert answer.body["openapi"].startswith("3.1")
    assert set(answer.body["paths"]["/api/v1/blog/posts"]) == {"get", "post"}
    assert (await blog.anonymous().get("/api/v1/blog/docs")).status == 200
