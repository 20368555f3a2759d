"""The Postgres bus as an administrator sees it: its schema made and upgraded, and who may do what on it.

Everything here runs on an asyncpg connection of an account that may become the owner of the schema (a member of that
role with SET; no superuser), converges, and may be run by any number of operators at once: they take turns by an
advisory lock, and one that finds a newer schema than its own leaves it alone.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from moorage.events.event import topic_of

SCHEMA: Final = "moorage_bus"
VERSION: Final = 2
"""Raise it with every change of ``bus.sql``."""
API: Final[Mapping[str, str]] = {
    "publish": "text[], text[], bytea[], text[]",
    "channels": "",
    "heartbeat": "uuid, text[], interval, integer",
    "release": "uuid, text[], smallint[]",
    "leave": "uuid",
    "fetch": "uuid, text[], smallint[], bigint[], bigint[], integer, bigint",
    "commit": "uuid, text[], smallint[], bigint[], bigint[]",
    "lag": "",
    "trim": "interval, integer",
}
"""The functions that app roles may call, and their arguments."""
CORE: Final = "platform"
"""First word of the types that belong to the core services, and that every namespace may subscribe to."""
_PINNED: Final = "SET LOCAL search_path = pg_catalog, pg_temp"
"""First in every transaction: an operator in ``public`` would else run with the rights of the administrator."""
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('moorage:moorage_bus', 0))"


class TopicTakenError(Exception):
    """A Module publishes a type whose topic is another's; the text names both and the mend. Nothing was changed."""


class ForeignBusError(Exception):
    """The schema ``moorage_bus`` is not this installation's; the text says whose, and the mend."""


@dataclass(frozen=True, slots=True)
class Access:
    """What one Module may do on the bus. Types are CloudEvents types, as in ``spec.events``."""

    role: str
    """Its app role."""
    namespace: str
    module: str
    publishes: Collection[str] = ()
    subscribes: Collection[str] = ()
    core_namespace: str = "moorage-system"
    partitions: int = 8
    """Of each topic that is made now; those that exist keep theirs."""

    def home(self, topic: str) -> str:
        """The namespace that *topic* lives in."""
        return self.core_namespace if topic.partition(".")[0] == CORE else self.namespace


async def installed(connection: Any) -> bool:
    """Whether there is a bus in this database; one query, and no right is needed."""
    return bool(await connection.fetchval("SELECT pg_catalog.to_regnamespace('moorage_bus') IS NOT NULL"))


async def ensure_bus(connection: Any, owner_role: str) -> bool:
    """Make the schema, or bring it up to `VERSION`; returns whether something was done.

    *owner_role* exists, cannot log in, and the connection's account may become it.

    Raises:
        ForeignBusError: there is such a schema, and another role owns it.
    """
    async with connection.transaction():
        await connection.execute(_PINNED)
        if await _version(connection, owner_role) >= VERSION:
            return False
        await connection.execute(_LOCK)
        version = await _version(connection, owner_role)
        if version >= VERSION:
            return False
        if version < 0:
            await connection.execute(f'CREATE SCHEMA moorage_bus AUTHORIZATION "{owner_role}"')
        await connection.execute(f'SET LOCAL ROLE "{owner_role}"')
        steps, functions = read_sql()
        for number, script in steps:
            if number > version:
                await connection.execute(script)
        await connection.execute(functions)
        await connection.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA moorage_bus FROM PUBLIC")
        await _converge_rights(connection)
        comment = json.dumps({"moorage": {"bus": VERSION}})
        await connection.execute(f"COMMENT ON SCHEMA moorage_bus IS '{comment}'")
    return True


async def converge_access(connection: Any, access: Access) -> None:
    """Make what *access* says so, and nothing else: what its Module declared once and no longer does is taken away.

    A topic is made by whoever names it first, and belongs to the first Module that publishes a type in it. One that
    its owner does not declare any more is anybody's to claim; until then the owner may empty its outbox: it would
    be stuck otherwise. A new subscriber begins with the oldest event that is still there. A topic without owner and
    readers is deleted with its events. The bus must be `installed`.

    Raises:
        TopicTakenError: see there.
    """
    published, read = (_topics(types) for types in (access.publishes, access.subscribes))
    for topic, type_ in published.items():
        if access.home(topic) != access.namespace:
            raise TopicTakenError(
                f"events.publishes: {access.namespace}/{access.module} may not publish {type_}: types `{CORE}.*` are "
                f"those of the core services in namespace {access.core_namespace}; give the type another first word"
            )
    async with connection.transaction():
        await _as_owner(connection)
        if not published and not read:
            await _forget(connection, access.role)
            return
        me = await _register(connection, access)
        owned = [await _claim(connection, access, me, topic, type_) for topic, type_ in published.items()]
        await connection.execute(
            "UPDATE moorage_bus.topic SET retired = true "
            "WHERE owner = $1 AND NOT retired AND id <> ALL ($2::integer[])",
            me,
            owned,
        )
        subscribed = [await _topic(connection, access, topic) for topic in read]
        await _subscribe(connection, me, subscribed)
        await _sweep(connection)
        await _converge_rights(connection)


