"""Which provider is taken, and what a test run says when none works."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testcluster import cli, docker, paths, providers
from testcluster.providers import Provider, UnavailableError, select
from testcluster.providers.existing import Existing
from testcluster.providers.native import Native

_TESTS = """
def test_needs_a_cluster(cluster):
    raise AssertionError("must not be reached")

def test_needs_none():
    pass
"""


class Fake(Existing):
    """A provider that works, or does not, as it is told."""

    def __init__(self, name: str, reason: str | None) -> None:
        self.name = name
        self._reason = reason

    def unavailable(self) -> str | None:
        return self._reason


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The command line sets a handler; the test run's own comes back afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOORAGE_TEST_CLUSTER_PROVIDER", "MOORAGE_TEST_KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_the_first_that_works_is_taken() -> None:
    candidates = [Fake("a", "it is off"), Fake("b", None), Fake("c", None)]
    assert select(candidates).name == "b"


def test_the_order_is_existing_kind_native() -> None:
    assert [p.name for p in providers.all_providers()] == ["existing", "kind", "native"]


def test_without_any_each_reason_and_the_mend_are_told() -> None:
    with pytest.raises(UnavailableError) as raised:
        select([Fake("a", "it is off"), Fake("b", "it needs root")])
    for part in ("a: it is off", "b: it needs root", "start Docker, or run as root"):
        assert part in str(raised.value)


def test_one_provider_can_be_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_TEST_CLUSTER_PROVIDER", "c")
    candidates: list[Provider] = [Fake("b", None), Fake("c", None)]
    assert select(candidates).name == "c"
    monkeypatch.setenv("MOORAGE_TEST_CLUSTER_PROVIDER", "d")
    with pytest.raises(UnavailableError, match="d is none of b, c"):
        select(candidates)


def test_a_kubeconfig_that_is_no_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Existing().unavailable() == "MOORAGE_TEST_KUBECONFIG is not set"
    monkeypatch.setenv("MOORAGE_TEST_KUBECONFIG", str(tmp_path / "absent"))
    assert Existing().unavailable() == f"MOORAGE_TEST_KUBECONFIG={tmp_path / 'absent'} is no file"
    (tmp_path / "absent").touch()
    assert Existing().unavailable() is None


def test_the_native_cluster_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in str(Native().unavailable())


def test_the_native_cluster_needs_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert Native().unavailable() == "it needs Linux, and this is Darwin"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 29.1.0", None),
        ("echo 'Cannot connect to the Docker daemon' >&2; exit 1", "no Docker daemon answers"),
        # What some clients do without a daemon: complain, print an empty version, and succeed.
        ("echo; echo 'Cannot connect' >&2", "no Docker daemon answers"),
    ],
)
def test_a_docker_client_without_daemon_is_no_docker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, reason: str | None
) -> None:
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = docker.unavailable()
    assert found is None if reason is None else reason in str(found)


def _run_tests(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(_TESTS)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MOORAGE_", "PYTEST_")) and k != "CI"}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "testcluster.plugin",
            "-p",
            "no:cacheprovider",
            "-rA",
            str(folder),
        ],
        cwd=folder,
        env={
            **clean,
            "PYTHONPATH": str(paths.SOURCE),
            "MOORAGE_TEST_CLUSTER_PROVIDER": "existing",
            **environment,
        },
        capture_output=True,
        text=True,
    )


def test_a_run_without_cluster_skips_and_says_so_at_its_end(tmp_path: Path) -> None:
    done = _run_tests(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 skipped" in done.stdout
    assert (
        "1 tests that need a Kubernetes cluster did not run: no Kubernetes cluster can be had" in done.stdout
    )


def test_in_ci_a_cluster_is_never_left_out(tmp_path: Path) -> None:
    done = _run_tests(tmp_path, CI="true")
    assert done.returncode == 1
    assert "1 passed, 1 error" in done.stdout
    assert "CI=true, and no Kubernetes cluster can be had" in done.stdout


def test_a_cluster_that_should_be_there_and_is_not_fails_the_tests(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").touch()
    done = _run_tests(tmp_path, MOORAGE_TEST_KUBECONFIG=str(tmp_path / "kubeconfig"))
    assert done.returncode == 1
    assert "the existing cluster could not be started: set MOORAGE_TEST_EDGE_URL" in done.stdout


def test_a_run_that_needs_no_cluster_asks_for_none(tmp_path: Path) -> None:
    """Selected away, its absence is no news, not even in CI."""
    done = _run_tests(tmp_path, CI="true", PYTEST_ADDOPTS="-k needs_none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out" not in done.stdout


def test_building_where_no_cluster_can_be_is_a_failure_in_ci_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make test` builds before it tests, also where its cluster tests are going to be left out."""
    monkeypatch.setenv("MOORAGE_TEST_CLUSTER_PROVIDER", "existing")
    monkeypatch.delenv("CI", raising=False)
    assert cli.main(["build"]) == 0
    assert "nothing is built: no Kubernetes cluster can be had" in capsys.readouterr().err
    monkeypatch.setenv("CI", "true")
    assert cli.main(["build"]) == 1
    assert "MOORAGE_TEST_KUBECONFIG is not set" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["up", "down", "status", "env", "logs"])
def test_a_command_without_any_provider_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("MOORAGE_TEST_CLUSTER_PROVIDER", "existing")
    assert cli.main([command]) == 1
    assert "existing: MOORAGE_TEST_KUBECONFIG is not set" in capsys.readouterr().err
