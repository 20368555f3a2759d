"""The testing kit: a module with its real database, policy and server, for tests without mocks.

    async with ModuleHarness(Path(__file__).parents[1]) as blog:
        answer = await blog.client(roles=["author"]).post("/api/v1/blog/posts", json={"title": "Hello"})
        assert answer.status == 201

The pytest plugin (`moorage.testing.plugin`) is registered by installing `moorage`; it needs `moorage[embedded]`.
"""

from moorage.cli.checking import check
from moorage.testing.client import Answer, Client
from moorage.testing.databases import SchemaDatabase, schema_differences
from moorage.testing.harness import ModuleHarness
from moorage.testing.policy_stream import PolicyStream

__all__ = [
    "Answer",
    "Client",
    "ModuleHarness",
    "PolicyStream",
    "SchemaDatabase",
    "check",
    "schema_differences",
]
