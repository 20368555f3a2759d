"""pytest plugin: the fixtures `cluster` and `namespace`, and what a failed test shows of them.

The cluster is started before the first test, so that no test's time limit pays for it. Where none
can be had, tests that need one are skipped and the last lines of the run say so; with `CI=true`
that is an error instead: there, a cluster is never left out.
"""

from collections.abc import Generator, Iterator

import pytest

from testcluster.handle import Cluster
from testcluster.switches import switched_on

_MAX_DIAGNOSTICS = 60_000
"""Characters shown of one namespace; the end, where the newest lines are."""


class Clusters:
    """The one cluster of a test session, or why there is none."""

    def __init__(self) -> None:
        self.cluster: Cluster | None = None
        self.left_out: str | None = None
        """Why no cluster can be had on this machine."""
        self.broken: str | None = None
        """Why the cluster that should be had could not be started."""
        self.tests = 0
        """How many of the selected tests need it."""
        self._tried = False

    def prepare(self) -> None:
        """Start or join the cluster, once; what goes wrong is kept for the tests that ask for it."""
        if self._tried:
            return
        self._tried = True
        # Imported late: a run without cluster tests does not need these modules.
        from testcluster.cli import EXPECTED
        from testcluster.providers import UnavailableError, select

        try:
            self._provider = select()
        except UnavailableError as error:
            self.left_out = str(error)
            return
        try:
            self.cluster = self._provider.up(keep=switched_on("MOORAGE_TEST_KEEP_CLUSTER"))
        except EXPECTED as error:
            self.broken = f"the {self._provider.name} cluster could not be started: {error}"

    def get(self) -> Cluster:
        """Return the cluster; skips or fails the asking test where there is none."""
        self.prepare()
        if self.left_out is not None and switched_on("CI"):
            pytest.fail(f"CI=true, and {self.left_out}", pytrace=False)
        if self.left_out is not None:
            pytest.skip(self.left_out)
        if self.broken is not None:
            pytest.fail(self.broken, pytrace=False)
        assert self.cluster is not None
        return self.cluster

    def leave(self) -> None:
        """Part from the cluster: it ends with its last user, unless it is kept."""
        if self.cluster is not None:
            self._provider.leave()
            self.cluster = None


_CLUSTERS = pytest.StashKey[Clusters]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the session's place for a cluster; nothing is started yet."""
    config.stash[_CLUSTERS] = Clusters()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Start the cluster before the first test, if a selected one needs it."""
    clusters = session.config.stash[_CLUSTERS]
    clusters.tests = sum("cluster" in getattr(item, "fixturenames", ()) for item in session.items)
    if clusters.tests and not session.config.option.collectonly and not session.testsfailed:
        clusters.prepare()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Part from the cluster, after the last fixture was torn down."""
    session.config.stash[_CLUSTERS].leave()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show a failed test's namespaces: objects, events, and every container's log."""
    report = yield
    cluster = item.config.stash[_CLUSTERS].cluster
    if report.failed and cluster is not None and "cluster" in getattr(item, "fixturenames", ()):
        for namespace in sorted(cluster.watched):
            text = cluster.diagnostics(namespace)
            report.sections.append((f"Kubernetes namespace {namespace}", text[-_MAX_DIAGNOSTICS:]))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say at the end what was left out, so that a green run is not taken for more than it is."""
    clusters = config.stash[_CLUSTERS]
    if clusters.tests and clusters.left_out is not None:
        terminalreporter.section("left out", yellow=True, bold=True)
        terminalreporter.line(
            f"{clusters.tests} tests that need a Kubernetes cluster did not run: {clusters.left_out}"
        )


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """A running Kubernetes cluster, shared by the whole session: keep to namespaces of your own."""
    return request.config.stash[_CLUSTERS].get()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """The name of a fresh namespace, deleted after the test without waiting for it."""
    name = cluster.new_namespace()
    yield name
    cluster.watched.discard(name)
    cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
