"""Runs kopf's watches inside the operator's own event loop."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from moorage_operator.apply.kinds import Kind
from moorage_operator.handlers import children, module, permission, route
from moorage_operator.handlers.sink import Sink

_IDENTITY: Any = "moorage-operator"
"""Only peering uses it; kopf's own guess asks for the user's name, which a container's user does not have."""
_INACTIVITY = 70.0
"""Seconds without even a bookmark after which a watch counts as dead (kopf #1276)."""


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # the operator posts Events of its own
    settings.peering.standalone = True  # peering is no leader election (kopf #1266); a Lease is
    settings.scanning.disabled = True  # no watch on namespaces and CRDs, and no right to it
    settings.watching.inactivity_timeout = _INACTIVITY
    settings.watching.reconnect_backoff = 1.0
    settings.queueing.worker_limit = None  # a limit below the number of objects can deadlock (kopf #1243)
    settings.queueing.idle_timeout = 1.0  # a handler here only queues a key
    settings.process.ultimate_exiting_timeout = None  # this process is not kopf's to kill
    return settings


async def _connection(configuration: Configuration) -> kopf.ConnectionInfo:
    header = await _maybe_await(configuration.get_api_key_with_prefix("BearerToken"))
    scheme, _, token = (header or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        ca_data=configuration.ca_cert_data,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        scheme=scheme or None,
        token=token or None,
        proxy_url=configuration.proxy,
    )


async def _maybe_await(value: Any) -> Any:
    return await value if asyncio.iscoroutine(value) else value


async def watch(
    sink: Sink,
    configuration: Configuration,
    *,
    child_kinds: Sequence[Kind],
    namespaces: Sequence[str],
    stop: asyncio.Event,
    set_signals: Callable[[], None],
) -> None:
    """Feed *sink* from watches until *stop* is set.

    Args:
        child_kinds: kinds to watch by the module's label, besides the three of Moorage.
        namespaces: to watch; empty: the whole cluster.
        set_signals: sets the process's signal handlers again, since kopf sets its own: the operator ends its own work
            first, and kopf by *stop*.

    Raises:
        Exception: kopf gave up; the process should end and be started anew.
    """
    logging.getLogger("kopf").setLevel(logging.WARNING)
    registry, settings = kopf.OperatorRegistry(), _settings()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        # Asked again whenever the API server answers 401: a service account's token changes every hour.
        return await _connection(configuration)

    kopf.on.login(registry=registry)(login)
    module.register(registry, sink)
    route.register(registry, sink)
    permission.register(registry, sink)
    children.register(registry, settings, sink, child_kinds)
    before = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=settings,
        standalone=True,
        identity=_IDENTITY,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
        stop_flag=stop,
    )
    set_signals()
    await kopf.run_tasks(tasks, ignored=before)
