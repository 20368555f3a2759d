"""The Debian packages that the native cluster and its image builder stand on."""

import os
import shutil
import subprocess
from pathlib import Path

from testcluster.progress import say, step

_NEEDED = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "nft": "nftables",
    "conntrack": "conntrack",
    "iptables": "iptables",
    "ip": "iproute2",
    "setpriv": "util-linux",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
"""Program (or file) → the Debian package that has it."""


class PackagesError(RuntimeError):
    """Programs are missing and could not be installed; the message names the command to run."""


def missing() -> list[str]:
    """Return the Debian packages whose programs this machine lacks."""
    absent = {
        package
        for program, package in _NEEDED.items()
        if not (Path(program).exists() if program.startswith("/") else shutil.which(program))
    }
    return sorted(absent)


def ensure() -> None:
    """Install what is missing with apt-get (as root); raises PackagesError where that cannot be done.

    `MOORAGE_TEST_NO_INSTALL=1` forbids it: then the message says what to install.
    """
    packages = missing()
    if not packages:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    if os.environ.get("MOORAGE_TEST_NO_INSTALL") or not shutil.which("apt-get") or os.geteuid() != 0:
        raise PackagesError(f"programs are missing; install them, on Debian with: {' '.join(command)}")
    say(f"installing Debian packages: {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with step("Debian packages"):
        for attempt in (["apt-get", "update", "-q"], command):
            done = subprocess.run(attempt, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise PackagesError(f"`{' '.join(attempt)}` failed:\n{(done.stderr or done.stdout)[-2000:]}")
    if still := missing():
        raise PackagesError(f"installed, but their programs are not to be found: {', '.join(still)}")
