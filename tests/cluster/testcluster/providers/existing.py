"""A cluster that is there already, named by `MOORAGE_TEST_KUBECONFIG`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from testcluster import docker
from testcluster.handle import Cluster, CommandError
from testcluster.providers.incluster import postgres_of, probe_gateway_api

_EDGE = "MOORAGE_TEST_EDGE_URL"
_REGISTRY = "MOORAGE_TEST_REGISTRY"


class RegistryImages(docker.DockerImages):
    """Builds with Docker and pushes to `MOORAGE_TEST_REGISTRY`, from where the cluster pulls."""

    def build(
        self, context: Path, containerfile: Path, tag: str, build_args: Mapping[str, str], base_arg: str
    ) -> str:
        """Build `<registry>/<tag>`."""
        return self._build(context, containerfile, f"{self._registry()}/{tag}", build_args, base_arg)

    def load(self, image: str | Path) -> str:
        """Push a built image; an archive is loaded into Docker first."""
        reference = docker.load_archive(image) if isinstance(image, Path) else image
        docker.run("push", reference)
        return reference

    def _registry(self) -> str:
        registry = os.environ.get(_REGISTRY)
        if not registry:
            raise CommandError(
                f"set {_REGISTRY} to a registry (host/path) that this machine may push to and "
                "the cluster of MOORAGE_TEST_KUBECONFIG can pull from"
            )
        return registry.rstrip("/")


class Existing:
    """Uses a cluster as it is; it is neither started nor ended.

    It needs an edge proxy: its address is `MOORAGE_TEST_EDGE_URL`, its Gateway
    `MOORAGE_TEST_GATEWAY` (`namespace/name`, default `projectcontour/edge`), its ingress class
    `MOORAGE_TEST_INGRESS_CLASS` (default `contour`). A database is run as a pod, unless
    `MOORAGE_TEST_POSTGRES_DSN` names one.
    """

    name = "existing"

    def unavailable(self) -> str | None:
        """Return that no kubeconfig is given, or that it is no file."""
        path = os.environ.get("MOORAGE_TEST_KUBECONFIG")
        if not path:
            return "MOORAGE_TEST_KUBECONFIG is not set"
        return None if Path(path).is_file() else f"MOORAGE_TEST_KUBECONFIG={path} is no file"

    def build(self) -> None:
        """Nothing outlives the cluster that is not there already."""

    def up(self, keep: bool) -> Cluster:
        """Return the handle; starts the database's pod where none is given."""
        edge = os.environ.get(_EDGE)
        if not edge:
            raise CommandError(
                f"set {_EDGE} to the address at which the cluster's edge proxy answers this machine"
            )
        kubeconfig = Path(os.environ["MOORAGE_TEST_KUBECONFIG"]).resolve()
        namespace, _, name = os.environ.get("MOORAGE_TEST_GATEWAY", "projectcontour/edge").partition("/")
        bare = Cluster(
            provider=self.name,
            kubeconfig=kubeconfig,
            edge_url=edge.rstrip("/"),
            node_address=os.environ.get("MOORAGE_TEST_NODE_ADDRESS", ""),
            postgres_admin_dsn="",
            postgres_local_dsn="",
            gateway_api=False,
            images=RegistryImages(),
            gateway=(namespace, name),
            ingress_class=os.environ.get("MOORAGE_TEST_INGRESS_CLASS", "contour"),
        )
        self._forward, complete = postgres_of(probe_gateway_api(bare))
        return complete

    def leave(self) -> None:
        """End the port-forward to the database; its pod stays for the next run."""
        forward = getattr(self, "_forward", None)
        if forward is not None:
            forward.close()

    def down(self) -> None:
        """An existing cluster is not ours to end."""
        self.leave()

    def running(self) -> Cluster | None:
        """Return the handle if a kubeconfig is given."""
        return None if self.unavailable() else self.up(keep=True)

    def log_files(self) -> Sequence[Path]:
        """Return nothing: its logs are in the cluster."""
        return ()
