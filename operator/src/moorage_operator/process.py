"""The operator's process: wiring, leadership, and an orderly end."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from kubernetes.aio.client import Configuration
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest

from moorage_operator.apply.client import ApiError, Cluster, load_configuration
from moorage_operator.apply.events import Events, utc_now
from moorage_operator.apply.kinds import CHILDREN, HTTP_ROUTE, POD, RESOURCES, Kind
from moorage_operator.apply.lease import Lease
from moorage_operator.handlers.watch import watch
from moorage_operator.plan.settings import PlatformSettings, parse_settings
from moorage_operator.reconcile.applier import Applier
from moorage_operator.reconcile.context import Context
from moorage_operator.reconcile.databases import Databases
from moorage_operator.reconcile.guards import HttpGuards
from moorage_operator.reconcile.intake import Intake
from moorage_operator.reconcile.issuers import ClusterIssuer
from moorage_operator.reconcile.migrations import Migrations
from moorage_operator.reconcile.queue import KeyedQueue
from moorage_operator.reconcile.resources import Resources
from moorage_operator.reconcile.signing import load_or_create
from moorage_operator.reconcile.store import Store
from moorage_operator.reconcile.workers import Workers, list_all, resync

logger = logging.getLogger(__name__)
LEASE_NAME: Final = "moorage-operator"
STOP_PATIENCE: Final = 20.0
"""Seconds for turns that are under way when the process is asked to end (kubelet gives 30)."""
LOST_PATIENCE: Final = 4.0
"""The same when the lease was lost: the rest of its time, in which nobody else works yet."""
LEADING = Gauge("moorage_operator_leading", "1 while this process does the work.")


@dataclass(frozen=True, slots=True)
class Options:
    """How the process is started."""

    settings_file: Path
    kubeconfig: str | None = None
    admin_host: str = "0.0.0.0"  # noqa: S104 - kubelet probes the pod's address
    admin_port: int = 9901
    leader_election: bool = True
    identity: str = "moorage-operator"


@dataclass(slots=True)
class _Health:
    """What the admin port says. A standby is ready: it does what it is there for."""

    started: bool = False
    stopping: bool = False
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def request_stop(self) -> None:
        """Begin the orderly end."""
        self.stopping = True
        self.stop.set()

    def set_signals(self) -> None:
        """SIGTERM and SIGINT begin the orderly end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)


async def run(options: Options) -> bool:
    """Run until SIGTERM or SIGINT; returns whether it ended because it was asked to.

    Raises:
        SettingsError, OSError: the settings cannot be used or read.
        ConfigException: (of `kubernetes.aio.config`) no cluster is configured.
    """
    settings = parse_settings(options.settings_file.read_text(), str(options.settings_file))
    configuration = await load_configuration(options.kubeconfig)
    health = _Health()
    health.set_signals()
    async with _admin_server(options, health), Cluster(configuration) as cluster:
        await _until(health, _wait_for_crds(cluster))
        if not options.leader_election:
            return await _unless_stopped(health, _lead(settings, cluster, configuration, health, None))
        lease = Lease(cluster, settings.core_namespace, LEASE_NAME, options.identity)
        health.started = True
        await _until(health, lease.acquire())
        if health.stop.is_set():
            return True
        holding = asyncio.create_task(lease.hold(), name="lease")
        try:
            return await _unless_stopped(health, _lead(settings, cluster, configuration, health, lease))
        finally:
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)
            if not lease.lost.is_set():
                await lease.release()


async def _unless_stopped(health: _Health, work: Coroutine[Any, Any, bool]) -> bool:
    if health.stop.is_set():
        work.close()
        return True
    return await work


async def _until(health: _Health, work: Coroutine[Any, Any, None]) -> None:
    """Do *work*, or stop it when the process is asked to end."""
    task = asyncio.create_task(work)
    stop = asyncio.create_task(health.stop.wait())
    await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return
    task.result()


