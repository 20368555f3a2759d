"""A small module for each test: handlers written in the test, served with a policy compiled from rules."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy.pool import NullPool

from moorage import Module, Table
from moorage.database import platform
from moorage.database.engine import new_engine
from moorage.testing import ModuleHarness, PolicyStream, SchemaDatabase

Serve = Callable[..., Any]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """``await serve(module, rules, permissions={code: condition}, environ={…})``; every role is ``author``."""
    async with AsyncExitStack() as stack:

        async def start(
            module: Module,
            rules: list[dict[str, Any]],
            *,
            permissions: dict[str, str | None] | None = None,
            environ: dict[str, str] | None = None,
            stream: PolicyStream | None = None,
        ) -> ModuleHarness:
            resources = [
                _resource("Module", module.name, {"version": "1.0.0", "image": "x:1", "app": "x:y"}),
                _resource("Route", module.name, {"module": module.name, "rules": rules}),
            ]
            for code, condition in (permissions or {}).items():
                spec = {"roles": ["author"]} | ({"condition": condition} if condition else {})
                resources.append(_resource("Permission", code, spec))
            # JSON is YAML.
            (tmp_path / "all.yaml").write_text("\n---\n".join(json.dumps(item) for item in resources))
            harness = ModuleHarness(tmp_path, module=module, environ=environ, stream=stream)
            return await stack.enter_async_context(harness)

        yield start


@pytest.fixture
def kernel_schema(moorage_database: SchemaDatabase) -> Callable[..., Awaitable[SchemaDatabase]]:
    """``await kernel_schema(Table, …)``: a database with the kernel's own tables and these."""

    async def make(*tables: type[Table]) -> SchemaDatabase:
        engine = new_engine(SecretStr(moorage_database.owner_dsn), connect_args={}, poolclass=NullPool)
        async with engine.connect() as connection:
            await platform.converge(connection)
            for table in tables:
                await connection.run_sync(table.__table__.create)
            await connection.commit()
        await engine.dispose()
        return moorage_database

    return make


def _resource(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "moorage.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
