"""Loopback ports: the ones the contract names where they are free, others where not."""

import contextlib
import errno
import socket
from dataclasses import dataclass, field
from typing import Final

import psutil

LOOPBACK: Final = "127.0.0.1"
GATEWAY_PORT: Final = 8080
GATEWAY_ADMIN_PORT: Final = 9900
FIRST_MODULE_PORT: Final = 8091
FIRST_ADMIN_PORT: Final = 9901
"""The n-th module gets 8090+n for requests and 9900+n for its admin port."""


class PortTakenError(Exception):
    """The port that the user asked for is in use; the message says by whom and how to take another."""


def is_free(port: int) -> bool:
    """Whether a server could listen on *port* of the loopback address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do it: a port whose last connections linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
        return True


def owner(port: int) -> str | None:
    """Name and id of the process that listens on *port*, as far as this user may see it."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                if connection.pid is None:  # another user's
                    return None
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None


def require(port: int, flag: str) -> int:
    """*port* if it is free, for 0 any free one; raises `PortTakenError` naming the owner and *flag*."""
    if port == 0:
        return Ports().take(0)
    if is_free(port):
        return port
    if port < 1024:
        raise PortTakenError(f"port {port} may not be opened by this user; choose another with {flag} PORT")
    holder = owner(port)
    by = f" by {holder}" if holder else ""
    raise PortTakenError(
        f"port {port} of {LOOPBACK} is in use{by}; stop that or choose another with {flag} PORT"
    )


@dataclass
class Ports:
    """Hands out ports, none of them twice."""

    taken: set[int] = field(default_factory=set)

    def take(self, wanted: int) -> int:
        """*wanted* if it is free, else a free port that the system chooses (also for 0)."""
        if wanted and wanted not in self.taken and is_free(wanted):
            self.taken.add(wanted)
            return wanted
        while True:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.bind((LOOPBACK, 0))
                port: int = probe.getsockname()[1]
            if port not in self.taken:
                self.taken.add(port)
                return port