async def remove_access(connection: Any, role: str) -> None:
    """Take everything on the bus from *role*, and release the topics that its Module owned; idempotent."""
    if not await installed(connection):
        return
    async with connection.transaction():
        await _as_owner(connection)
        await _forget(connection, role)


def read_sql() -> tuple[list[tuple[int, str]], str]:
    """The steps of ``bus.sql``, with their numbers, and the script of its functions."""
    text = files("moorage.events").joinpath("bus.sql").read_text(encoding="utf-8")
    _, *parts = re.split(r"^-- (step \d+|functions)$", text, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    functions = sections.pop("functions")
    return sorted((int(name.removeprefix("step ")), script) for name, script in sections.items()), functions


async def _version(connection: Any, owner_role: str) -> int:
    """The version of the schema that is there; -1: none, 0: an empty one of ours."""
    row = await connection.fetchrow(
        "SELECT pg_get_userbyid(nspowner) AS owner, obj_description(oid, 'pg_namespace') AS comment "
        "FROM pg_namespace WHERE nspname = $1",
        SCHEMA,
    )
    if row is None:
        return -1
    if row["owner"] != owner_role:
        raise ForeignBusError(
            f"schema moorage_bus belongs to role {row['owner']}, so it is another installation's or not Moorage's; "
            "give each installation a database of its own"
        )
    try:
        return int(json.loads(row["comment"] or "")["moorage"]["bus"])
    except (ValueError, TypeError, KeyError):
        return 0


async def _as_owner(connection: Any) -> None:
    """For the rest of the transaction: alone, and as the owner of the schema."""
    await connection.execute(_PINNED)
    await connection.execute(_LOCK)
    owner = await connection.fetchval(
        "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = $1", SCHEMA
    )
    await connection.execute(f'SET LOCAL ROLE "{owner}"')
    # A module may hold a lock of its own rows as long as it likes; nobody else should wait for it.
    await connection.execute("SET LOCAL lock_timeout = '5s'")


def _topics(types: Iterable[str]) -> dict[str, str]:
    """Topics in one order for all, so that nobody waits crosswise, each with one of the *types* in it."""
    return {topic_of(type_): type_ for type_ in sorted(types, reverse=True)}


async def _topic(connection: Any, access: Access, topic: str) -> int:
    """The topic's id; it is made if it is missing."""
    home = access.home(topic)
    found = await connection.fetchval(
        "SELECT id FROM moorage_bus.topic WHERE namespace = $1 AND name = $2", home, topic
    )
    if found is None:
        found = await connection.fetchval(
            "INSERT INTO moorage_bus.topic (namespace, name, partitions) VALUES ($1, $2, $3) RETURNING id",
            home,
            topic,
            access.partitions,
        )
        await connection.execute(
            "INSERT INTO moorage_bus.partition (topic, number) SELECT $1, generate_series(0, $2::integer - 1)",
            found,
            access.partitions,
        )
    return int(found)


async def _register(connection: Any, access: Access) -> int:
    """The Module's number. What is right is not written again: its processes may hold the row's lock."""
    found = await connection.fetchrow(
        "SELECT id, role FROM moorage_bus.principal WHERE namespace = $1 AND module = $2",
        access.namespace,
        access.module,
    )
    if found is not None and found["role"] == access.role:
        return int(found["id"])
    return int(
        await connection.fetchval(
            "INSERT INTO moorage_bus.principal (role, namespace, module) VALUES ($1, $2, $3) "
            "ON CONFLICT (namespace, module) DO UPDATE SET role = excluded.role RETURNING id",
            access.role,
            access.namespace,
            access.module,
        )
    )


async def _claim(connection: Any, access: Access, me: int, topic: str, type_: str) -> int:
    found = await _topic(connection, access, topic)
    await connection.execute(
        "UPDATE moorage_bus.topic SET owner = $2, retired = false "
        "WHERE id = $1 AND (owner IS NULL OR retired)",
        found,
        me,
    )
    owner = await connection.fetchrow(
        "SELECT p.id, p.namespace, p.module FROM moorage_bus.topic x "
        "JOIN moorage_bus.principal p ON p.id = x.owner WHERE x.id = $1",
        found,
    )
    if owner["id"] != me:
        raise TopicTakenError(
            f"events.publishes: {type_} is of the topic {topic}, which belongs to Module "
            f"{owner['namespace']}/{owner['module']}: it published a type in it first; give the type another name, "
            f"such as {access.module}.{type_}, or delete that Module"
        )
    return found


async def _subscribe(connection: Any, me: int, topics: list[int]) -> None:
    await connection.execute(
        "DELETE FROM moorage_bus.subscription WHERE principal = $1 AND topic <> ALL ($2::integer[])",
        me,
        topics,
    )
    await connection.execute(
        """
        WITH added AS (
            INSERT INTO moorage_bus.subscription (principal, topic) SELECT $1, unnest($2::integer[])
            ON CONFLICT DO NOTHING RETURNING principal, topic
        )
        INSERT INTO moorage_bus.lease (principal, topic, partition, position)
        SELECT a.principal, p.topic, p.number,
               coalesce((SELECT min(e.position) FROM moorage_bus.event e
                          WHERE e.topic = p.topic AND e.partition = p.number), p.next)
          FROM added a JOIN moorage_bus.partition p ON p.topic = a.topic
        """,
        me,
        topics,
    )


async def _forget(connection: Any, role: str) -> None:
    await connection.execute("DELETE FROM moorage_bus.principal WHERE role = $1", role)
    await _sweep(connection)
    await _converge_rights(connection)


async def _sweep(connection: Any) -> None:
    """Delete topics that nobody publishes or reads any more."""
    gone = await connection.fetch(
        "DELETE FROM moorage_bus.topic x WHERE owner IS NULL "
        "AND NOT EXISTS (SELECT FROM moorage_bus.subscription s WHERE s.topic = x.id) RETURNING id"
    )
    if gone:
        await connection.execute(
            "DELETE FROM moorage_bus.event WHERE topic = ANY ($1::integer[])", [row["id"] for row in gone]
        )


# What the owner does not own by right: grants on the schema and all that is in it. The defaults of an object without
# a list of its own count, too: a function is PUBLIC's to call.
_PRESENT: Final = """
    SELECT 'SCHEMA ' || n.nspname AS object, n.nspowner AS owner, a.grantee, a.privilege_type AS privilege
      FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = 'moorage_bus'
    UNION ALL
    SELECT 'FUNCTION ' || p.oid::regprocedure, p.proowner, a.grantee, a.privilege_type
      FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace,
           aclexplode(coalesce(p.proacl, acldefault('', p.proowner))) a WHERE n.nspname = 'moorage_bus'
    UNION ALL
    SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || format('%I.%I', n.nspname, c.relname),
           c.relowner, a.grantee, a.privilege_type
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a
     WHERE n.nspname = 'moorage_bus'
"""
_WANTED: Final = """
    SELECT o.object, r.oid AS grantee, o.privilege
      FROM moorage_bus.principal p JOIN pg_roles r ON r.rolname = p.role,
           (SELECT 'SCHEMA moorage_bus' AS object, 'USAGE' AS privilege
            UNION ALL
            SELECT 'FUNCTION ' || f.oid::regprocedure, 'EXECUTE'
              FROM unnest($1::regprocedure[]) AS f(oid)) o
"""
_STATEMENTS: Final = f"""
    WITH present AS (SELECT object, grantee, privilege FROM ({_PRESENT}) x WHERE grantee <> owner),
         wanted AS ({_WANTED})
    SELECT format('REVOKE %s ON %s FROM %s', privilege, object,
                  CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)
      FROM (TABLE present EXCEPT TABLE wanted) extra
    UNION ALL
    SELECT format('GRANT %s ON %s TO %I', privilege, object, pg_get_userbyid(grantee))
      FROM (TABLE wanted EXCEPT TABLE present) missing
"""  # noqa: S608 - made of constants


async def _converge_rights(connection: Any) -> None:
    """Every registered role may use the schema and call the `API`; whoever else has anything, loses it."""
    api = [f"moorage_bus.{name}({arguments})" for name, arguments in API.items()]
    for row in await connection.fetch(_STATEMENTS, api):
        await connection.execute(row[0])
