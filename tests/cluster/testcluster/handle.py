"""The one handle that tests get, whatever kind of cluster stands behind it."""

import json
import os
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from testcluster import build


class CommandError(RuntimeError):
    """A command against the cluster failed; the message holds what it wrote to standard error."""


class Images(Protocol):
    """Builds container images and brings them to where the cluster's nodes find them."""

    @property
    def base(self) -> str:
        """Image reference that a Containerfile's base argument should get on this kind of cluster."""
        ...

    def build(
        self, context: Path, containerfile: Path, tag: str, build_args: Mapping[str, str], base_arg: str
    ) -> str:
        """Build an image and return its full reference; raises CommandError."""
        ...

    def load(self, image: str | Path) -> str:
        """Load an image (a reference that was built, or an OCI archive); returns its reference."""
        ...


@dataclass(frozen=True)
class Cluster:
    """A running cluster: how to talk to it, and what stands ready in it."""

    provider: str
    """`existing`, `kind` or `native`."""
    kubeconfig: Path
    """Grants everything."""
    edge_url: str
    """Where the edge proxy answers for this machine, such as `http://127.0.0.1:18080`: tell it the
    route's host by a `Host` header."""
    node_address: str
    """An address of this machine (or of the cluster's network) that pods can reach."""
    postgres_admin_dsn: str = field(repr=False)
    """A PostgreSQL superuser, by an address that pods can reach."""
    postgres_local_dsn: str = field(repr=False)
    """The same server by an address that the test process can reach (often the same)."""
    gateway_api: bool
    """Whether the cluster serves Gateway API's HTTPRoute."""
    images: Images
    gateway: tuple[str, str] = ("projectcontour", "edge")
    """Namespace and name of the Gateway that HTTPRoutes of all namespaces may attach to."""
    ingress_class: str = "contour"
    watched: set[str] = field(default_factory=set)
    """Namespaces whose state is shown when a test fails."""

    def kubectl(self, *args: str, input: str | None = None, check: bool = True, timeout: float = 120) -> str:
        """Run kubectl and return its standard output; raises CommandError unless `check` is off.

        `timeout` is in seconds. With `check=False` what went to standard error is appended.
        """
        return self._run(build.tool("kubectl"), args, input, check, timeout)

    def helm(self, *args: str, input: str | None = None, check: bool = True, timeout: float = 300) -> str:
        """Run helm as `kubectl` does; its own state stays out of the user's home folder."""
        return self._run(build.tool("helm"), args, input, check, timeout)

    def get(self, *args: str) -> Any:
        """Return `kubectl get … -o json` as Python objects."""
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def apply(self, *objects: Mapping[str, Any], namespace: str | None = None) -> None:
        """Apply objects given as mappings, server-side."""
        where = ("-n", namespace) if namespace else ()
        text = yaml.safe_dump_all([dict(o) for o in objects])
        self.kubectl(*where, "apply", "--server-side", "--force-conflicts", "-f", "-", input=text)

    def new_namespace(self, prefix: str = "test", labels: Mapping[str, str] | None = None) -> str:
        """Create a namespace with a fresh name that is shown when a test fails; returns the name."""
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        metadata = {"name": name, "labels": dict(labels or {})}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        self.watched.add(name)
        return name

    def build_image(
        self,
        context: Path,
        containerfile: Path,
        tag: str,
        build_args: Mapping[str, str] | None = None,
        base_arg: str = "BASE",
    ) -> str:
        """Build an image from a Containerfile and return its full reference (`localhost/<tag>`).

        The base image suited to this kind of cluster goes into the build argument `base_arg`,
        unless `build_args` sets it. Raises CommandError with the build's output.
        """
        return self.images.build(context, containerfile, tag, build_args or {}, base_arg)

    def load_image(self, image: str | Path) -> str:
        """Make an image (reference of a built one, or OCI archive) available to pods; returns its reference.

        Pods have to use it with `imagePullPolicy: IfNotPresent` or `Never`.
        """
        return self.images.load(image)

    def diagnostics(self, namespace: str) -> str:
        """Return pods, events and the logs of every container of a namespace, for a person to read.

        Never raises: a failing part says so in its place. Secrets are not shown.
        """
        parts = [
            self._section(namespace, "objects", "get", "all,configmaps,jobs", "-o", "wide"),
            self._section(namespace, "events", "get", "events", "--sort-by=.lastTimestamp"),
            self._section(namespace, "pods", "describe", "pods"),
        ]
        try:
            pods = self.get("-n", namespace, "pods")["items"]
        except (CommandError, ValueError) as error:
            return "\n".join([*parts, f"(the pods could not be listed: {error})"])
        for pod in pods:
            name, statuses = pod["metadata"]["name"], pod.get("status", {})
            for kind in ("initContainerStatuses", "containerStatuses"):
                for status in statuses.get(kind, ()):
                    parts += self._container_logs(namespace, name, status)
        return "\n".join(parts)

    def _container_logs(self, namespace: str, pod: str, status: Mapping[str, Any]) -> list[str]:
        container = status["name"]
        command = ["logs", pod, "-c", container, "--tail=200"]
        parts = [self._section(namespace, f"log of {pod}/{container}", *command)]
        if status.get("restartCount"):
            title = f"log of {pod}/{container} before its last restart"
            parts.append(self._section(namespace, title, *command, "--previous"))
        return parts

    def _section(self, namespace: str, title: str, *args: str) -> str:
        try:
            text = self.kubectl("-n", namespace, *args, check=False, timeout=20).strip()
        except CommandError as error:
            text = f"(not to be had: {error})"
        return f"--- {namespace}: {title}\n{text or '(nothing)'}"

    def _run(
        self, program: Path, args: tuple[str, ...], input: str | None, check: bool, timeout: float
    ) -> str:
        home = self.kubeconfig.parent / "helm"
        environment = {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "HELM_CACHE_HOME": str(home / "cache"),
            "HELM_CONFIG_HOME": str(home / "config"),
            "HELM_DATA_HOME": str(home / "data"),
            "KUBECACHEDIR": str(home.parent / "kubectl-cache"),
        }
        shown = f"{program.name} {' '.join(args)}"
        try:
            done = subprocess.run(
                [str(program), *args],
                input=input or "",  # never the terminal's: a command that asks must not hang
                capture_output=True,
                text=True,
                env=environment,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"{shown}: no answer within {timeout:.0f} s") from error
        if check and done.returncode:
            output = f"{done.stderr.strip()}\n{done.stdout.strip()}".strip()
            raise CommandError(f"{shown} failed ({done.returncode}):\n{output}")
        return done.stdout if check else done.stdout + done.stderr
