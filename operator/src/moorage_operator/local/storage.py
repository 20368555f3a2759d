"""The databases of local mode: an embedded PostgreSQL, with the schema and the two roles that a cluster would have."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

from moorage.database.embedded import EmbeddedError, EmbeddedPostgres
from moorage_crds.v1alpha1.module import Events
from moorage_operator.database import Provisioner
from moorage_operator.local.catalog import LocalModule
from moorage_operator.plan import names
from moorage_operator.plan.names import DatabaseNames
from moorage_operator.plan.settings import PlatformSettings

_UIDS: Final = uuid.UUID("0f0d7f6e-0d4a-5b8e-9a53-6b4f0f1f2c11")
"""Namespace of the UIDs that stand for a Module's `metadata.uid` here."""


def local_uid(module: LocalModule) -> str:
    """The same UID at every start, so that the module's claim on its schema holds."""
    return str(uuid.uuid5(_UIDS, "/".join(module.key)))


class Storage:
    """Starts the server when the first module needs it. Everything it returns holds a password: never show it."""

    def __init__(self, folder: Path, settings: PlatformSettings) -> None:
        self._server = EmbeddedPostgres(folder)
        self._settings = settings
        self._provisioner: Provisioner | None = None
        self._starting: asyncio.Future[str] | None = None
        self._passwords: dict[tuple[str, str], str] = {}

    @property
    def running(self) -> bool:
        """Whether the server was started."""
        return self._provisioner is not None

    @property
    def pid(self) -> int | None:
        """The server's process while it runs."""
        return self._server.pid if self._provisioner is not None else None

    async def start(self) -> None:
        """Start the server; idempotent. Raises `moorage.database.embedded.EmbeddedError`."""
        if self._provisioner is None:
            # Shielded: a start that is broken off would leave a server that nobody knows of. `stop` waits for it.
            self._starting = asyncio.ensure_future(self._server.start())
            self._provisioner = Provisioner(await asyncio.shield(self._starting))

    async def recover(self) -> bool:
        """Start the server again if it is gone, on the same port, so that DSNs still hold; whether it was gone."""
        if self._provisioner is None or self._server.pid is not None:
            return False
        await self._server.stop()
        await self._server.start()
        return True

    async def stop(self) -> None:
        """Stop the server; idempotent."""
        provisioner, self._provisioner = self._provisioner, None
        starting, self._starting = self._starting, None
        if provisioner is not None:
            await provisioner.close()
        if starting is not None:
            with contextlib.suppress(EmbeddedError):
                await starting
                await self._server.stop()

    async def provision(self, module: LocalModule) -> Mapping[str, str]:
        """Make or converge the schema and both roles of *module*; returns the app role's environment.

        A password lives as long as this object: a process that runs keeps its access when this is called
        again.
        """
        provisioner, found = self._ready(), self._names(module)
        password = await provisioner.ensure(
            found, local_uid(module), app_password=self._passwords.get(module.key)
        )
        self._passwords[module.key] = password
        events = module.module.spec.events or Events()
        await provisioner.ensure_events(
            found,
            publishes=events.publishes,
            subscribes=[subscription.type for subscription in events.subscribes],
            core_namespace=self._settings.core_namespace,
        )
        dsn = provisioner.app_dsn(found, password)
        return {"DATABASE_DSN": dsn, "DATABASE_DIRECT_DSN": dsn}

    @contextlib.asynccontextmanager
    async def owner(self, module: LocalModule, seconds: int) -> AsyncIterator[Mapping[str, str]]:
        """The owner role's environment for one migration of at most *seconds*; afterwards it cannot log in."""
        provisioner, found = self._ready(), self._names(module)
        dsn = await provisioner.open_owner(found, seconds=seconds)
        try:
            yield {"DATABASE_DSN": dsn}
        finally:
            await provisioner.close_owner(found)

    def _names(self, module: LocalModule) -> DatabaseNames:
        return names.database_names(self._settings.installation, *module.key)

    def _ready(self) -> Provisioner:
        assert self._provisioner is not None, "start() comes first"
        return self._provisioner
