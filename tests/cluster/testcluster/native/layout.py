"""Names, addresses and folders of the native cluster: the one place that fixes them."""

import json
import os
import socket
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

BRIDGE = "moorage0"
NODE = "moorage-node"
NODE_ADDRESS = "10.244.0.1"
"""The bridge's address: the node, DNS, the API server and databases answer pods here."""
POD_SUBNET = "10.244.0.0/24"
POD_RANGE = "10.244.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
NFT_TABLE = "moorage-test"
CGROUP = "moorage-test"
"""Parent of every pod's control group, so that ending them can never touch another kubelet's pods."""
CNI_NETWORK = "moorage-test"
PAUSE_IMAGE = "localhost/moorage-test/pause:1"
DEFAULT_RUN_DIR = Path("/var/lib/moorage-testcluster")


def run_dir() -> Path:
    """Return the folder that holds all state of the native cluster; `MOORAGE_TEST_RUN_DIR` overrides it.

    Not under root's home folder: PostgreSQL refuses to run as root, and whoever it runs as
    instead has to reach its files.
    """
    override = os.environ.get("MOORAGE_TEST_RUN_DIR")
    path = Path(override).expanduser().resolve() if override else DEFAULT_RUN_DIR
    if len(str(path)) > 60:
        # The longest socket below it adds some 40 characters, and the kernel takes 107 (unix(7)).
        raise ValueError(f"MOORAGE_TEST_RUN_DIR={path} is too long for sockets in it: 60 characters at most")
    return path


@dataclass(frozen=True)
class Ports:
    """TCP ports of one run. All on loopback, but `api`, `kubelet` and `postgres` (the bridge's address)."""

    api: int
    kubelet: int
    postgres: int
    etcd: int
    etcd_peer: int
    controller_manager: int
    scheduler: int
    kubelet_health: int
    proxy_health: int
    proxy_metrics: int
    dns_health: int
    contour_xds: int
    contour_health: int
    contour_metrics: int
    contour_debug: int
    envoy_stats: int
    edge: int

    @classmethod
    def choose(cls) -> "Ports":
        """Take the preferred port for each where it is free, else the next free one above it.

        All are below 32768, where no outgoing connection takes them by chance. 8080 and its
        neighbours are left to the platform's local mode.
        """
        preferred = {
            "api": 16443,
            "kubelet": 10250,
            "postgres": 15432,
            "etcd": 12379,
            "etcd_peer": 12380,
            "controller_manager": 10257,
            "scheduler": 10259,
            "kubelet_health": 10248,
            "proxy_health": 10256,
            "proxy_metrics": 10249,
            "dns_health": 18181,
            "contour_xds": 18001,
            "contour_health": 18003,
            "contour_metrics": 18004,
            "contour_debug": 18060,
            "envoy_stats": 18002,
            "edge": 18080,
        }
        taken: set[int] = set()
        chosen: dict[str, int] = {}
        for name, port in preferred.items():
            port = free_port(port, taken)
            taken.add(port)
            chosen[name] = port
        return cls(**chosen)


def free_port(preferred: int, taken: Collection[int] = ()) -> int:
    """Return the first port from `preferred` on that nothing listens on, on any address."""
    return next(p for p in range(preferred, 32768) if p not in taken and _free(p))


def _free(port: int) -> bool:
    # Bound to every address, because a listener on any of them may be in our way.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class State:
    """What one run has to remember; written when it starts, read by everybody who joins or ends it."""

    id: str
    keep: bool
    """Whether it stays when the last user is gone."""
    ports: Ports
    postgres_password: str = field(repr=False)
    ready: bool = False
    sysctls: dict[str, str] | None = None
    """Kernel settings as they were before, to be put back."""

    @property
    def api_server(self) -> str:
        """The API server's address for pods and for this machine."""
        return f"https://{NODE_ADDRESS}:{self.ports.api}"

    def postgres_dsn(self, host: str = NODE_ADDRESS) -> str:
        """Return the DSN of the PostgreSQL superuser."""
        return f"postgresql://postgres:{self.postgres_password}@{host}:{self.ports.postgres}/postgres"

    def write(self, run: Path) -> None:
        """Write the state file, whole or not at all."""
        unfinished = run / ".state.json"
        unfinished.touch(mode=0o600)
        unfinished.write_text(json.dumps(asdict(self), indent=1))
        unfinished.rename(run / "state.json")

    @classmethod
    def read(cls, run: Path) -> "State | None":
        """Return the state of the last run, or None if there is none (or none that can be read)."""
        try:
            raw = json.loads((run / "state.json").read_text())
            return cls(**{**raw, "ports": Ports(**raw["ports"])})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
