"""The cluster made of plain processes on this machine; see `testcluster.native`."""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from testcluster import build, packages, paths
from testcluster.handle import Cluster
from testcluster.native import layout, lifecycle
from testcluster.native.images import BuildahImages
from testcluster.native.layout import State
from testcluster.native.teardown import sweep
from testcluster.progress import say, step

_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
"""Bits of capabilities(7)."""


def _capable() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return all(effective >> bit & 1 for bit in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


class Native:
    """Needs Linux and root. One cluster per machine; several processes may share it."""

    name = "native"

    def __init__(self) -> None:
        self.run = layout.run_dir()
        self._membership: IO[str] | None = None
        """Holds a shared lock for as long as this process uses the cluster: the kernel lets go of
        it however the process ends, so nobody has to be trusted to say goodbye."""

    def unavailable(self) -> str | None:
        """Return why this machine cannot run it."""
        if platform.system() != "Linux":
            return f"it needs Linux, and this is {platform.system()}"
        if os.geteuid() != 0:
            return "it needs root (namespaces, mounts, a network bridge)"
        if not _capable():
            return "this root user may not mount or make network devices (a container without privileges)"
        if shutil.which("go") is None:
            return "it is built from source, and there is no Go toolchain (1.26 or later) on the PATH"
        return None

    def build(self) -> None:
        """Install Debian packages, build every program and the base image."""
        packages.ensure()
        build.ensure()
        _ = BuildahImages(self.run).base

    def up(self, keep: bool) -> Cluster:
        """Start the cluster or join the running one."""
        packages.ensure()
        self.run.mkdir(parents=True, exist_ok=True)
        with self._exclusive():
            self._join()
            try:
                state = lifecycle.running(self.run)
                if state is None:
                    previous = State.read(self.run)
                    # Who asked to keep it does not want less of the one that replaces a broken one.
                    keep = keep or (previous is not None and previous.keep and previous.ready)
                    cluster_id = uuid.uuid4().hex
                    self._start_reaper(cluster_id)  # first: we may be killed while starting
                    state = lifecycle.up(self.run, keep, cluster_id)
                elif keep and not state.keep:
                    state = replace(state, keep=True)
                    state.write(self.run)
            except BaseException:
                self._part()
                raise
        return self._handle(state)

    def leave(self) -> None:
        """Part from the cluster; the last one to part ends it, unless it is kept."""
        self._part()
        with self._exclusive():
            state = State.read(self.run)
            if state is not None and not state.keep and self._unused():
                with step("ending the cluster"):
                    sweep(self.run)

    def down(self) -> None:
        """End the cluster, whoever uses it."""
        if not self.run.exists():
            return
        self._part()
        with self._exclusive():
            sweep(self.run)

    def running(self) -> Cluster | None:
        """Return the running cluster, or None."""
        state = lifecycle.running(self.run)
        return None if state is None else self._handle(state)

    def log_files(self) -> Sequence[Path]:
        """Return the logs of all processes of the cluster."""
        return sorted((self.run / "logs").glob("*.log"))

    def reap(self, cluster_id: str) -> None:
        """Wait until nobody uses the cluster any more, and end it then, if it is still that one.

        One that is kept stays, unless it never became ready. This is what cleans up after a
        command or test run that was killed; it runs as a process of its own.
        """
        with (self.run / "users").open("a") as users:
            fcntl.flock(users, fcntl.LOCK_EX)
        with self._exclusive():
            state = State.read(self.run)
            if state is None or state.id != cluster_id or (state.keep and state.ready):
                return
            if self._unused():
                sweep(self.run)

    def _handle(self, state: State) -> Cluster:
        return Cluster(
            provider=self.name,
            kubeconfig=self.run / "admin.kubeconfig",
            edge_url=f"http://127.0.0.1:{state.ports.edge}",
            node_address=layout.NODE_ADDRESS,
            postgres_admin_dsn=state.postgres_dsn(),
            postgres_local_dsn=state.postgres_dsn("127.0.0.1"),
            gateway_api=True,
            images=BuildahImages(self.run),
        )

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep other processes from starting or ending the cluster meanwhile."""
        with (self.run / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another process starts or ends the cluster; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _join(self) -> None:
        if self._membership is None:
            self._membership = (self.run / "users").open("a")
            fcntl.flock(self._membership, fcntl.LOCK_SH)

    def _part(self) -> None:
        if self._membership is not None:
            self._membership.close()
            self._membership = None

    def _unused(self) -> bool:
        with (self.run / "users").open("a") as users:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def _start_reaper(self, cluster_id: str) -> None:
        # Not marked as a process of the cluster: ending the cluster must not end it midway.
        environment = {**os.environ, "PYTHONPATH": str(paths.SOURCE), "MOORAGE_TEST_RUN_DIR": str(self.run)}
        with (self.run / "reaper.log").open("a") as output:
            reaper = subprocess.Popen(
                [sys.executable, "-m", "testcluster", "reap", cluster_id],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        # It outlives us on purpose; without this, Python warns of a child nobody waited for.
        reaper.returncode = 0
