"""A small module for each test: handlers written in the test, served with a policy compiled from rules."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from moorage import Module
from moorage.testing import ModuleHarness

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
            harness = ModuleHarness(tmp_path, module=module, environ=environ)
            return await stack.enter_async_context(harness)

        yield start


def _resource(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "moorage.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
