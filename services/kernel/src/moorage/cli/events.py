"""``moorage events``."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed
import click

from moorage.config import ConfigError, load
from moorage.database.engine import TROUBLE
from moorage.events.postgres_link import Link
from moorage.logs.rendering import on_one_line

T = TypeVar("T")

_STATES: Final = ("pending", "retry", "dead")
_LIST: Final = """
SELECT * FROM (
    SELECT 'pending' AS state, id::text, type, NULL::text AS source, key, created_at AS since, 0 AS attempts,
           NULL::timestamptz AS next_at, NULL::text AS reason, seq
    FROM moorage_outbox
    UNION ALL
    SELECT state, id, type, source, key, received_at, attempts, next_at, reason, seq
    FROM moorage_inbox WHERE state IN ('retry', 'dead')
) AS events
WHERE state = ANY ($1::text[]) AND ($2::text IS NULL OR type = $2)
ORDER BY since, seq LIMIT $3
"""
_SHOW: Final = """
SELECT 'pending' AS state, id::text, type, NULL::text AS source, topic, key, created_at AS since, 0 AS attempts,
       NULL::timestamptz AS next_at, NULL::text AS reason, event
FROM moorage_outbox WHERE id::text = $1
UNION ALL
SELECT state, id, type, source, topic, key, received_at, attempts, next_at, reason, event
FROM moorage_inbox WHERE id = $1
"""
_REPLAY: Final = """
UPDATE moorage_inbox SET state = 'retry', attempts = 0, next_at = clock_timestamp(), reason = NULL
WHERE state = 'dead' AND ($1::text[] IS NULL OR id = ANY ($1)) AND ($2::text IS NULL OR type = $2)
RETURNING id, type, source
"""

output_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the output."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="GROUP.FIELD=VALUE", help="Override a setting."
)


@click.group()
def events() -> None:
    """Look at a module's events that wait or failed, and send failed ones again.

    `list`, `show` and `replay` read the module's database: DATABASE_DSN (DATABASE_DIRECT_DSN, if set, is preferred) and
    DATABASE_SCHEMA, as in the module's pod: kubectl exec deploy/NAME -- moorage events list
    """


@events.command("list")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES), help="Only these; default: all three."
)
@click.option("--type", "type", default=None, help="Only events of this type.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Events at most."
)
@output_option
@set_option
def list_(
    states: tuple[str, ...], type: str | None, limit: int, output: str, overrides: tuple[str, ...]
) -> None:
    """List events that are not sent yet (pending), wait to be handled again (retry), or were given up (dead)."""

    async def work(connection: Any) -> list[dict[str, Any]]:
        rows = await connection.fetch(_LIST, list(states or _STATES), type, limit)
        return [{name: value for name, value in row.items() if name != "seq"} for row in rows]

    rows = _run(work, overrides)
    if output == "json":
        click.echo(json.dumps(rows, default=_text, indent=2))
        return
    for row in rows:
        facts = [
            row["state"].ljust(7),
            row["id"],
            row["type"] or "(unreadable)",
            f"key={row['key']}",
            _text(row["since"]),
        ]
        if row["state"] != "pending":
            facts.append(f"attempts={row['attempts']}")
        if row["reason"]:
            facts.append(row["reason"])
        click.echo(on_one_line("  ".join(facts)))
    click.echo(
        f"{len(rows)} event{'' if len(rows) == 1 else 's'}" + (", maybe more" if len(rows) == limit else "")
    )


@events.command()
@click.argument("id")
@output_option
@set_option
def show(id: str, output: str, overrides: tuple[str, ...]) -> None:
    """Show all that is known of the event ID, its data included."""

    async def work(connection: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in await connection.fetch(_SHOW, id)]

    rows = _run(work, overrides)
    if not rows:
        raise click.ClickException(f"neither outbox nor inbox has an event {id}")
    for row in rows:
        row["event"] = _json(row["event"])
    if output == "json":
        click.echo(json.dumps(rows, default=_text, indent=2))
        return
    for row in rows:
        for name, value in row.items():
            if value is not None and name != "event":
                click.echo(on_one_line(f"{name}: {_text(value)}"))
        click.echo(
            json.dumps(row["event"], indent=2) if row["event"] is not None else "(its data is not kept)"
        )


@events.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--type", "type", default=None, help="All dead letters of this type.")
@click.option("--all-dead", is_flag=True, help="All dead letters.")
@output_option
@set_option
def replay(
    ids: tuple[str, ...], type: str | None, all_dead: bool, output: str, overrides: tuple[str, ...]
) -> None:
    """Handle dead letters again: those with an ID, those of a type, or all.

    They are handled by the running module, after what came since: for them the order of their keys is lost.
    """
    if not (ids or type or all_dead):
        raise click.UsageError("name events by ID, by --type, or take --all-dead")
    if all_dead and (ids or type):
        raise click.UsageError("--all-dead takes all; leave IDs and --type out")

    async def work(connection: Any) -> list[dict[str, Any]]:
        rows = await connection.fetch(_REPLAY, list(ids) or None, type)
        return [dict(row) for row in rows]

    rows = _run(work, overrides)
    missing = sorted(set(ids) - {row["id"] for row in rows})
    if output == "json":
        click.echo(json.dumps({"replayed": rows, "missing": missing}, indent=2))
    else:
        for row in rows:
            click.echo(on_one_line(f"again: {row['id']}  {row['type'] or '(unreadable)'}"))
        click.echo(f"{len(rows)} event{'' if len(rows) == 1 else 's'} will be handled again")
    if missing:
        raise click.ClickException(f"no dead letter: {', '.join(missing)}")


@events.command("schemas")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--force", is_flag=True, help="Write it although others could not read the events any more.")
@output_option
def schemas_(directory: Path, force: bool, output: str) -> None:
    """Write <package>/events.json: the JSON Schemas of the events that the module in DIR emits.

    Refuses a change by which those who know the file's version could not read the events any more. --force is for types
    that were never deployed: the migrator keeps what was, and refuses as well.
    """
    # Here, because looking at a database needs neither manifests nor the module's code.
    from moorage.cli import event_checks, generated
    from moorage.events import schemas
    from moorage.importing import ImportFailed, import_module
    from moorage.module import DeclarationError

    _, module = generated.read(directory)
    path = generated.package_folder(directory, module) / schemas.FILE
    assert module.spec.app is not None
    try:
        import_module(module.spec.app, directory)
        before = schemas.parse(path.read_text(), str(path)) if path.exists() else {}
    except (ImportFailed, DeclarationError, schemas.SchemasUnreadable) as exc:
        raise click.ClickException(str(exc)) from None
    now = schemas.of(event_checks.emitted(module))
    broken = schemas.breaking(before, now)
    if broken and not force:
        raise click.ClickException("\n".join(broken))
    content = schemas.text(now)
    changed = not path.exists() or path.read_text() != content
    if changed and (now or path.exists()):
        path.write_text(content)
    if output == "json":
        click.echo(json.dumps({"file": str(path), "changed": changed, "types": sorted(now)}))
    else:
        click.echo(f"{path}: {len(now)} types, {'written' if changed else 'unchanged'}")


def _run(work: Callable[[Any], Coroutine[Any, Any, T]], overrides: Sequence[str]) -> T:
    """*work* with a connection to the module's database, as its schema."""
    try:
        return asyncio.run(_connected(work, overrides))
    except ConfigError as exc:
        raise click.ClickException(str(exc)) from None
    except asyncpg.UndefinedTableError as exc:
        raise click.ClickException(
            f"{exc}: DATABASE_SCHEMA names no schema of a module, or it was never migrated"
        ) from None
    except TROUBLE as exc:
        raise click.ClickException(f"the database: {type(exc).__name__}: {exc}") from None


async def _connected(work: Callable[[Any], Coroutine[Any, Any, T]], overrides: Sequence[str]) -> T:
    database = load(overrides=overrides, only_own=True).database
    if database.dsn is None and database.direct_dsn is None:
        raise ConfigError(
            "database.dsn: not set; the environment variable is DATABASE_DSN. "
            "It is in a module's pod (kubectl exec deploy/NAME -- moorage events …), and of `moorage up` in a file: "
            ". .moorage/run/env/NAME"
        )
    connection = await Link(database, "moorage events", size=1).connect()
    try:
        if database.schema_ is not None:
            await connection.execute(
                "SELECT set_config('search_path', quote_ident($1), false)", database.schema_
            )
        return await work(connection)
    finally:
        connection.terminate()


def _json(event: str | None) -> Any:
    try:
        return None if event is None else json.loads(event)
    except ValueError:
        return event


def _text(value: object) -> str:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else str(value)
