"""The database side of reconciling: schema and roles made once and then looked after, and a watch on the server."""

import asyncio
import base64
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from moorage_crds import units
from moorage_crds.v1alpha1 import Module
from moorage_crds.v1alpha1.module import Events
from moorage_operator.database import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    ForeignSchemaError,
    Provisioner,
    RoleLimits,
    TopicTakenError,
)
from moorage_operator.plan.facts import DatabaseFact
from moorage_operator.plan.names import ANNOTATION_ADOPT, DatabaseNames, database_names
from moorage_operator.plan.settings import DatabaseSettings, PlatformSettings
from moorage_operator.plan.world import DatabaseAccess, Manifest

logger = logging.getLogger(__name__)
RECHECK: Final = 600.0
"""Seconds after which schema, roles and grants of a module are looked at again, although nothing changed."""
PING_INTERVAL: Final = 10.0


@dataclass(frozen=True, slots=True)
class Provision:
    """What came of looking after a module's schema. ``access`` may be that of before, where the database is away."""

    fact: DatabaseFact
    access: DatabaseAccess | None


class Databases:
    """Schemas and roles of all modules, through one `Provisioner` that follows the mounted DSN."""

    def __init__(self, settings: PlatformSettings, on_change: Callable[[], None]) -> None:
        self._settings = settings
        self._on_change = on_change
        self._provisioner: Provisioner | None = None
        self._dsn: str | None = None
        self._good: dict[str, tuple[str, float]] = {}
        """By UID: for which inputs the last look was good, and when (monotonic seconds)."""
        self._up: bool | None = None

    def names(self, namespace: str, module: str) -> DatabaseNames:
        """Schema and roles of a module."""
        return database_names(self._settings.installation, namespace, module)

    async def close(self) -> None:
        """Close the connections."""
        if self._provisioner is not None:
            await self._provisioner.close()

    async def provisioner(self) -> Provisioner:
        """The provisioner for the DSN that is mounted now.

        Raises:
            DatabaseRefusedError: there is none.
        """
        dsn = _read_dsn(self._settings.database)
        if self._provisioner is None or dsn != self._dsn:
            await self.close()
            try:
                self._provisioner, self._dsn = _provisioner(dsn, self._settings.database), dsn
            except ValueError:  # its text quotes what stands there
                raise DatabaseRefusedError(
                    "the admin DSN is not of the form postgresql://user:password@host:port/db"
                ) from None
            self._good.clear()
        return self._provisioner

    async def look_after(self, module: Module, known: DatabaseAccess | None) -> Provision:
        """Make its schema, roles, grants and topics right; *known*: what its pods hold already. Never raises."""
        uid, metadata = module.metadata.uid or "", module.metadata
        names = self.names(metadata.namespace or "default", metadata.name)
        try:
            provisioner = await self.provisioner()
            password = _password(known)
            events = module.spec.events or Events()
            inputs = f"{metadata.annotations.get(ANNOTATION_ADOPT)} {known is not None} {self._dsn} {events}"
            if known is None or password is None or not self._fresh(uid, inputs):
                password = await provisioner.ensure(
                    names, uid, app_password=password, adopt=metadata.annotations.get(ANNOTATION_ADOPT)
                )
                await provisioner.ensure_events(
                    names,
                    publishes=events.publishes,
                    subscribes=[subscription.type for subscription in events.subscribes],
                    core_namespace=self._settings.core_namespace,
                )
                self._good[uid] = (inputs, time.monotonic())
        except (
            ForeignSchemaError,
            TopicTakenError,
            DatabaseRefusedError,
            DatabaseUnavailableError,
        ) as error:
            self._good.pop(uid, None)
            return Provision(_failed(error), known)
        access = DatabaseAccess(
            dsn=provisioner.app_dsn(names, password),
            direct_dsn=provisioner.app_dsn(names, password, direct=True) if self._pooled else None,
        )
        return Provision(DatabaseFact("done", message=f"schema {names.schema}"), access)

    def _fresh(self, uid: str, inputs: str) -> bool:
        good = self._good.get(uid)
        return (
            good is not None
            and good[0] == inputs
            and time.monotonic() - good[1] < RECHECK
            and self._up is not False
        )

    @property
    def _pooled(self) -> bool:
        return self._settings.database.module_host is not None

    async def watch(self) -> None:
        """Ask the server for ever whether it is there, and say so (`on_change`) when that changes."""
        while True:
            if self._settings.database.admin_dsn_file is not None:
                up = await self._ping()
                if up != self._up:
                    first, self._up = self._up is None, up
                    (logger.info if up else logger.warning)("the database is %s", "there" if up else "away")
                    if not first or not up:
                        self._on_change()
            await asyncio.sleep(PING_INTERVAL)

    async def _ping(self) -> bool:
        try:
            await (await self.provisioner()).ping()
        except (DatabaseUnavailableError, DatabaseRefusedError):
            return False
        return True


def _failed(error: Exception) -> DatabaseFact:
    match error:
        case ForeignSchemaError():
            reason = "SchemaNotOurs"
        case TopicTakenError():
            reason = "TopicTaken"
        case DatabaseRefusedError():
            reason = "DatabaseRefused"
        case _:
            reason = "DatabaseUnavailable"
    return DatabaseFact("failed", reason, str(error))


def _read_dsn(settings: DatabaseSettings) -> str:
    mend = "set the chart value `database.adminSecretRef`"
    if settings.admin_dsn_file is None:
        raise DatabaseRefusedError(f"the installation has no database; {mend}")
    try:
        dsn = Path(settings.admin_dsn_file).read_text().strip()
    except OSError as error:
        raise DatabaseRefusedError(f"the admin DSN cannot be read ({error.strerror}); {mend}") from None
    if not dsn:
        raise DatabaseRefusedError(
            f"the admin DSN is empty; mend the Secret of `database.adminSecretRef`, or {mend}"
        )
    return dsn


def _provisioner(dsn: str, settings: DatabaseSettings) -> Provisioner:
    limits = RoleLimits(
        connections=settings.connection_limit,
        statement_timeout_ms=units.duration_ms(settings.statement_timeout),
    )
    address = None
    if settings.module_host is not None or settings.module_port is not None:
        parts = urlsplit(dsn)
        address = (settings.module_host or parts.hostname or "", settings.module_port or parts.port or 5432)
    return Provisioner(dsn, limits=limits, module_address=address)


def _password(access: DatabaseAccess | None) -> str | None:
    found = urlsplit(access.dsn).password if access is not None else None
    return unquote(found) if found is not None else None


def access_of(secret: Manifest | None) -> DatabaseAccess | None:
    """What a module's live Secret gives; ``None``: there is none, or nothing in it."""
    data = (secret or {}).get("data") or {}
    if "dsn" not in data:
        return None
    decoded = {key: base64.b64decode(value).decode() for key, value in data.items()}
    return DatabaseAccess(decoded["dsn"], decoded.get("direct_dsn"))
