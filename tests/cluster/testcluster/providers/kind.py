"""A kind cluster, through pytest-kind, where a Docker engine answers."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from testcluster import build, docker, paths
from testcluster.handle import Cluster
from testcluster.native.layout import free_port
from testcluster.progress import step
from testcluster.providers.incluster import PortForward, install_contour, postgres_of

_NAME = "moorage-test"
_PREFERRED_EDGE_PORT = 18080
PROGRAMS = ("kubectl", "helm", "kind", "contour-deployment", "gateway-api-crds")


class KindImages(docker.DockerImages):
    """Builds with Docker, and copies the result into the kind node."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def load(self, image: str | Path) -> str:
        """Copy an image into the node; an archive goes through the engine, which learns its name."""
        reference = docker.load_archive(image) if isinstance(image, Path) else image
        with step(f"loading {reference}"):
            self._kind.load_docker_image(reference)
        return reference


class Kind:
    """One cluster named `moorage-test`; several processes may use it one after another."""

    name = "kind"

    def __init__(self) -> None:
        self._forward: PortForward | None = None

    def unavailable(self) -> str | None:
        """Return that no Docker engine answers, or that kind cannot be built."""
        if (reason := docker.unavailable()) is not None:
            return reason
        return None if shutil.which("go") else "kind is built from source, and there is no `go` on the PATH"

    def build(self) -> None:
        """Build kind, kubectl and helm at their pins."""
        build.ensure(*PROGRAMS)

    def up(self, keep: bool) -> Cluster:
        """Create the cluster with an edge on loopback, or join the one that exists."""
        self.build()
        kind = self._kind()
        state = self._read_state()
        if state is None:
            # Written before the cluster is made, so that one left behind by a crash is known as ours to end.
            state = {"keep": keep, "edge": free_port(_PREFERRED_EDGE_PORT), "ready": False}
            self._write_state(state)
        elif keep and not state["keep"]:
            state["keep"] = True
            self._write_state(state)
        config = self._home() / "config.yaml"
        config.write_text(yaml.safe_dump(_cluster_config(state["edge"])))
        try:
            with step("kind cluster"):
                kind.create(config)
            bare = self._handle(kind, state)
            if not state["ready"]:
                install_contour(bare)
                self._write_state({**state, "ready": True})
            self._forward, cluster = postgres_of(bare)
        except BaseException:
            if not state["ready"]:
                self.down()
            raise
        return cluster

    def leave(self) -> None:
        """Part from the cluster and delete it, unless it is kept."""
        self._close_forward()
        state = self._read_state()
        if state is not None and not state["keep"]:
            self.down()

    def down(self) -> None:
        """Delete the cluster, if there is one."""
        self._close_forward()
        if self._read_state() is not None:
            build.ensure("kind", "kubectl")
            self._kind().delete()
            (self._home() / "state.json").unlink(missing_ok=True)

    def running(self) -> Cluster | None:
        """Return the cluster if it exists."""
        state = self._read_state()
        if state is None or not state["ready"] or self.unavailable():
            return None
        return self.up(keep=bool(state["keep"]))

    def log_files(self) -> Sequence[Path]:
        """Return nothing: `kind export logs` has them."""
        return ()

    def _handle(self, kind: Any, state: dict[str, Any]) -> Cluster:
        address = docker.run(
            "inspect",
            "--format={{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
            f"{_NAME}-control-plane",
        )
        return Cluster(
            provider=self.name,
            kubeconfig=self._home() / "kubeconfig",
            edge_url=f"http://127.0.0.1:{state['edge']}",
            node_address=address.strip(),
            postgres_admin_dsn="",
            postgres_local_dsn="",
            gateway_api=True,
            images=KindImages(kind),
        )

    def _kind(self) -> Any:
        # Imported here: with it comes pykube, which the other providers have no use for.
        from pytest_kind import KindCluster  # type: ignore[import-untyped]

        programs = build.ensure("kind", "kubectl")
        # It makes a folder `.pytest-kind` where it stands: not in the checkout. Our own builds
        # replace the old kind and kubectl that it would download without checking them.
        with contextlib.chdir(self._home()):
            return KindCluster(
                _NAME,
                kubeconfig=self._home() / "kubeconfig",
                kind_path=programs["kind"],
                kubectl_path=programs["kubectl"],
            )

    def _home(self) -> Path:
        home = paths.cache_dir() / "kind"
        home.mkdir(exist_ok=True, mode=0o700)
        return home

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state = json.loads((self._home() / "state.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return state if isinstance(state, dict) and {"keep", "edge", "ready"} <= state.keys() else None

    def _write_state(self, state: dict[str, Any]) -> None:
        unfinished = self._home() / ".state.json"
        unfinished.write_text(json.dumps(state))
        unfinished.rename(self._home() / "state.json")

    def _close_forward(self) -> None:
        if self._forward is not None:
            self._forward.close()
            self._forward = None


def _cluster_config(edge_port: int) -> dict[str, Any]:
    """Return kind's configuration: one node, whose port 80 (Envoy's) answers on loopback."""
    mapping = {"containerPort": 80, "hostPort": edge_port, "listenAddress": "127.0.0.1", "protocol": "TCP"}
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "nodes": [{"role": "control-plane", "extraPortMappings": [mapping]}],
    }
