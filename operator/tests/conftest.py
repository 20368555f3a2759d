"""A module with Routes and Permissions, and a way to plan it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from moorage_crds import manifests
from moorage_crds.v1alpha1 import Module, Permission, Route
from moorage_operator.plan.module import ModulePlan, plan_module
from moorage_operator.plan.settings import PlatformSettings, parse_settings
from moorage_operator.plan.world import DatabaseAccess, World

SETTINGS = """
edge: {kind: gateway, gateway: {name: edge, namespace: infra}, publicUrl: "https://example.test:8443"}
allow: {default: {hosts: ["*.example.test"]}}
"""
ROUTE = """
module: blog
prefix: /api/v1/blog
rules:
- {name: list, methods: [GET], path: /posts, auth: none}
- {name: create, methods: [POST], path: /posts, permission: blog.post.create}
- {name: read, methods: [GET], path: "/posts/{id}"}
"""


@dataclass
class Make:
    """Resources as the API server would give them, and their plan."""

    settings: PlatformSettings = field(default_factory=lambda: parse_settings(SETTINGS))
    access: DatabaseAccess = field(
        default_factory=lambda: DatabaseAccess("postgresql://app:s3cret@db.test/moorage")
    )

    def module(
        self, name: str = "blog", namespace: str = "default", *, uid: str = "u-1", **spec: Any
    ) -> Module:
        content = {"version": "1.0.0", "image": "acme/blog:1.0.0", "app": "blog:module", **spec}
        content = {key: value for key, value in content.items() if value is not None}
        found = self._parse("Module", {"name": name, "namespace": namespace, "uid": uid}, content)
        assert isinstance(found, Module)
        return found

    def route(
        self, name: str = "blog", namespace: str = "default", *, created: str | None = None, **spec: Any
    ) -> Route:
        metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
        found = self._parse("Route", metadata, {**yaml.safe_load(ROUTE), **spec})
        assert isinstance(found, Route)
        return found

    def permission(
        self, name: str = "blog.post.create", namespace: str = "default", **spec: Any
    ) -> Permission:
        found = self._parse(
            "Permission", {"name": name, "namespace": namespace}, {"roles": ["author"], **spec}
        )
        assert isinstance(found, Permission)
        return found

    def plan(
        self,
        module: Module | None = None,
        routes: Sequence[Route] | None = None,
        permissions: Sequence[Permission] | None = None,
        world: World | None = None,
        settings: PlatformSettings | None = None,
    ) -> ModulePlan:
        return plan_module(
            module or self.module(),
            [self.route()] if routes is None else routes,
            [self.permission()] if permissions is None else permissions,
            world or World(),
            settings or self.settings,
        )

    @staticmethod
    def _parse(kind: str, metadata: dict[str, Any], spec: dict[str, Any]) -> Any:
        metadata = {key: value for key, value in metadata.items() if value is not None}
        content = {"apiVersion": "moorage.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
        found, problems = manifests.parse(content)
        assert not problems, [str(problem) for problem in problems]
        return found


@pytest.fixture
def make() -> Make:
    """See `Make`."""
    return Make()
