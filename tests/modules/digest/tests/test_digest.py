"""The listening module by itself: events are given to it as if they had come from the bus."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from moorage.testing import ModuleHarness, check

FOLDER = Path(__file__).parents[1]
pytestmark = pytest.mark.postgres


@pytest.fixture
async def digest(moorage_postgres: str) -> AsyncIterator[ModuleHarness]:
    async with ModuleHarness(FOLDER, server_dsn=moorage_postgres) as harness:
        yield harness


async def headlines(digest: ModuleHarness) -> list[str]:
    answer = await digest.anonymous().get("/api/v1/digest/headlines")
    return [one["title"] for one in answer.body["items"]]


def test_code_and_manifests_agree() -> None:
    assert check(FOLDER) == []


async def test_headlines_follow_the_posts(digest: ModuleHarness) -> None:
    from digest import PostDeleted, PostPublished, PostUpdated

    first, second = uuid4(), uuid4()
    await digest.deliver(PostPublished(id=first, title="One", status="published"))
    await digest.deliver(PostPublished(id=second, title="Two", status="published"))
    await digest.deliver(PostUpdated(id=first, title="First", status="published"))
    assert await headlines(digest) == ["First", "Two"]
    await digest.deliver(PostUpdated(id=first, title="First", status="archived"))
    await digest.deliver(PostDeleted(id=second, title="Two", status="published"))
    await digest.deliver(PostDeleted(id=uuid4(), title="never seen", status="draft"))
    assert await headlines(digest) == []
