"""The kernel's own tables in a module's schema; the migrator brings them up to date before the module's migrations.

Their names begin with `PREFIX`, which no table of a module may. Each part has numbered steps; those
that are missing run in one transaction together with the note of the last number.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from moorage.database import kept
from moorage.events import tables as events

PREFIX: Final = "moorage_"
TABLE: Final = "moorage_platform"
_PARTS: Final = {"events": events.STEPS, "idempotency": kept.STEPS}
_CREATE: Final = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    part text PRIMARY KEY, version integer NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()
)"""


async def converge(connection: AsyncConnection) -> bool:
    """Run the steps that are missing, as the schema's owner, and commit; returns whether there were any.

    The caller holds the migrator's lock. A schema that a newer kernel has brought further is left as it is: steps only
    add, so that an older version of the module works on.
    """
    await connection.exec_driver_sql(_CREATE)
    found: Sequence[Any] = (
        await connection.exec_driver_sql(f"SELECT part, version FROM {TABLE}")  # noqa: S608 - a constant
    ).all()
    versions = {str(part): int(version) for part, version in found}
    changed = False
    for part, steps in _PARTS.items():
        for number, script in steps:
            if number > versions.get(part, 0):
                await _run(connection, script)
                await connection.exec_driver_sql(_note(part, number))
                changed = True
    await connection.commit()
    return changed


def script() -> str:
    """All steps as SQL, for who applies them by hand."""
    parts = [f"{_CREATE.strip()};\n"]
    for part, steps in _PARTS.items():
        parts += [f"{text.strip()}\n{_note(part, number)};\n" for number, text in steps]
    return "\n".join(parts)


def _note(part: str, number: int) -> str:
    return (
        f"INSERT INTO {TABLE} (part, version) VALUES ('{part}', {number}) "  # noqa: S608 - constants of the kernel
        f"ON CONFLICT (part) DO UPDATE SET version = excluded.version, applied_at = now()"
    )


async def _run(connection: AsyncConnection, statements: str) -> None:
    """Several statements at once, which a prepared statement cannot be; within the transaction that has begun."""
    raw: Any = await connection.get_raw_connection()
    await raw.driver_connection.execute(statements)
