"""Who may do what in a module's schema: the app role reads and writes rows, and nobody else has anything.

Grants *converge*: a right that is there and not wanted is revoked, whoever gave it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from moorage_operator.database.sql import identifier
from moorage_operator.plan.names import DatabaseNames

RECORD_TABLE: Final = "moorage_migrations"
"""Where the migrator records the revisions that it finished."""
_READ_ONLY: Final = frozenset({RECORD_TABLE, "alembic_version"})
"""The app may see how far the migrations are, and never pretend."""
_ROWS: Final = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
_SEQUENCE: Final = frozenset({"USAGE", "SELECT"})


# Names are always quoted, as `sql.identifier` does, so that what is there compares equal to what is wanted.
_RELATIONS: Final = """
    SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END
           || format('"%s"."%s"', n.nspname, replace(c.relname, '"', '""')) AS object,
           c.relname, c.relkind::text, c.relacl
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
"""
_PRESENT: Final = f"""
    SELECT format('SCHEMA "%s"', n.nspname) AS object, a.grantee, a.privilege_type
    FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = $1
    UNION ALL
    SELECT r.object, a.grantee, a.privilege_type FROM ({_RELATIONS}) r, aclexplode(r.relacl) a
"""  # noqa: S608 - both are constants


@dataclass(frozen=True, slots=True)
class _Right:
    """One privilege of one role on one object (``on`` is the SQL after ``ON``)."""

    on: str
    role: str
    privilege: str


async def converge(connection: Any, names: DatabaseNames) -> int:
    """Make the rights in the schema as they should be, in one transaction; returns the number of changes."""
    async with connection.transaction():
        # As the owner: an admin who is no superuser has no rights of its own on the objects.
        await connection.execute(f"SET LOCAL ROLE {identifier(names.owner)}")
        have, want = await _present(connection, names), await _wanted(connection, names)
        statements = [
            *(
                f"REVOKE {right.privilege} ON {right.on} FROM {_role(right.role)}"
                for right in _sorted(have - want)
            ),
            *(
                f"GRANT {right.privilege} ON {right.on} TO {_role(right.role)}"
                for right in _sorted(want - have)
            ),
            *await _default_statements(connection, names),
        ]
        for statement in statements:
            await connection.execute(statement)
    return len(statements)


async def _wanted(connection: Any, names: DatabaseNames) -> set[_Right]:
    rights = {_Right(f"SCHEMA {identifier(names.schema)}", names.app, "USAGE")}
    for on, name, kind in await _relations(connection, names.schema):
        privileges = _SEQUENCE if kind == "S" else frozenset({"SELECT"}) if name in _READ_ONLY else _ROWS
        rights |= {_Right(on, names.app, privilege) for privilege in privileges}
    return rights


async def _present(connection: Any, names: DatabaseNames) -> set[_Right]:
    """Every right in the schema that somebody but the owner has; the empty role name is PUBLIC."""
    rows = await connection.fetch(_PRESENT, names.schema)
    roles = {0: ""} | {
        row["oid"]: row["rolname"]
        for row in await connection.fetch(
            "SELECT oid, rolname FROM pg_roles WHERE oid = ANY($1::oid[])", [row["grantee"] for row in rows]
        )
    }
    rights = {_Right(row["object"], roles.get(row["grantee"], ""), row["privilege_type"]) for row in rows}
    return {right for right in rights if right.role != names.owner}


async def _relations(connection: Any, schema: str) -> list[tuple[str, str, str]]:
    """Tables, views and sequences of the schema: SQL after ``ON``, bare name, ``relkind``."""
    rows = await connection.fetch(_RELATIONS, schema)
    return [(row["object"], row["relname"], row["relkind"]) for row in rows]


async def _default_statements(connection: Any, names: DatabaseNames) -> list[str]:
    """What new objects of the owner give the app, so that a migration needs no grant of its own."""
    rows = await connection.fetch(
        "SELECT d.defaclobjtype::text AS kind, pg_get_userbyid(a.grantee) AS role, a.grantee, a.privilege_type "
        "FROM pg_default_acl d JOIN pg_namespace n ON n.oid = d.defaclnamespace, aclexplode(d.defaclacl) a "
        "WHERE n.nspname = $1 AND pg_get_userbyid(d.defaclrole) = $2",
        names.schema,
        names.owner,
    )
    have = {
        _Right(row["kind"], "" if row["grantee"] == 0 else row["role"], row["privilege_type"])
        for row in rows
        if row["role"] != names.owner
    }
    want = {_Right("r", names.app, privilege) for privilege in _ROWS}
    want |= {_Right("S", names.app, privilege) for privilege in _SEQUENCE}
    kinds = {"r": "TABLES", "S": "SEQUENCES", "f": "FUNCTIONS", "T": "TYPES"}
    alter = f"ALTER DEFAULT PRIVILEGES IN SCHEMA {identifier(names.schema)}"
    return [
        *(
            f"{alter} REVOKE {r.privilege} ON {kinds[r.on]} FROM {_role(r.role)}"
            for r in _sorted(have - want)
        ),
        *(f"{alter} GRANT {r.privilege} ON {kinds[r.on]} TO {_role(r.role)}" for r in _sorted(want - have)),
    ]


def _sorted(rights: Iterable[_Right]) -> list[_Right]:
    return sorted(rights, key=lambda right: (right.on, right.role, right.privilege))


def _role(name: str) -> str:
    return identifier(name) if name else "PUBLIC"
