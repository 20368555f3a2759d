"""The event bus of an installation, made and kept in its database: who may publish and read what.

The schema `moorage_bus` and its functions are the kernel's (`moorage.events.busschema`); here is the role that owns
them, and the account that acts for it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from moorage.events import busschema
from moorage_operator.database.sql import identifier
from moorage_operator.plan.names import DatabaseNames, digest


@dataclass(frozen=True, slots=True)
class Declared:
    """What a Module's ``spec.events`` says, as CloudEvents types, and what it needs to be read with."""

    publishes: Collection[str]
    subscribes: Collection[str]
    core_namespace: str
    partitions: int

    def __bool__(self) -> bool:
        return bool(self.publishes or self.subscribes)


def owner_role(installation: str) -> str:
    """The role that owns the bus; its hash is of two parts, so that it is no module's."""
    return f"mg_{digest([installation, 'bus'], 20)}_bus"


async def converge(connection: Any, names: DatabaseNames, declared: Declared) -> None:
    """Give the Module's app role what is *declared* on the bus, and take away the rest; the bus is made if need be.

    Who calls holds a lock against others that make the bus: roles are not the database's alone.

    Raises:
        TopicTakenError: another Module of the namespace publishes a topic of *declared*; nothing was changed.
        ForeignBusError: the database holds another installation's bus.
    """
    owner = owner_role(names.installation)
    await ensure_role(connection, owner)
    await busschema.ensure_bus(connection, owner)
    await busschema.converge_access(
        connection,
        busschema.Access(
            role=names.app,
            namespace=names.namespace,
            module=names.module,
            publishes=declared.publishes,
            subscribes=declared.subscribes,
            core_namespace=declared.core_namespace,
            partitions=declared.partitions,
        ),
    )


async def forget(connection: Any, names: DatabaseNames) -> None:
    """Take everything on the bus from the Module, and release its topics; idempotent."""
    owner = await connection.fetchval(
        "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = $1", busschema.SCHEMA
    )
    if owner == owner_role(names.installation):
        await busschema.remove_access(connection, names.app)


async def ensure_role(connection: Any, role: str) -> None:
    """Make *role*, which cannot log in, and let the admin act for it."""
    if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
        await connection.execute(f"CREATE ROLE {identifier(role)} NOLOGIN")
    # Membership lets an admin who is no superuser act for the role: make its schema, end its sessions.
    # Since PostgreSQL 16 the maker of a role may administer it, but neither become it nor use its rights.
    kinds = ("SET", "USAGE") if connection.get_server_version().major >= 16 else ("MEMBER",)
    for kind in kinds:
        if not await connection.fetchval("SELECT pg_has_role(current_user, $1, $2)", role, kind):
            await connection.execute(f"GRANT {identifier(role)} TO CURRENT_USER")
