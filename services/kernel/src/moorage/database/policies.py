"""Whether the tables of a schema keep tenants apart: asked after each migration, inside its transaction."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, MetaData

from moorage.database import tenancy

_MEND: Final = "call tenanted({table!r}) of moorage.migrations in the migration"
_POSTGRES_15: Final = 150000


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one object, with the mend; ``refused``: the migration must not stay."""

    object: str
    text: str
    refused: bool = True

    def __str__(self) -> str:
        return f"{self.object}: {self.text}"


def findings(connection: Connection) -> list[Finding]:
    """Everything in the connection's first schema by which one tenant could meet another's rows."""
    tables = {row["table"]: row for row in _rows(connection, _TABLES)}
    tenants = {name for name, row in tables.items() if not row["untenanted"]}
    return [
        *(finding for name in sorted(tenants) for finding in _of_table(name, tables[name])),
        *_of_views(connection),
        *_of_functions(connection),
        *_of_keys(connection, tenants),
    ]


def differences(connection: Connection, metadata: MetaData) -> list[Finding]:
    """What `findings` refuses, and tables that are `moorage.Tenanted` in the code alone."""
    kept_apart = {row["table"] for row in _rows(connection, _TABLES) if not row["untenanted"]}
    declared = {table.name for table in metadata.tables.values() if tenancy.MARK in table.info}
    missing = [
        Finding(f"table {name}", f"its class is Tenanted; {_MEND.format(table=name)}")
        for name in sorted(declared - kept_apart)
    ]
    return missing + [finding for finding in findings(connection) if finding.refused]


def _of_table(name: str, row: Mapping[str, Any]) -> Iterator[Finding]:
    mend = _MEND.format(table=name)
    if not row["enabled"] or not row["forced"]:
        how = "no row-level security" if not row["enabled"] else "row-level security that its owner passes by"
        yield Finding(
            f"table {name}",
            f"it has a column tenant_id, but {how}; {mend}, or untenanted({name!r}, 'why') if all tenants may read it",
        )
        return
    policies = {policy["name"]: policy for policy in row["policies"]}
    ours = policies.pop(tenancy.TENANT_POLICY, None)
    if ours is None or not _compares(ours):
        what = "has no" if ours is None else "has another"
        yield Finding(
            f"table {name}", f"it {what} policy {tenancy.TENANT_POLICY} than the standard one; {mend}"
        )
    owner = policies.pop(tenancy.OWNER_POLICY, None)
    if owner is None or not _is_owners(owner, row["owner"]):
        yield Finding(
            f"table {name}",
            f"policy {tenancy.OWNER_POLICY} is not the standard one, for sessions of the owner {row['owner']} alone; "
            f"migrations reach every row by it; {mend}",
        )
    system = policies.pop(tenancy.SYSTEM_POLICY, None)
    if system is not None and tenancy.SCOPE_SETTING not in str(system["using"]):
        yield Finding(
            f"table {name}",
            f"policy {tenancy.SYSTEM_POLICY} is not the standard one; {mend}, with system=True",
        )
    for policy in policies.values():
        if policy["permissive"]:
            yield Finding(
                f"table {name}",
                f"policy {policy['name']} lets rows through beside the tenant's own; make it AS RESTRICTIVE",
            )


def _compares(policy: Mapping[str, Any]) -> bool:
    """Whether it is for everybody and everything, and lets the tenant's own rows through, no others."""
    conditions = {_plain(policy["using"]), _plain(policy["check"])}
    return policy["permissive"] and policy["all"] and policy["roles"] == [] and conditions == {_WANTED}


def _is_owners(policy: Mapping[str, Any], owner: str) -> bool:
    wanted = {_plain(f"session_user = '{owner}'")}
    conditions = {
        _plain(policy["using"]).removesuffix("::name"),
        _plain(policy["check"]).removesuffix("::name"),
    }
    return policy["roles"] == [owner] and conditions == wanted


def _plain(condition: str | None) -> str:
    """A condition as PostgreSQL writes it, without parentheses, casts, letter case and spaces."""
    shown = (condition or "").replace("::text", "").translate({ord(char): None for char in "() "})
    return shown.lower()


_WANTED: Final = _plain(f"tenant_id = {tenancy.CURRENT_TENANT}")


def _of_views(connection: Connection) -> Iterator[Finding]:
    version = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
    for row in _rows(connection, _VIEWS):
        name = row["view"]
        if row["kind"] == "m":
            yield Finding(
                f"materialized view {name}",
                "it keeps the rows of all tenants, where no policy holds; use a view or a tenanted table",
            )
        elif version < _POSTGRES_15:
            yield Finding(
                f"view {name}",
                "before PostgreSQL 15 a view can only read with its owner's rights, not with those of whoever asks; "
                "query the table, or use PostgreSQL 15 or later",
            )
        elif not row["invoker"]:
            yield Finding(
                f"view {name}",
                "it reads with its owner's rights, not with those of whoever asks; make it "
                f"CREATE VIEW {name} WITH (security_invoker = true) AS …",
            )


