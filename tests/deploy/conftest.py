"""Fixtures around the chart: Helm, and its output as Python objects."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from testcluster import build
from testcluster.handle import Cluster

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "charts" / "moorage"
KUBERNETES = "1.34.0"
"""What Helm renders for; one that was built from its Go module would take an old default."""

Objects = list[dict[str, Any]]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the cluster tests of this folder before those of others.

    They install releases that serve one namespace; the end-to-end tests keep one that serves all namespaces until the
    session ends, and two operators would fight over the same Modules.
    """
    here = Path(__file__).parent
    items.sort(key=lambda item: not (here in item.path.parents and item.get_closest_marker("cluster")))


def tool(name: str) -> str:
    """Return the path of a tool built from its pinned Go module, or of the PATH's own; skip where neither is."""
    try:
        return str(build.ensure(name)[name])
    except build.BuildError as error:
        if found := shutil.which(name):
            return found
        if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
            raise
        pytest.skip(f"{name} is neither on the PATH nor can it be built: {error}")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def run_helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs helm with arguments and returns what it said."""
    program = tool("helm")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def run_kubectl() -> Callable[..., str]:
    """Runs a kubectl verb that needs no cluster and returns its output."""
    program = tool("kubectl")

    def run(*arguments: str) -> str:
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def try_template(
    run_helm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Renders the chart with a mapping of values and values files; may fail."""

    def render(
        values: dict[str, Any] | None = None,
        *files: Path,
        release: str = "moorage",
        namespace: str = "moorage-system",
    ) -> subprocess.CompletedProcess[str]:
        mine = tmp_path / "values.yaml"
        mine.write_text(yaml.safe_dump(values or {}))
        chosen = [argument for file in (*files, mine) for argument in ("--values", str(file))]
        place = ("--namespace", namespace, "--kube-version", KUBERNETES)
        return run_helm("template", release, str(CHART), *place, *chosen)

    return render


@pytest.fixture
def template(try_template: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., Objects]:
    """Renders the chart and returns its objects."""

    def render(*arguments: Any, **keywords: Any) -> Objects:
        done = try_template(*arguments, **keywords)
        assert done.returncode == 0, done.stderr
        return [item for item in yaml.safe_load_all(done.stdout) if item]

    return render


@pytest.fixture(scope="session")
def pick() -> Callable[..., Objects]:
    """Returns the objects of a kind, and of a name if one is given."""

    def choose(objects: Iterable[dict[str, Any]], kind: str, name: str | None = None) -> Objects:
        return [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]

    return choose


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> dict[str, str]:
    """The three images by name, built as docs/images.md says and at hand for pods."""
    service = ROOT / "images/service.Containerfile"
    built = {
        name: cluster.build_image(
            ROOT, service, f"moorage/{name}:deploy-test", {"PACKAGE": f"services/{name}"}
        )
        for name in ("blog", "gateway")
    }
    built["operator"] = cluster.build_image(
        ROOT, ROOT / "images/operator.Containerfile", "moorage/operator:deploy-test"
    )
    return {name: cluster.load_image(image) for name, image in built.items()}
