"""The blog's plan in namespace `default`: the worked example that the contract is written for."""

from pathlib import Path

import pytest

from moorage_crds import manifests
from moorage_crds.v1alpha1 import Module
from moorage_operator.plan.module import ModulePlan, plan_module
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import DatabaseAccess, World

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def blog() -> ModulePlan:
    found = manifests.load(ROOT / "services" / "blog")
    assert found.problems == ()
    world = World(database=DatabaseAccess("postgresql://app:pw@db/app", "postgresql://app:pw@direct/app"))
    return plan_module(found.modules[0], found.routes, found.permissions, world, PlatformSettings())


@pytest.fixture(scope="session")
def plain() -> ModulePlan:
    """A module whose image never saw Moorage: behind the sidecar."""
    spec = {"version": "1.0.0", "image": "nginx:1", "command": ["serve"], "port": 3000}
    module = Module.model_validate(
        {"metadata": {"name": "plain", "namespace": "team", "uid": "u"}, "spec": spec}
    )
    return plan_module(module, (), (), World(), PlatformSettings())