def _of_functions(connection: Connection) -> Iterator[Finding]:
    for row in _rows(connection, _FUNCTIONS):
        yield Finding(
            f"function {row['function']}",
            "it is SECURITY DEFINER, so it runs with the owner's rights for whoever calls it; leave that out",
        )


def _of_keys(connection: Connection, tenants: set[str]) -> Iterator[Finding]:
    for row in _rows(connection, _KEYS):
        name, other, columns = row["table"], row["other"], row["columns"]
        if name not in tenants:
            continue
        if row["kind"] == "f":
            if other in tenants and not row["paired"]:
                yield Finding(
                    f"foreign key {row['name']} of table {name}",
                    f"policies do not hold for foreign keys: a row could refer to one of another tenant's in {other}, "
                    f"and be deleted with it; use (tenant_id, {', '.join(columns)}) referring to "
                    f"{other} (tenant_id, {', '.join(row['others'])})",
                )
        elif "tenant_id" not in columns:
            yield Finding(
                f"unique {row['name']} of table {name}",
                "it holds across tenants, so that a refusal tells one what another has; if that is not meant, make it "
                f"unique over (tenant_id, {', '.join(columns)})",
                refused=False,
            )


def _rows(connection: Connection, query: str) -> list[Mapping[str, Any]]:
    return [dict(row) for row in connection.exec_driver_sql(query).mappings()]


_SCHEMA: Final = "SELECT oid FROM pg_namespace WHERE nspname = current_schema()"

_TABLES: Final = f"""
SELECT c.relname AS table, c.relrowsecurity AS enabled, c.relforcerowsecurity AS forced,
    pg_get_userbyid(c.relowner) AS owner,
    bool_or(coalesce(p.polname = '{tenancy.UNTENANTED_MARK}', false)) AS untenanted,
    coalesce(json_agg(json_build_object(
        'name', p.polname, 'permissive', p.polpermissive, 'all', p.polcmd = '*',
        'roles', (SELECT coalesce(json_agg(pg_get_userbyid(r)), '[]') FROM unnest(p.polroles) r WHERE r <> 0),
        'using', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid)
    )) FILTER (WHERE p.oid IS NOT NULL), '[]') AS policies
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
LEFT JOIN pg_policy p ON p.polrelid = c.oid
WHERE c.relnamespace = ({_SCHEMA}) AND c.relkind IN ('r', 'p', 'f')
GROUP BY c.oid
"""  # noqa: S608 - only constants

_TENANTED: Final = f"""
SELECT c.oid FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
WHERE c.relkind IN ('r', 'p') AND NOT a.attisdropped AND c.relrowsecurity
    AND c.relnamespace = ({_SCHEMA})
"""  # noqa: S608 - only constants

_VIEWS: Final = f"""
WITH RECURSIVE reading(oid) AS (
    {_TENANTED}
    UNION
    SELECT r.ev_class FROM reading
    JOIN pg_depend d ON d.refobjid = reading.oid AND d.refclassid = 'pg_class'::regclass
        AND d.classid = 'pg_rewrite'::regclass
    JOIN pg_rewrite r ON r.oid = d.objid
)
SELECT c.relname AS view, c.relkind::text AS kind,
    coalesce((SELECT option_value::boolean FROM pg_options_to_table(c.reloptions)
              WHERE option_name = 'security_invoker'), false) AS invoker
FROM pg_class c JOIN reading USING (oid) WHERE c.relkind IN ('v', 'm') ORDER BY 1
"""  # noqa: S608 - only constants

_FUNCTIONS: Final = f"""
SELECT p.oid::regprocedure::text AS function FROM pg_proc p
WHERE p.pronamespace = ({_SCHEMA}) AND p.prosecdef AND NOT EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
ORDER BY 1
"""  # noqa: S608 - only constants

_KEYS: Final = f"""
SELECT c.relname AS table, k.conname AS name, k.contype::text AS kind,
    f.relname AS other,
    (SELECT array_agg(a.attname::text ORDER BY u.at) FROM unnest(k.conkey) WITH ORDINALITY u(number, at)
     JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number) AS columns,
    (SELECT array_agg(a.attname::text ORDER BY u.at) FROM unnest(k.confkey) WITH ORDINALITY u(number, at)
     JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.number) AS others,
    EXISTS (SELECT FROM unnest(k.conkey, k.confkey) u(here, there)
            JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.here AND a.attname = 'tenant_id'
            JOIN pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = u.there AND b.attname = 'tenant_id'
    ) AS paired
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid LEFT JOIN pg_class f ON f.oid = k.confrelid
WHERE c.relnamespace = ({_SCHEMA}) AND k.contype IN ('f', 'u') AND k.conparentid = 0
UNION ALL
SELECT c.relname, i.relname, 'u', NULL,
    (SELECT array_agg(coalesce(a.attname::text, '…') ORDER BY u.at)
     FROM unnest(x.indkey::int2[]) WITH ORDINALITY u(number, at)
     LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = u.number AND u.number <> 0), NULL, false
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
WHERE c.relnamespace = ({_SCHEMA}) AND x.indisunique AND NOT x.indisprimary
    AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.indexrelid AND k.contype IN ('u', 'p', 'x'))
ORDER BY 1, 2
"""  # noqa: S608 - only constants
