"""The operator as a process of its own, in single-namespace mode: leadership, orderly and disorderly ends."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.waiting import eventually

from testcluster.handle import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Process:
    """One `moorage operator`."""

    identity: str
    port: int
    log: Path
    running: "subprocess.Popen[bytes]"

    def asks(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def leads(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=2) as response:
                return "moorage_operator_leading 1.0" in response.read().decode()
        except OSError:
            return False

    def end(self, number: int) -> int:
        self.running.send_signal(number)
        return self.running.wait(40)


@dataclass
class Setup:
    """Settings for operators that serve one namespace, and those that were started."""

    cluster: Cluster
    namespace: str
    folder: Path
    processes: list[Process]

    def start(self, identity: str) -> Process:
        port, log = free_port(), self.folder / f"{identity}.log"
        command = [
            sys.executable,
            "-m",
            "moorage.cli",
            "operator",
            "--settings",
            str(self.folder / "settings.yaml"),
        ]
        command += ["--kubeconfig", str(self.cluster.kubeconfig), "--admin-host", "127.0.0.1"]
        command += ["--admin-port", str(port), "--verbose"]
        with log.open("wb") as output:
            running = subprocess.Popen(
                command, stdout=output, stderr=output, env=os.environ | {"POD_NAME": identity}, cwd=ROOT
            )
        process = Process(identity, port, log, running)
        self.processes.append(process)
        return process

    def lease_holder(self) -> str:
        spec = self.cluster.get("-n", self.namespace, "lease", "moorage-operator")["spec"]
        return str(spec.get("holderIdentity", ""))

    def config_maps(self) -> set[str]:
        items = self.cluster.get("-n", self.namespace, "configmaps", "-l", "moorage.dev/module")["items"]
        return {one["metadata"]["name"] for one in items}


@pytest.fixture
def setup(cluster: Cluster, tmp_path: Path) -> Iterator[Setup]:
    for name in ("modules", "routes", "permissions"):
        cluster.kubectl(
            "apply",
            "--server-side",
            "-f",
            str(ROOT / f"crds/generated/moorage.dev_{name}.yaml"),
            "--force-conflicts",
        )
    namespace = cluster.new_namespace("single")
    settings: dict[str, Any] = {
        "installation": namespace,
        "coreNamespace": namespace,
        "namespaces": [namespace],
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    one = Setup(cluster, namespace, tmp_path, [])
    yield one
    for process in one.processes:
        if process.running.poll() is None:
            process.running.kill()
            process.running.wait()
    cluster.watched.discard(namespace)
    # Waited for: an operator of another test, which serves the whole cluster, would look at it once more.
    cluster.kubectl("delete", "namespace", namespace, "--ignore-not-found", timeout=180)


def module(name: str, **spec: Any) -> dict[str, Any]:
    spec = {"version": "1.0.0", "image": "localhost/nothing:1", "imagePullPolicy": "Never", **spec}
    return {"apiVersion": "moorage.dev/v1alpha1", "kind": "Module", "metadata": {"name": name}, "spec": spec}


def test_one_leads_the_other_takes_over(setup: Setup, cluster: Cluster) -> None:
    """After an orderly end at once, after a kill when the lease has run out; what was made stays as it is."""
    first = setup.start("first")
    eventually(first.leads, "the first one leads", 40)
    second = setup.start("second")
    eventually(lambda: second.asks("/ready") == 200, "a standby is ready", 40)
    assert not second.leads()
    cluster.apply(module("one"), namespace=setup.namespace)
    eventually(lambda: len(setup.config_maps()) == 2, "the module's objects are made", 30)
    assert setup.lease_holder() == "first"

    assert first.end(signal.SIGTERM) == 0
    eventually(second.leads, "the second one leads at once", 12)
    cluster.apply(module("two"), namespace=setup.namespace)
    eventually(lambda: len(setup.config_maps()) == 4, "the second one works", 30)

    third = setup.start("third")
    eventually(lambda: third.asks("/ready") == 200, "another standby is ready", 40)
    assert second.end(signal.SIGKILL) == -signal.SIGKILL
    eventually(third.leads, "the third one leads when the lease has run out", 40)
    cluster.kubectl("-n", setup.namespace, "delete", "configmap", "two-policy")
    eventually(lambda: len(setup.config_maps()) == 4, "the third one repairs", 30)
    assert third.end(signal.SIGTERM) == 0
    for process in setup.processes:
        log = process.log.read_text()
        assert "Traceback" not in log, log[-4000:]


def test_only_its_namespace_is_served(setup: Setup, cluster: Cluster) -> None:
    other = cluster.new_namespace("other")
    process = setup.start("only")
    eventually(process.leads, "it leads", 40)
    cluster.apply(module("mine"), namespace=setup.namespace)
    cluster.apply(module("theirs"), namespace=other)
    eventually(lambda: len(setup.config_maps()) == 2, "the module's objects are made", 30)
    assert "status" not in cluster.get("-n", other, "module", "theirs")
    assert process.end(signal.SIGINT) == 0
    cluster.watched.discard(other)
    cluster.kubectl("delete", "namespace", other, "--wait=false")


def test_settings_that_are_wrong_end_the_process_with_the_charts_value(setup: Setup) -> None:
    (setup.folder / "settings.yaml").write_text("edge: {kind: gateway}")
    process = setup.start("wrong")
    assert process.running.wait(30) == 1
    assert "chart value `edge`" in process.log.read_text()


def test_a_lease_that_somebody_else_takes_ends_the_process(setup: Setup, cluster: Cluster) -> None:
    """It ends its work and exits with an error, so that kubelet starts it anew as a standby."""
    process = setup.start("loser")
    eventually(process.leads, "it leads", 40)
    lease = cluster.get("-n", setup.namespace, "lease", "moorage-operator")
    lease["spec"] |= {"holderIdentity": "usurper", "leaseDurationSeconds": 3600}
    patch = yaml.safe_dump({"spec": lease["spec"]})
    cluster.kubectl("-n", setup.namespace, "patch", "lease", "moorage-operator", "--type=merge", "-p", patch)
    assert process.running.wait(40) == 1
    assert setup.lease_holder() == "usurper"


def test_an_ingress_instead_of_the_gateway_api(
    setup: Setup, cluster: Cluster, images: dict[str, str], host: str
) -> None:
    """A plain image behind the sidecar answers through the edge by an Ingress."""
    settings = yaml.safe_load((setup.folder / "settings.yaml").read_text())
    settings |= {
        "edge": {"kind": "ingress", "ingress": {"className": cluster.ingress_class}},
        "allow": {"*": {"hosts": [host]}},
        "images": {"sidecar": images["gateway"]},
    }
    (setup.folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    process = setup.start("edge")
    command = ["python3", "-m", "http.server", "--bind", "127.0.0.1", "8081", "--directory", "/usr/share"]
    rules = [{"name": "all", "methods": ["GET"], "path": "/**", "auth": "none"}]
    route = {
        "apiVersion": "moorage.dev/v1alpha1",
        "kind": "Route",
        "metadata": {"name": "web"},
        "spec": {"module": "web", "hosts": [host], "prefix": "/doc", "rules": rules},
    }
    cluster.apply(module("web", image=images["blog"], command=command), route, namespace=setup.namespace)
    cluster.kubectl(
        "-n", setup.namespace, "wait", "--for=condition=Ready", "module/web", "--timeout=90s", timeout=120
    )
    (ingress,) = cluster.get("-n", setup.namespace, "ingresses")["items"]
    assert ingress["spec"]["rules"][0]["host"] == host

    def status(path: str) -> int:
        request = urllib.request.Request(f"{cluster.edge_url}{path}", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    eventually(lambda: status("/doc/") == 200, "the page through the edge", 30)
    assert process.end(signal.SIGTERM) == 0
