"""The blog, served as on a cluster: its own manifests, database and policy."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from moorage.testing import Client, ModuleHarness

API = "/api/v1/blog"


@pytest.fixture
async def blog(moorage_postgres: str) -> AsyncIterator[ModuleHarness]:
    """The running module, with a database of its own for each test."""
    async with ModuleHarness(Path(__file__).parents[1], server_dsn=moorage_postgres) as harness:
        yield harness


@pytest.fixture
def author(blog: ModuleHarness) -> Client:
    return blog.client(roles=["author"])


@pytest.fixture
def other(blog: ModuleHarness) -> Client:
    """Another author."""
    return blog.client(roles=["author"])


@pytest.fixture
def editor(blog: ModuleHarness) -> Client:
    """Somebody who holds blog.post.moderate."""
    return blog.client(roles=["editor"])


@pytest.fixture
def reader(blog: ModuleHarness) -> Client:
    """Somebody who is not logged in."""
    return blog.anonymous()


@pytest.fixture
async def draft(author: Client) -> dict[str, Any]:
    """A draft of `author`."""
    post = {"title": "Hello", "content": "First post", "tags": ["news", "python"]}
    answer = await author.post(f"{API}/posts", json=post)
    assert answer.status == 201
    return dict(answer.body)


@pytest.fixture
async def published(author: Client, draft: dict[str, Any]) -> dict[str, Any]:
    """The draft, published."""
    answer = await author.post(f"{API}/posts/{draft['id']}/publish")
    assert answer.status == 200
    return dict(answer.body)
