"""An installation of the chart, and a namespace for each test."""

import uuid
from collections.abc import Iterator

import pytest
from e2e.database import Database
from e2e.installation import DOMAIN, RESTRICTED, ROOT, Installation

from testcluster.handle import Cluster


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> dict[str, str]:
    """Operator, guard and blog, built as users build them."""
    files = ROOT / "images"
    built = {
        name: cluster.build_image(
            ROOT, files / "service.Containerfile", f"moorage/{name}:e2e", {"PACKAGE": f"services/{name}"}
        )
        for name in ("blog", "gateway")
    }
    built["operator"] = cluster.build_image(ROOT, files / "operator.Containerfile", "moorage/operator:e2e")
    return {name: cluster.load_image(image) for name, image in built.items()}


@pytest.fixture(scope="module")
def installation(
    cluster: Cluster, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """Moorage, installed with Helm; everything but the CRDs goes afterwards.

    For each module of tests anew: it serves the whole cluster, and would work on what other tests' operators serve.
    """
    database = Database(cluster.postgres_local_dsn, cluster.node_address)
    core = cluster.new_namespace("core", RESTRICTED)
    one = Installation(cluster, core, images, database, tmp_path_factory.mktemp("chart") / "values.yaml")
    try:
        one.install()
        yield one
    finally:
        one.uninstall()
        cluster.watched.discard(core)
        cluster.kubectl("delete", "namespace", core, "--wait=false")
        database.drop()


@pytest.fixture
def space(installation: Installation) -> Iterator[str]:
    """A namespace of the test's own."""
    namespace = installation.new_space()
    yield namespace
    installation.drop_space(namespace)


@pytest.fixture
def host() -> str:
    """A host that no other test names."""
    return f"{uuid.uuid4().hex[:8]}.{DOMAIN}"
