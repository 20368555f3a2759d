"""Debian packages by name, for rigs: `ensure("redis-server")`."""

from typing import Final

from rigs import RigUnavailable
from testcluster import packages

_PROOF: Final = {
    "default-jre-headless": "java",
    "maven": "mvn",
    "nginx": "/usr/sbin/nginx",
    "pgbouncer": "/usr/sbin/pgbouncer",
    "postgresql-15": "/usr/lib/postgresql/15/bin/postgres",
    "redis-server": "redis-server",
    "wrk": "wrk",
}
"""Debian package → the program (or file) whose presence shows that it need not be installed."""


def ensure(*names: str) -> None:
    """Have Debian packages: install what is missing, as root.

    A server that a package would start by itself is none of the rig's: a rig starts its own, on its own port.

    Raises:
        RigUnavailable: it is missing and cannot be installed here; the message names the command to run.
        KeyError: an unknown package; add its program to the table above.
    """
    try:
        packages.ensure({_PROOF[name]: name for name in names})
    except packages.PackagesError as error:
        raise RigUnavailable(str(error)) from error
