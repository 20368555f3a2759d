"""PgBouncer from Debian's package, in transaction mode, with few server connections: what a managed pooler does."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from rigs import packages
from rigs.postgres15 import as_account, free_port, give_away, wait_for_port

_ACCOUNT: Final = "postgres"
"""Debian runs it as this account, too; it refuses to run as root."""
_PATIENCE: Final = 10.0


@dataclass(frozen=True)
class Pooler:
    """A running pooler; it takes the roles and passwords of the server behind it."""

    port: int
    log: Path

    def through(self, dsn: str) -> str:
        """*dsn* of the server behind it, through it."""
        parts = urlsplit(dsn)
        user = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{self.port}"))


@contextmanager
def running(server_dsn: str, *, connections: int = 2) -> Iterator[Pooler]:
    """Start one in front of the server of *server_dsn* (a superuser's) and stop it at the end.

    Args:
        connections: to the server, for each pair of role and database.

    Raises:
        RigUnavailable: the package cannot be had here, or the pooler does not start.
    """
    packages.ensure("pgbouncer")
    with tempfile.TemporaryDirectory(prefix="moorage-pgbouncer-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        pooler = Pooler(free_port(), folder / "log")
        _configure(folder, urlsplit(server_dsn), pooler.port, connections)
        give_away(folder, _ACCOUNT)
        command = as_account(_ACCOUNT, ["/usr/sbin/pgbouncer", str(folder / "pgbouncer.ini")])
        with pooler.log.open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        try:
            wait_for_port(pooler.port, process, pooler.log)
            yield pooler
        finally:
            process.terminate()
            process.wait(_PATIENCE)


def _configure(folder: Path, server: SplitResult, port: int, connections: int) -> None:
    (folder / "users").write_text(f'"{server.username}" "{server.password}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"""[databases]
* = host={server.hostname} port={server.port} auth_user={server.username}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 500
max_db_connections = 50
auth_type = scram-sha-256
auth_file = {folder / "users"}
auth_query = SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1
server_idle_timeout = 5
query_wait_timeout = 60
log_connections = 0
log_disconnections = 0
"""
    )
    for file in ("users", "pgbouncer.ini"):
        (folder / file).chmod(0o600)
        give_away(folder / file, _ACCOUNT)
