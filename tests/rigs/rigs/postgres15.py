"""A PostgreSQL 15 from Debian's package, as `postgres` runs elsewhere: the oldest with ``security_invoker`` views."""

import os
import pwd
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rigs import RigUnavailable, packages

BINARIES: Final = Path("/usr/lib/postgresql/15/bin")
_ACCOUNT: Final = "postgres"
"""Debian's package makes it; the server refuses to run as root."""
_PATIENCE: Final = 30.0


@dataclass(frozen=True)
class Server:
    """A running server; ``password`` is the superuser's (``postgres``)."""

    port: int
    password: str
    log: Path

    @property
    def dsn(self) -> str:
        """The superuser's DSN."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/postgres"


@contextmanager
def running() -> Iterator[Server]:
    """Start one with fresh data on a free port of 127.0.0.1, and stop it at the end.

    Raises:
        RigUnavailable: the package cannot be had here, or the server does not start.
    """
    packages.ensure("postgresql-15")
    with tempfile.TemporaryDirectory(prefix="moorage-pg15-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        give_away(folder, _ACCOUNT)
        password = secrets.token_hex(16)
        _initialise(folder, password)
        server = Server(free_port(), password, folder / "log")
        command = [str(BINARIES / "postgres"), "-D", str(folder / "data"), "-k", "", "-p", str(server.port)]
        for setting in ("listen_addresses=127.0.0.1", "fsync=off", "max_connections=200", "timezone=UTC"):
            command += ["-c", setting]
        with server.log.open("wb") as log:
            process = subprocess.Popen(
                as_account(_ACCOUNT, command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
            )
        try:
            wait_for_port(server.port, process, server.log)
            _wait_until_ready(server)  # it listens before it has recovered
            yield server
        finally:
            process.send_signal(2)  # a fast shutdown: sessions are cut
            process.wait(_PATIENCE)


def _initialise(folder: Path, password: str) -> None:
    file = folder / "password"
    file.write_text(password)
    give_away(file, _ACCOUNT)
    command = [str(BINARIES / "initdb"), "-D", str(folder / "data"), "-U", "postgres", f"--pwfile={file}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
    done = subprocess.run(
        as_account(_ACCOUNT, command), cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RigUnavailable(f"initdb of PostgreSQL 15 failed: {(done.stderr or done.stdout)[-1000:]}")


def _wait_until_ready(server: Server) -> None:
    command = [str(BINARIES / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(server.port)]
    deadline = time.monotonic() + _PATIENCE
    while subprocess.run(command, check=False).returncode:
        if time.monotonic() > deadline:
            raise RigUnavailable(
                f"PostgreSQL 15 is not ready: {server.log.read_text(errors='replace')[-1000:]}"
            )
        time.sleep(0.05)


def as_account(account: str, command: list[str]) -> list[str]:
    """*command* as *account* where we are root, and in any case ending when we do."""
    become = [f"--reuid={account}", f"--regid={account}", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *become, "--pdeathsig=INT", "--", *command]


def give_away(path: Path, account: str) -> None:
    """Let *account* own *path*, where we are root."""
    if os.geteuid() == 0:
        entry = pwd.getpwnam(account)
        os.chown(path, entry.pw_uid, entry.pw_gid)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until *process* takes connections on *port*; raises `RigUnavailable` with the end of its log."""
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RigUnavailable(f"{process.args!r} does not start: {log.read_text(errors='replace')[-1000:]}")
