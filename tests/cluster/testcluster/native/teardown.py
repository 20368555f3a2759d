"""Ends everything a run made, however it ended: by command, half started, or killed in the middle.

Nothing here trusts that the run was complete, or remembers more than the run directory and fixed
names; each step takes what it finds.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from testcluster.native import layout, network
from testcluster.native.layout import State
from testcluster.native.node import cgroup_roots, containerd_socket
from testcluster.process import Identity, ProcessError, Supervisor, end

_ORDER = (
    "envoy",
    "contour",
    "coredns",
    "kubelet",  # before containerd: it would start again what is being ended
    "kube-proxy",
    "kube-scheduler",
    "kube-controller-manager",
)
_UNMOUNT_ROUNDS = 3


CLAIM = Path("/run/moorage-testcluster")
"""Holds the run directory of this machine's cluster: bridge, nft tables and control groups have fixed names."""


def claim(run: Path) -> None:
    """Take this machine for a run; raises ProcessError if another run directory's cluster lives."""
    refuse_other(run)
    CLAIM.write_text(f"{run}\n")


def refuse_other(run: Path) -> None:
    """Raise ProcessError if the cluster of another run directory lives on this machine."""
    try:
        owner = Path(CLAIM.read_text().strip())
    except FileNotFoundError:
        return
    if owner != run and Supervisor(owner).running():
        raise ProcessError(
            f"a test cluster with its state in {owner} runs on this machine, and there can be one only: "
            f"use it (MOORAGE_TEST_RUN_DIR={owner}), or end it with `python -m testcluster down`"
        )


def sweep(run: Path) -> None:
    """End every process of the run and remove every trace of it but its logs.

    Raises ProcessError, and does nothing, if the machine's cluster is another run directory's.
    """
    refuse_other(run)
    supervisor = Supervisor(run)
    state = State.read(run)
    for name in _ORDER:
        supervisor.stop(name, grace=1)
    _kill_pods()
    for shim in _shims(run):
        end(shim, grace=1)
    for name in supervisor.running():
        # No patience with etcd and the API server, which would wait for watches to end: their data goes anyway.
        supervisor.stop(name, grace=5 if name == "postgres" else 0.2)
    for stray in supervisor.marked():
        end(stray, grace=1)
    network.down(state.sysctls if state else None)
    _unmount_below(run)
    _remove_cgroups()
    _remove_files(run)
    _remove_leftovers()
    CLAIM.unlink(missing_ok=True)


def _kill_pods() -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pids = {
            int(pid)
            for root in cgroup_roots()
            for procs in (root / layout.CGROUP).rglob("cgroup.procs")
            for pid in _lines(procs)
        }
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:  # the group went away meanwhile
        return []


def _shims(run: Path) -> list[Identity]:
    """Return the containerd shims that serve this run's containerd: they outlive it by design."""
    socket = str(containerd_socket(run)).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"containerd-shim" in arguments[0] and socket in arguments:
            identity = Identity.of(int(entry.name))
            if identity is not None:
                found.append(identity)
    return found


def _unmount_below(run: Path) -> None:
    for _ in range(_UNMOUNT_ROUNDS):
        mounts = [
            line.split()[4].replace("\\040", " ")
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
        ]
        below = [m for m in mounts if m.startswith(f"{run}/")]
        if not below:
            return
        for mount in sorted(below, key=len, reverse=True):
            # Lazily: a killed process may hold it for another moment.
            subprocess.run(["umount", "--lazy", mount], capture_output=True)


def _remove_cgroups() -> None:
    for root in cgroup_roots():
        top = root / layout.CGROUP
        if not top.is_dir():
            continue
        folders = [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _remove_leftovers() -> None:
    """Remove what containerd, CNI and the kubelet write outside of the folders they are given."""
    for path in Path("/var/lib/cni/results").glob(f"{layout.CNI_NETWORK}-*"):
        path.unlink(missing_ok=True)
    containers = Path("/var/log/containers")
    if containers.is_dir():
        for link in containers.iterdir():
            # The kubelet links to the logs in our run directory, which are gone by now.
            if link.is_symlink() and not link.exists():
                link.unlink(missing_ok=True)
    # Fixed in the kubelet's code, whatever its root directory; taken away only if nobody else uses them.
    for folder in ("/var/lib/kubelet/device-plugins", "/var/lib/kubelet", "/var/log/containers"):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


def _remove_files(run: Path) -> None:
    if not run.is_dir():
        return
    for path in run.iterdir():
        if path.name in ("logs", "lock", "users", "reaper.log"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
