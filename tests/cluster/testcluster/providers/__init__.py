"""Where a cluster comes from. `select()` takes the first provider that works on this machine."""

import os
from collections.abc import Sequence
from typing import Protocol

from testcluster.handle import Cluster
from testcluster.providers.existing import Existing
from testcluster.providers.kind import Kind
from testcluster.providers.native import Native


class UnavailableError(RuntimeError):
    """No provider works on this machine; the message says why for each, and what would help."""


class Provider(Protocol):
    """Starts, joins and ends a cluster. All of its methods may be called from different processes."""

    name: str

    def unavailable(self) -> str | None:
        """Return why this provider cannot work here, as a clause, or None if it can. Changes nothing."""
        ...

    def build(self) -> None:
        """Prepare what takes long and outlives a cluster: programs, packages, base image."""
        ...

    def up(self, keep: bool) -> Cluster:
        """Start the cluster, or join the running one.

        With `keep` it stays until `down`. Otherwise it ends with the last process that joined it
        and called `leave`, or ended in any other way.
        """
        ...

    def leave(self) -> None:
        """Say that this process is done with the cluster."""
        ...

    def down(self) -> None:
        """End the cluster and remove all it made, whoever uses it. Nothing has to be there."""
        ...

    def running(self) -> Cluster | None:
        """Return the running cluster without starting or joining it."""
        ...

    def log_files(self) -> Sequence[os.PathLike[str]]:
        """Return the logs of the cluster's own parts, where there are files of them."""
        ...


def all_providers() -> tuple[Provider, ...]:
    """Return every provider in order of preference."""
    return (Existing(), Kind(), Native())


def select(providers: Sequence[Provider] | None = None) -> Provider:
    """Return the first provider that works here; raises UnavailableError.

    `MOORAGE_TEST_CLUSTER_PROVIDER` (existing, kind or native) allows only that one.
    """
    candidates = all_providers() if providers is None else providers
    if wanted := os.environ.get("MOORAGE_TEST_CLUSTER_PROVIDER"):
        names = ", ".join(c.name for c in candidates)
        candidates = [c for c in candidates if c.name == wanted]
        if not candidates:
            raise UnavailableError(f"MOORAGE_TEST_CLUSTER_PROVIDER={wanted} is none of {names}")
    reasons = []
    for provider in candidates:
        reason = provider.unavailable()
        if reason is None:
            return provider
        reasons.append(f"{provider.name}: {reason}")
    raise UnavailableError(
        "no Kubernetes cluster can be had on this machine ("
        + "; ".join(reasons)
        + "). Set MOORAGE_TEST_KUBECONFIG, start Docker, or run as root on Linux"
    )
