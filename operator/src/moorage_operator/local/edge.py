"""The gateway in front: its configuration file, made from the modules' Routes, and its process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moorage_crds import checks
from moorage_operator.local import launch as launches
from moorage_operator.local.catalog import LocalModule
from moorage_operator.local.launch import Launch
from moorage_operator.local.ports import LOOPBACK
from moorage_operator.local.state import State, write_private
from moorage_operator.plan.pod import Guarding, guarding


@dataclass(frozen=True)
class Upstream:
    """Where a module answers and where its policy lies."""

    module: LocalModule
    port: int
    policy: Path


def prefixes(module: LocalModule) -> list[str]:
    """The path prefixes that an edge routes to the module: the same as on a cluster."""
    return list(checks.places(module.routes))


def hosts(module: LocalModule) -> list[str]:
    """The hosts of the module's Routes; empty: every host."""
    if any(not route.spec.hosts for route in module.routes):
        return []
    return sorted({host for route in module.routes for host in route.spec.hosts})


def configuration(port: int, admin_port: int, upstreams: Sequence[Upstream]) -> dict[str, Any]:
    """The gateway's configuration. A module that does not guard itself is guarded by the gateway."""
    return {
        "listen": {"host": LOOPBACK, "port": port},
        "admin": {"host": LOOPBACK, "port": admin_port},
        "modules": [
            {
                "namespace": upstream.module.namespace,
                "module": upstream.module.module.metadata.name,
                "hosts": hosts(upstream.module),
                "prefixes": prefixes(upstream.module),
                "upstream": f"http://{LOOPBACK}:{upstream.port}",
                "guarded": guarding(upstream.module.module) is Guarding.IN_PROCESS,
                "policy_dir": str(upstream.policy),
            }
            for upstream in upstreams
            if upstream.module.routes
        ],
    }


class GatewayFiles:
    """The configuration file, rewritten when ports or Routes change; the gateway watches it."""

    def __init__(self, state: State, port: int, admin_port: int) -> None:
        self.path = state.run / "gateway.yaml"
        self.port = port
        self.admin_port = admin_port
        self._cwd = state.run

    def write(self, upstreams: Sequence[Upstream]) -> bool:
        """Write the file; whether it changed."""
        text = yaml.safe_dump(configuration(self.port, self.admin_port, upstreams), sort_keys=False).encode()
        if self.path.exists() and self.path.read_bytes() == text:
            return False
        write_private(self.path, text)
        return True

    def launch(self, environ: Mapping[str, str] | None = None) -> Launch:
        """The gateway's process."""
        env = launches.base_environment(environ) | {"ENVIRONMENT": "development", "PYTHONUNBUFFERED": "1"}
        return launches.moorage("gateway", "gateway", "--config", str(self.path), env=env, cwd=self._cwd)
