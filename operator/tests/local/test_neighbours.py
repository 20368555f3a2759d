"""Modules of one machine find each other and prove who they are."""

import json
import stat
import time
from pathlib import Path

import pytest

from moorage.guard.policy import Issuer
from moorage.guard.tokens import ModuleClaims, TokenVerifier
from moorage_operator.local import catalog
from moorage_operator.local.catalog import LocalModule
from moorage_operator.local.neighbours import Neighbours
from moorage_operator.local.policies import Policies
from moorage_operator.local.runner import SETTINGS
from moorage_operator.local.state import State

MODULE = """
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata: {name: %s}
spec: {version: 1.0.0, image: "a/b:1", app: "a:b"}
"""


@pytest.fixture
def state(tmp_path: Path) -> State:
    state = State(tmp_path / "state")
    state.create()
    return state


@pytest.fixture
def modules(tmp_path: Path) -> list[LocalModule]:
    folders = []
    for name in ("blog", "mail"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.yaml").write_text(MODULE % name)
        folders.append(tmp_path / name)
    return list(catalog.read(folders).modules)


def test_the_registry_names_every_module_that_runs(state: State, modules: list[LocalModule]) -> None:
    neighbours = Neighbours(state, Policies(state, SETTINGS))
    neighbours.publish([(modules[0], "http://127.0.0.1:8091"), (modules[1], "http://127.0.0.1:8092")])
    registry = Path(neighbours.environment(modules[0])["CLIENT_REGISTRY"])
    assert json.loads(registry.read_text()) == {
        "default/blog": "http://127.0.0.1:8091",
        "default/mail": "http://127.0.0.1:8092",
    }
    before = registry.stat().st_ino
    neighbours.publish([(modules[0], "http://127.0.0.1:8091"), (modules[1], "http://127.0.0.1:8092")])
    assert registry.stat().st_ino == before, "what did not change is not written"


def test_a_modules_token_is_taken_by_the_guards_of_the_others(
    state: State, modules: list[LocalModule]
) -> None:
    policies = Policies(state, SETTINGS)
    file = Path(Neighbours(state, policies).environment(modules[1])["CLIENT_TOKEN_FILE"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    policies.write(modules[0])
    document = policies.read(modules[0])
    assert document is not None
    issuers: list[Issuer] = list(document.issuers)
    claims = TokenVerifier(issuers).verify(file.read_text(), time.time()).claims
    assert claims == ModuleClaims("default", "mail")


def test_a_token_is_renewed_when_half_of_its_life_is_over(
    state: State, modules: list[LocalModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the wall clock, which goes on while the machine sleeps."""
    neighbours = Neighbours(state, Policies(state, SETTINGS))
    file = Path(neighbours.environment(modules[0])["CLIENT_TOKEN_FILE"])
    first = file.read_text()
    neighbours.renew(modules[:1])
    assert file.read_text() == first
    later = time.time() + 1801
    monkeypatch.setattr(time, "time", lambda: later)
    neighbours.renew(modules[:1])
    assert file.read_text() != first
