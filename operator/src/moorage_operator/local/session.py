"""One run of `moorage up`: everything that is started, in its order, and stopped in the reverse order."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import aiohttp

from moorage.database.embedded import EmbeddedError
from moorage.guard.policy import BaseDocument
from moorage_operator.local import probes
from moorage_operator.local.catalog import Catalog, LocalModule
from moorage_operator.local.console import Console
from moorage_operator.local.edge import GatewayFiles, Upstream
from moorage_operator.local.logs import Log
from moorage_operator.local.neighbours import Neighbours
from moorage_operator.local.policies import Policies
from moorage_operator.local.ports import FIRST_ADMIN_PORT, FIRST_MODULE_PORT, LOOPBACK, Ports, owner
from moorage_operator.local.processes import Zygote
from moorage_operator.local.runner import SETTINGS, ModuleError, Platform, Runner
from moorage_operator.local.service import Service, StartError
from moorage_operator.local.state import State
from moorage_operator.local.storage import Storage
from moorage_operator.plan.pod import Guarding, guarding
from moorage_operator.plan.settings import PlatformSettings

_CHECK_S: Final = 1.0
_REQUEST_TIMEOUT: Final = aiohttp.ClientTimeout(total=5.0)


class LogView:
    """Shows log lines once everything is up; before, they would tear the progress apart.

    *wanted* is asked for every line.
    """

    def __init__(self, console: Console, wanted: Callable[[], bool] = lambda: True) -> None:
        self._console = console
        self._wanted = wanted
        self._open = console.verbose

    @property
    def open(self) -> bool:
        """Whether it is time."""
        return self._open and self._wanted()

    def show(self, wanted: bool = True) -> None:
        """Begin, or end, to show lines."""
        self._open = wanted

    def log(self, name: str, line: str) -> None:
        """Show *line* if it is time."""
        if self.open:
            self._console.log(name, line)


class Session:
    """Holds the processes of one `moorage up` together. Make it inside a running event loop.

    Args:
        settings: the installation that it is.
    """

    def __init__(
        self, state: State, console: Console, gateway_port: int, settings: PlatformSettings = SETTINGS
    ) -> None:
        self.console = console
        self.runners: dict[tuple[str, str], Runner] = {}
        self.view = LogView(console)
        self._gateway_view = LogView(console, self._gateway_decides)
        ports = Ports({gateway_port})
        policies = Policies(state, settings)
        self._platform = Platform(
            state=state,
            console=console,
            zygote=Zygote(),
            storage=Storage(state.postgres, SETTINGS),
            policies=policies,
            neighbours=Neighbours(state, policies),
            ports=ports,
            http=aiohttp.ClientSession(),
            view=self.view,
            changed=self._on_change,
        )
        self._gateway_files = GatewayFiles(state, gateway_port, ports.take(FIRST_ADMIN_PORT - 1))
        self._gateway = Service(
            "gateway",
            self._platform.zygote,
            self._gateway_files.launch,
            partial(
                probes.http_ready,
                self._platform.http,
                f"http://{LOOPBACK}:{self._gateway_files.admin_port}/ready",
            ),
            Log("gateway", state.logs, self._gateway_view),
            say=console.warn,
            changed=self.record,
        )
        self._serving = False
        self._keeper: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The gateway's URL."""
        return f"http://{LOOPBACK}:{self._gateway_files.port}"

    def show_logs(self, wanted: bool = True) -> None:
        """Begin, or end, to show what the processes write."""
        self.view.show(wanted)
        self._gateway_view.show(wanted)

    async def start(self, catalog: Catalog) -> None:
        """Bring up everything of *catalog*. A module that fails has `Runner.problem`; it stops no other.

        Raises `StartError` for the gateway, `ZygoteLostError`, and the embedded PostgreSQL's errors.
        """
        with self.console.step(
            "Loading Python once for all modules, and PostgreSQL", "Ready to start modules"
        ):
            storage = any(module.module.spec.database is not None for module in catalog.modules)
            await asyncio.gather(self._platform.zygote.start(), *([self._start_storage()] if storage else []))
        self.record()
        await self.add(catalog.modules)
        with self.console.step("Starting the gateway", f"The gateway serves on {self.url}"):
            self.update_gateway()
            await self._gateway.start()
        self._serving = True
        self._keeper = asyncio.create_task(self._keep(), name="keep what modules need")

    async def add(self, modules: Sequence[LocalModule]) -> None:
        """Prepare and start more modules."""
        if any(module.module.spec.database is not None for module in modules):
            await self._start_storage()
        runners = [self._make(module) for module in modules]
        prepared = [runner for runner in runners if await self._attempt(runner, runner.prepare())]
        await asyncio.gather(*(self._start(runner, "serves") for runner in prepared))

    async def reprepare(self, runner: Runner) -> bool:
        """Database, migrations and files anew while the old process serves; whether that worked."""
        if runner.module.module.spec.database is not None:
            await self._start_storage()
        return await self._attempt(runner, runner.prepare())

    async def restart(self, runner: Runner) -> bool:
        """Stop a module's process and start it anew; whether it is ready again."""
        await runner.service.stop()
        return await self._start(runner, "was restarted and serves")

    async def remove(self, runner: Runner) -> None:
        """Stop a module for good; its data stay."""
        del self.runners[runner.module.key]
        self._platform.ports.taken -= {runner.port, runner.admin_port}
        await runner.close()

    def update_gateway(self) -> bool:
        """Write down anew where modules answer; whether the gateway's configuration changed."""
        policies = self._platform.policies
        self._platform.neighbours.publish((runner.module, runner.url) for runner in self.runners.values())
        return self._gateway_files.write(
            [
                Upstream(runner.module, runner.port, policies.folder(runner.module))
                for runner in self.runners.values()
            ]
        )

    async def stop(self) -> None:
        """Stop everything in reverse order: gateway, modules, PostgreSQL, the preloaded parent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._gateway.stop()
        await asyncio.gather(*(runner.close() for runner in reversed(self.runners.values())))
        await self._stop_storage()
        await self._platform.zygote.close()
        await self._platform.http.close()
        self._gateway.log.close()
        self.record()

    async def kill(self) -> None:
        """End everything at once (the second Ctrl-C); PostgreSQL takes it as a fast shutdown."""
        await self._platform.zygote.close(kill=True)
        await self._stop_storage()
        await self._platform.http.close()
        self.record()

    def record(self) -> None:
        """Write down what runs, for a next `moorage up` that finds this one killed."""
        services = [self._gateway, *(runner.service for runner in self.runners.values())]
        named = [(service.name, service.pid) for service in services]
        named += [("zygote", self._platform.zygote.pid), ("postgres", self._platform.storage.pid)]
        self._platform.state.record((name, pid) for name, pid in named if pid is not None)

    def policy(self, runner: Runner) -> BaseDocument | None:
        """The policy that was last written for a module."""
        return self._platform.policies.read(runner.module)

    async def answers(self, path: str) -> int:
        """Status of a GET through the gateway without a token. Raises `aiohttp.ClientError`, `TimeoutError`."""
        async with self._platform.http.get(self.url + path, timeout=_REQUEST_TIMEOUT) as response:
            return response.status

    def _make(self, module: LocalModule) -> Runner:
        ports, index = self._platform.ports, len(self.runners)
        wanted = FIRST_MODULE_PORT + index
        port = ports.take(wanted)
        if port != wanted:
            holder = owner(wanted)
            self.console.warn(
                f"{module.label}: port {wanted} is in use{f' by {holder}' if holder else ''}, taking {port}"
            )
        runner = self.runners[module.key] = Runner(
            module, self._platform, port, ports.take(FIRST_ADMIN_PORT + index)
        )
        return runner

    async def _start(self, runner: Runner, does: str) -> bool:
        began = time.monotonic()
        if not await self._attempt(runner, runner.start()):
            return False
        self.console.done(f"{runner.module.label} {does} on {runner.url}", time.monotonic() - began)
        await runner.inspect()
        return True

    async def _attempt(self, runner: Runner, work: Awaitable[None]) -> bool:
        """Do *work* for a module; a failure is noted and shown."""
        try:
            await work
        except (ModuleError, StartError) as error:
            runner.problem = str(error)
            self.console.error(str(error))
            return False
        runner.problem = None
        return True

    def _gateway_decides(self) -> bool:
        """Whether the gateway's log says what no module's log does; else every request would be shown twice."""
        modules = [runner.module.module for runner in self.runners.values()]
        return self.console.verbose or any(guarding(module) is not Guarding.IN_PROCESS for module in modules)

    def _on_change(self) -> None:
        """A module's process started or ended: its port may be another one now."""
        self.record()
        if self._serving:
            self.update_gateway()

    async def _start_storage(self) -> None:
        if self._platform.storage.running:
            return
        began = time.monotonic()
        await self._platform.storage.start()
        if (pid := self._platform.storage.pid) is not None:
            self._platform.zygote.adopt(pid)
        self.record()
        self.console.done("PostgreSQL is up", time.monotonic() - began)

    async def _keep(self) -> None:
        """Renew tokens, and start PostgreSQL again when somebody killed it; modules reconnect by themselves."""
        while True:
            await asyncio.sleep(_CHECK_S)
            self._platform.neighbours.renew(runner.module for runner in self.runners.values())
            try:
                recovered = await self._platform.storage.recover()
            except EmbeddedError as error:
                self.console.error(str(error))
                continue
            if recovered:
                self.console.warn("PostgreSQL was gone and was started again")
                if (pid := self._platform.storage.pid) is not None:
                    self._platform.zygote.adopt(pid)
                self.record()

    async def _stop_storage(self) -> None:
        if (pid := self._platform.storage.pid) is not None:
            self._platform.zygote.release(pid)
        await self._platform.storage.stop()