async def _wait_for_crds(cluster: Cluster) -> None:
    """The chart may bring operator and CRDs in any order."""
    told = False
    while True:
        try:
            missing = [kind.plural for kind in RESOURCES if not await cluster.serves(kind)]
        except ApiError as error:
            missing = [str(error)]
        if not missing:
            return
        if not told:
            logger.warning("waiting for the CRDs of moorage.dev: %s", ", ".join(missing))
            told = True
        await asyncio.sleep(2)


async def _lead(
    settings: PlatformSettings,
    cluster: Cluster,
    configuration: Configuration,
    health: _Health,
    lease: Lease | None,
) -> bool:
    """Do the work until the process is asked to end or the lease is lost; returns whether it was asked."""
    queue = KeyedQueue()
    store = Store()
    resources = Resources(store, settings)
    intake = Intake(store, resources, queue)

    def look_at_everything() -> None:
        for key in sorted(store.keys()):
            queue.add(key)

    databases = Databases(settings, look_at_everything)
    async with HttpGuards() as guards:
        context = Context(
            settings=settings,
            cluster=cluster,
            store=store,
            resources=resources,
            applier=Applier(cluster, store),
            databases=databases,
            migrations=Migrations(store, databases, settings),
            guards=guards,
            issuers=ClusterIssuer(cluster),
            keys=await load_or_create(cluster, settings),
            events=Events(cluster),
            clock=utc_now,
        )
        children = await _child_kinds(cluster)
        await list_all(context, intake, children)
        health.started = True
        LEADING.set(1)
        try:
            return await _work(context, queue, intake, children, configuration, health, lease)
        finally:
            LEADING.set(0)
            await databases.close()


async def _work(
    context: Context,
    queue: KeyedQueue,
    intake: Intake,
    children: list[Kind],
    configuration: Configuration,
    health: _Health,
    lease: Lease | None,
) -> bool:
    """Workers first, kopf last: kopf takes every task that is younger than itself for its own when it ends."""
    workers, stop_watching = Workers(context, queue), asyncio.Event()
    workers.start()
    background = [
        asyncio.create_task(resync(context, intake, queue, children), name="resync"),
        asyncio.create_task(context.databases.watch(), name="database"),
        asyncio.create_task(health.stop.wait(), name="stop"),
    ]
    if lease is not None:
        background.append(asyncio.create_task(lease.lost.wait(), name="lost"))
    watching = asyncio.create_task(
        watch(
            intake,
            configuration,
            child_kinds=children,
            namespaces=context.settings.namespaces,
            stop=stop_watching,
            set_signals=health.set_signals,
        ),
        name="watch",
    )
    try:
        done, _ = await asyncio.wait([*background, watching], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled() and task.exception() is not None:
                logger.error("%s ended: %r", task.get_name(), task.exception())
    finally:
        lost = lease is not None and lease.lost.is_set()
        await workers.stop(LOST_PATIENCE if lost else STOP_PATIENCE)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        stop_watching.set()
        await asyncio.gather(watching, return_exceptions=True)
    return health.stop.is_set()


async def _child_kinds(cluster: Cluster) -> list[Kind]:
    """Kinds of children that this cluster has; HTTPRoute comes with CRDs of its own."""
    kinds = [POD, *CHILDREN]
    if not await cluster.serves(HTTP_ROUTE):
        logger.warning("the Gateway API's HTTPRoute is not installed; `edge.kind: gateway` cannot work here")
        kinds.remove(HTTP_ROUTE)
    return kinds


@contextlib.asynccontextmanager
async def _admin_server(options: Options, health: _Health) -> AsyncIterator[None]:
    async def alive(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ready(_: web.Request) -> web.Response:
        good = health.started and not health.stopping
        return web.json_response({"status": "ok" if good else "not ready"}, status=200 if good else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", alive),
            web.get("/ready", ready),
            web.get("/readyz", ready),
            web.get("/metrics", metrics),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, options.admin_host, options.admin_port).start()
        yield
    finally:
        await runner.cleanup()
