"""What migrations are written with, beside Alembic's own ``op``::

    from moorage.migrations import standard_columns, tenanted

    def upgrade() -> None:
        op.create_table("post", sa.Column("title", sa.String(), nullable=False), *standard_columns())
        tenanted("post")

Everything here writes plain statements and reads nothing from the database, so that ``moorage migrate --sql`` can show
it.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from moorage.database import tenancy
from moorage.database.table import CONVENTION

__all__ = ["standard_columns", "tenanted", "untenanted"]

_SYSTEM_ROWS = f"tenant_id >= {tenancy.EVERY_TENANT}"
_TENANTS_ROWS = f"tenant_id = {tenancy.CURRENT_TENANT}"


def standard_columns() -> tuple[sa.Column[object] | sa.Constraint, ...]:
    """What every `moorage.Table` has: ``id`` with its primary key ``pk_<table>``, ``created_at``, ``updated_at``."""
    now = sa.text("now()")
    key = sa.PrimaryKeyConstraint("id")
    sa.event.listen(key, "after_parent_attach", _name_after_table)
    return (
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        key,
    )


def tenanted(
    table: str, *, existing: str | None = None, system: bool = False, key: Sequence[str] = ("id",)
) -> None:
    """Let each row of *table* belong to a tenant, and let PostgreSQL show it to that tenant alone.

    Adds what is missing of: the column ``tenant_id`` with the transaction's tenant as its default, the unique
    constraint on ``tenant_id`` and *key* that other tables' foreign keys refer to (and by which a tenant's rows are
    found), row-level security that holds for the table's owner too, the policy that compares ``tenant_id``, and one by
    which a session of the owner, that is, a migration, reaches every row. Run it again to mend what was changed by
    hand.

    Args:
        existing: the tenant of rows that are there already; ``None``: there are none without a tenant, else the
            migration fails.
        system: whether the module's code may ask for the rows of all tenants (``db.use_system``). Costs a tenant's
            queries the order of indexes that begin with ``tenant_id``.
        key: the primary key's columns; none for a partition, which has its table's constraints. Every partition is
            tenanted by itself, since it can be queried by itself.
    """
    name = _quoted(table)
    # Asked for first, as PostgreSQL refuses to add a column to a partition even if it is there.
    _unless(
        f"SELECT FROM pg_attribute WHERE attrelid = {_literal(name)}::regclass AND attname = 'tenant_id'",
        f"ALTER TABLE {name} ADD COLUMN tenant_id text",
    )
    if existing is not None:
        op.execute(f"UPDATE {name} SET tenant_id = {_literal(existing)} WHERE tenant_id IS NULL")  # noqa: S608 - quoted
    op.execute(
        f"ALTER TABLE {name} ALTER COLUMN tenant_id SET DEFAULT {tenancy.CURRENT_TENANT}, "
        f"ALTER COLUMN tenant_id SET NOT NULL"
    )
    if key:
        unique = _key_constraint(table, key)
        _unless(
            f"SELECT FROM pg_constraint WHERE conrelid = {_literal(name)}::regclass AND conname = {_literal(unique)}",
            f"ALTER TABLE {name} ADD CONSTRAINT {_quoted(unique)} "
            f"UNIQUE (tenant_id, {', '.join(map(_quoted, key))})",
        )
    op.execute(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    _policy(name, tenancy.UNTENANTED_MARK, None)
    _policy(name, tenancy.TENANT_POLICY, _TENANTS_ROWS)
    _owner_policy(name)
    _policy(name, tenancy.SYSTEM_POLICY, _SYSTEM_ROWS if system else None)


def untenanted(table: str, why: str) -> None:
    """Say that *table* has a column ``tenant_id`` and yet may be read by all tenants (a list of tenants, say).

    Without it, `moorage migrate` refuses such a table. Takes back what `tenanted` did, but for column and constraint.
    """
    if not why.strip():
        raise ValueError(f"untenanted({table!r}, …) needs a reason")
    name = _quoted(table)
    for policy in (tenancy.TENANT_POLICY, tenancy.OWNER_POLICY, tenancy.SYSTEM_POLICY):
        _policy(name, policy, None)
    op.execute(f"ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY")
    # A policy without row-level security does nothing; it is a mark that dumps and restores keep.
    _policy(name, tenancy.UNTENANTED_MARK, "true")
    op.execute(f"COMMENT ON POLICY {tenancy.UNTENANTED_MARK} ON {name} IS {_literal(why)}")


def _unless(query: str, statement: str) -> None:
    """Run *statement* if *query* has no row; asked by the database, since a script of SQL cannot."""
    op.execute(f"DO $$ BEGIN IF NOT EXISTS ({query}) THEN {statement}; END IF; END $$")


def _policy(table: str, name: str, condition: str | None) -> None:
    """Make the policy anew; ``None``: only take it away."""
    op.execute(f"DROP POLICY IF EXISTS {name} ON {table}")
    if condition is not None:
        op.execute(f"CREATE POLICY {name} ON {table} TO PUBLIC USING ({condition}) WITH CHECK ({condition})")


def _owner_policy(table: str) -> None:
    """Let the owner reach every row in sessions of its own: not where a view, or a function, of the owner's runs for
    somebody else.
    """
    op.execute(f"DROP POLICY IF EXISTS {tenancy.OWNER_POLICY} ON {table}")
    statement = (
        f"CREATE POLICY {tenancy.OWNER_POLICY} ON %1$s TO CURRENT_USER "
        "USING (session_user = %2$L) WITH CHECK (session_user = %2$L)"
    )
    op.execute(f"DO $$ BEGIN EXECUTE format({_literal(statement)}, {_literal(table)}, current_user); END $$")


def _key_constraint(table: str, key: Sequence[str]) -> str:
    """The name that `moorage.Tenanted` gives it."""
    columns = ["tenant_id", *key]
    unique = sa.UniqueConstraint(*columns)
    sa.Table(table, sa.MetaData(naming_convention=CONVENTION), *(sa.Column(name) for name in columns), unique)
    name = postgresql.dialect().identifier_preparer.format_constraint(unique)  # type: ignore[no-untyped-call]
    return str(name).strip('"')


def _name_after_table(key: sa.PrimaryKeyConstraint, table: object) -> None:
    if isinstance(table, sa.Table):
        key.name = CONVENTION["pk"] % {"table_name": table.name}


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _literal(value: str) -> str:
    """A constant; Alembic's ``execute`` would take ``:word`` in it for a parameter."""
    return "'" + value.replace("'", "''").replace(":", "\\:") + "'"
