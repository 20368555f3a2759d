"""The images, built and run on a real cluster as the chart and the operator run them."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testcluster.handle import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

PROBE = """
import compileall, importlib.util, json, os, pathlib, shutil, sys
site = next(p for p in sys.path if p.endswith("site-packages"))
sources = [p for p in pathlib.Path(site).rglob("*.py") if "moorage" in str(p) or "blog" in str(p)]
def writable(path):
    try:
        pathlib.Path(path, "x").write_text("x")
    except OSError:
        return False
    return True
print(json.dumps({
    "user": os.getuid(),
    "prefix": sys.prefix,
    "installers": [n for n in ("pip", "ensurepip", "setuptools", "hatchling") if importlib.util.find_spec(n)],
    "programs": [n for n in ("pip", "pip3", "uv", "gcc", "cc", "make", "git", "curl") if shutil.which(n)],
    "uncompiled": [str(p) for p in sources if not pathlib.Path(importlib.util.cache_from_source(str(p))).exists()],
    "sources": len(sources),
    "writable": [p for p in ("/", "/opt/moorage", site, "/tmp") if writable(p)],
}))
"""


def pod(image: str, command: list[str], name: str, **container: Any) -> dict[str, Any]:
    """A pod under the restricted standard with a read-only root file system."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    one = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "securityContext": security,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        **container,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [one],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


def wait(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.3)


def run_to_end(cluster: Cluster, namespace: str, description: dict[str, Any]) -> str:
    """Run a pod and return what it printed; fails if it does."""
    name = description["metadata"]["name"]
    cluster.apply(description, namespace=namespace)

    def phase() -> str:
        return str(cluster.get("-n", namespace, "pod", name)["status"].get("phase"))

    wait(lambda: phase() in ("Succeeded", "Failed"), f"pod {name}")
    output = cluster.kubectl("-n", namespace, "logs", name)
    assert phase() == "Succeeded", output
    return output


@pytest.fixture
def restricted(cluster: Cluster) -> Iterator[str]:
    """A namespace that enforces the restricted pod security standard."""
    name = cluster.new_namespace("images", {"pod-security.kubernetes.io/enforce": "restricted"})
    yield name
    cluster.watched.discard(name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("name", ["blog", "gateway", "operator"])
def test_an_image_holds_what_runs_and_nothing_that_installs(
    cluster: Cluster, restricted: str, images: dict[str, str], name: str
) -> None:
    facts = json.loads(run_to_end(cluster, restricted, pod(images[name], ["python3", "-c", PROBE], name)))
    assert facts["user"] == 65532
    assert facts["prefix"] == "/opt/moorage"
    assert facts["installers"] == []
    assert facts["programs"] == []
    assert facts["sources"] > 20
    assert facts["uncompiled"] == []
    assert facts["writable"] == ["/tmp"]


@pytest.mark.parametrize(
    ("name", "verb"), [("blog", "serve"), ("gateway", "sidecar"), ("operator", "operator")]
)
def test_the_command_of_an_image_runs_by_its_bare_name(
    cluster: Cluster, restricted: str, images: dict[str, str], name: str, verb: str
) -> None:
    """The operator and the chart set `command: [moorage]`: the image's PATH has to find it."""
    output = run_to_end(cluster, restricted, pod(images[name], ["moorage", verb, "--help"], name))
    assert f"moorage {verb}" in output


def test_a_changed_file_restarts_the_process_of_a_development_image(
    cluster: Cluster, restricted: str, root: Path, tmp_path: Path, images: dict[str, str]
) -> None:
    """What Tilt does: it copies a file to /tmp/live of a running pod, as that pod's user."""
    # The stage is not the file's last one; what follows it is cut off, as `--target` would.
    text = (root / "images/service.Containerfile").read_text()
    (tmp_path / "Containerfile").write_text(re.sub(r"\nFROM runtime\n\Z", "\n", text))
    built = cluster.build_image(
        root, tmp_path / "Containerfile", "moorage/gateway:live-test", {"PACKAGE": "services/gateway"}
    )
    description = pod(cluster.load_image(built), ["moorage", "sidecar", "--help"], "live")
    cluster.apply(description, namespace=restricted)

    def log() -> str:
        return cluster.kubectl("-n", restricted, "logs", "live", check=False)

    wait(lambda: "moorage sidecar" in log(), "the first start")
    first = log().count("Usage:")
    new = "import sys; print('edited', file=sys.stderr, flush=True)\n"
    target = "/tmp/live/moorage_gateway/__init__.py"
    cluster.kubectl("-n", restricted, "exec", "-i", "live", "--", "tee", target, input=new)
    wait(lambda: "edited" in log(), "the start after the edit")
    assert log().count("Usage:") > first
