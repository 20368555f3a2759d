"""Debian packages that tests stand on: those of the native cluster here, those of other rigs by name."""

import os
import shutil
import subprocess
from collections.abc import Mapping
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


def missing(needed: Mapping[str, str] = _NEEDED) -> list[str]:
    """Return the Debian packages whose programs (or files) this machine lacks."""
    absent = {
        package
        for program, package in needed.items()
        if not (Path(program).exists() if program.startswith("/") else shutil.which(program))
    }
    return sorted(absent)


def ensure(needed: Mapping[str, str] = _NEEDED) -> None:
    """Install what is missing with apt-get (as root); raises PackagesError where that cannot be done.

    `needed` maps programs (or absolute file names) to packages; without it, what the native cluster needs.
    `MOORAGE_TEST_NO_INSTALL=1` forbids it: then the message says what to install.
    """
    packages = missing(needed)
    if not packages:
        return
    # Several test runs of one machine may want packages at the same time.
    options = ("--yes", "--no-install-recommends", "--option=DPkg::Lock::Timeout=300")
    command = ["apt-get", "install", *options, *packages]
    if os.environ.get("MOORAGE_TEST_NO_INSTALL") or not shutil.which("apt-get") or os.geteuid() != 0:
        raise PackagesError(
            "programs are missing; install them, on Debian with: "
            f"apt-get install --no-install-recommends {' '.join(packages)}"
        )
    say(f"installing Debian packages: {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with step("Debian packages"):
        for attempt in (["apt-get", "update", "-q"], command):
            done = subprocess.run(attempt, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise PackagesError(f"`{' '.join(attempt)}` failed:\n{(done.stderr or done.stdout)[-2000:]}")
    if still := missing(needed):
        raise PackagesError(f"installed, but their programs are not to be found: {', '.join(still)}")
