"""One module of a run: its files, database, migrations and process, and what its guard says of it."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from moorage_operator.local import probes
from moorage_operator.local.catalog import LocalModule
from moorage_operator.local.console import Console
from moorage_operator.local.environment import Workspace
from moorage_operator.local.launch import Launch
from moorage_operator.local.logs import Log, Sink
from moorage_operator.local.neighbours import Neighbours
from moorage_operator.local.policies import Policies
from moorage_operator.local.ports import LOOPBACK, Ports, is_free
from moorage_operator.local.processes import Zygote
from moorage_operator.local.service import Phase, Service, StartError
from moorage_operator.local.state import State
from moorage_operator.local.storage import Storage
from moorage_operator.plan.job import deadline_seconds, migrates
from moorage_operator.plan.settings import Allowance, Defaults, PlatformSettings

SETTINGS: Final = PlatformSettings(
    local_tokens=True,
    allow={"*": Allowance(pod_template=True, unguarded=True, bypassable=True, hosts=["*"])},
)
"""The installation that local mode is: the chart's defaults, and nothing forbidden on one's own machine."""
WITHOUT_RATE_LIMITS: Final = SETTINGS.model_copy(update={"defaults": Defaults(rate_limit=None)})
"""The same without default limits, for load and for tests that ask again and again."""
_OUTPUT_DRAIN_S: Final = 1.0
_STOP_MIGRATION_S: Final = 5.0
_POLL_S: Final = 0.05


class ModuleError(Exception):
    """A module cannot be brought up; the message says why and what mends it."""


@dataclass(frozen=True)
class Platform:
    """What all modules of a run share."""

    state: State
    console: Console
    zygote: Zygote
    storage: Storage
    policies: Policies
    neighbours: Neighbours
    ports: Ports
    http: aiohttp.ClientSession
    view: Sink
    changed: Callable[[], None]


class Runner:
    """Brings one module up and keeps it there."""

    def __init__(self, module: LocalModule, platform: Platform, port: int, admin_port: int) -> None:
        self.module = module
        self.port = port
        self.admin_port = admin_port
        self.problem: str | None = None
        self.warnings: list[str] = []
        self._platform = platform
        self._workspace = self._new_workspace()
        self._database: Mapping[str, str] = {}
        self.service = Service(
            module.label,
            platform.zygote,
            self._launch,
            self._probe,
            Log(module.label, platform.state.logs, platform.view),
            say=platform.console.warn,
            changed=platform.changed,
        )

    @property
    def url(self) -> str:
        """Where the module itself answers, without the gateway."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def state(self) -> str:
        """One word for the table."""
        if self.problem is not None and self.service.phase is not Phase.READY:
            return "failed"
        return str(self.service.phase)

    async def prepare(self) -> None:
        """Everything before the process starts; raises `ModuleError` and leaves what runs as it is."""
        self._workspace = self._new_workspace()
        try:
            self._workspace.write()
            if self.module.module.spec.database is not None:
                await self._prepare_database()
            # Last: if the migrations fail, the old process goes on under the old policy.
            self._platform.policies.write(self.module)
        except ModuleError:
            raise
        except Exception as error:
            raise ModuleError(f"{self.module.label}: {error}") from error

    async def _migrate(self) -> None:
        """Run the module's migrations as its owner role; raises `ModuleError` with the last lines of output."""
        label, platform = self.module.label, self._platform
        log = Log(f"{label}.migrations", platform.state.logs, platform.view)
        limit = deadline_seconds(SETTINGS)
        async with platform.storage.owner(self.module, limit) as database:
            child = await platform.zygote.spawn(self._workspace.migrate(database))
            output = asyncio.create_task(log.follow(child.output))
            try:
                code = await asyncio.wait_for(child.wait(), limit)
            except TimeoutError:
                raise ModuleError(f"{label}: its migrations took longer than {limit} s") from None
            finally:
                await child.stop(_STOP_MIGRATION_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(output, _OUTPUT_DRAIN_S)
                log.close()
        if code != 0:
            last = "\n    ".join(log.recent(8))
            raise ModuleError(f"{label}: its migrations failed, see {log.path}:\n    {last}")

    async def start(self) -> None:
        """Start the process and wait until it is ready; raises `StartError`."""
        ports = (self.port, self.admin_port)
        try:
            await self.service.start()
        except StartError:
            if all(is_free(port) for port in ports):
                raise
            # Somebody was quicker with a port that was free a moment ago; `_launch` takes another.
            await self.service.start()

    def rewrite_policy(self) -> int | None:
        """Write the module's policy if it changed; its new sequence."""
        return self._platform.policies.write(self.module)

    async def policy_in_force(self, sequence: int, timeout_s: float = 5.0) -> bool:
        """Wait until the module's own guard has loaded the policy *sequence*; ``False`` after the time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = await self._guard_status()
            if status is not None and status.get("sequence") == sequence:
                return True
            await asyncio.sleep(_POLL_S)
        return False

    async def inspect(self) -> None:
        """Ask the module's guard what it made of its policy, and warn of rules that cannot be served."""
        self.warnings = []
        app = self.module.module.spec.app
        status = await self._guard_status()
        for rule in (status or {}).get("unbound_rules", []):
            self.warnings.append(f"rule {rule} has no handler in {app}")
        for rule in (status or {}).get("missing_loaders", []):
            self.warnings.append(
                f"rule {rule}: its condition needs `resource`, but its handler has no loader"
            )
        for warning in self.warnings:
            self._platform.console.warn(f"{self.module.label}: {warning}")

    async def close(self) -> None:
        """Stop the process and close its log."""
        await self.service.stop()
        self.service.log.close()

    async def _prepare_database(self) -> None:
        label, step = self.module.label, self._platform.console.step
        with step(f"Preparing the schema of {label}", f"Schema and roles of {label} are there"):
            self._database = await self._platform.storage.provision(self.module)
        if migrates(self.module.module):
            with step(f"Migrating {label}", f"{label} is migrated"):
                await self._migrate()

    async def _guard_status(self) -> dict[str, Any] | None:
        if self.module.module.spec.app is None:
            return None
        return await probes.get_json(self._platform.http, f"http://{LOOPBACK}:{self.admin_port}/policy")

    def _new_workspace(self) -> Workspace:
        platform = self._platform
        return Workspace(platform.state, SETTINGS, self.module, platform.policies.folder(self.module))

    def _launch(self) -> Launch:
        """Called for every start, so that a port that somebody took meanwhile is replaced."""
        for name in ("port", "admin_port"):
            port = getattr(self, name)
            if not is_free(port):
                setattr(self, name, self._platform.ports.take(0))
                what = "port" if name == "port" else "admin port"
                self._platform.console.warn(
                    f"{self.module.label}: {what} {port} is in use, taking {getattr(self, name)}"
                )
        around = self._platform.neighbours.environment(self.module)
        return self._workspace.serve(self.port, self.admin_port, {**self._database, **around})

    async def _probe(self) -> str | None:
        spec = self.module.module.spec
        if spec.app is not None:
            return await probes.http_ready(self._platform.http, f"http://{LOOPBACK}:{self.admin_port}/ready")
        if spec.probes.readiness is not None:
            return await probes.http_ready(self._platform.http, self.url + spec.probes.readiness.path)
        return await probes.tcp_ready(LOOPBACK, self.port)
