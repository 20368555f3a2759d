"""``moorage migrate``."""

import asyncio
import contextlib
import io
import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError

from moorage import importing
from moorage.config import ConfigError, Settings, load
from moorage.database.migrations import MigrationError, Migrator, Options, Status

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""kubelet shows what is written here as the container's termination message; the operator copies it to status."""
_TERMINATION_LIMIT: Final = 4096  # bytes, kubelet's own limit
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0


@click.command()
@click.argument("target", metavar="PACKAGE[:OBJECT]|DIR")
@click.option(
    "--status", "show_status", is_flag=True, help="Show what has run and what would; change nothing."
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Run what is pending in one transaction, show statements and locks, and roll back.",
)
@click.option("--sql", is_flag=True, help="Print all migrations as SQL; needs no database.")
@click.option(
    "--lint", is_flag=True, help="Name what would stop or break a running app; needs squawk, no database."
)
@click.option("--wait", type=float, default=60.0, show_default=True, help="Seconds to wait for the database.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the output."
)
@click.option("--set", "overrides", multiple=True, metavar="GROUP.FIELD=VALUE", help="Override a setting.")
def migrate(
    target: str,
    show_status: bool,
    dry_run: bool,
    sql: bool,
    lint: bool,
    wait: float,
    output: str,
    overrides: tuple[str, ...],
) -> None:
    """Bring the schema of a module up to date, as the schema's owner.

    Migrations are PACKAGE/migrations/versions/*.py; DIR holds a module's manifests and code. DATABASE_DSN names the
    owner (DATABASE_DIRECT_DSN, if set, is preferred: a pooler must not be between), DATABASE_SCHEMA the schema. Each
    migration runs in a transaction of its own; one that fails leaves those before it, and nothing of itself. Run it
    as often as you like.
    A dry run holds every lock of the real one until its end.
    """
    package = _package(target)
    try:
        settings = load(overrides=overrides, only_own=True)
        if sql or lint:
            offline = Migrator(package, SecretStr(""), Options(schema=settings.database.schema_))
            if lint:
                sys.exit(_show_remarks(offline, output))
            statements = io.StringIO()  # as a pipe that ends early is no trouble of the database
            offline.sql(statements)
            click.echo(statements.getvalue(), nl=False)
            return
        migrator = _migrator(package, settings, output)
        work = migrator.status if show_status else migrator.rehearse if dry_run else migrator.upgrade
        status = asyncio.run(_patiently(work, wait, migrator.report))
    except (MigrationError, ConfigError, SQLAlchemyError) as error:
        _leave_message(str(error))
        if output == "json":
            click.echo(json.dumps({"event": "failed", "message": str(error)}))
        raise click.ClickException(str(error)) from None
    _show(status, output)


def _package(target: str) -> str:
    """The package that *target* names, with its code on the import path."""
    folder = Path(target)
    if not folder.is_dir() or (folder / "__init__.py").exists():  # a package beside us is meant by its name
        importing.search(Path.cwd())
        return target.partition(":")[0].partition(".")[0]
    from moorage.cli import generated  # here, as a migrator in a pod reads no manifests

    _, module = generated.read(folder)
    importing.search(folder, first=True)
    return generated.package_folder(folder, module).name


def _migrator(package: str, settings: Settings, output: str) -> Migrator:
    database, place = settings.database, settings.moorage
    dsn = database.direct_dsn or database.dsn
    if dsn is None:
        raise ConfigError(
            "database.dsn: not set; the environment variable is DATABASE_DSN. It names the schema's owner; "
            "`--status` can do with what `moorage up` leaves in .moorage/run/env/NAME"
        )
    options = Options(
        schema=database.schema_,
        timeout=database.migration_timeout,
        wait=database.migration_wait,
        revision=place.revision or None,
        version=place.version,
    )

    def report(event: dict[str, Any]) -> None:
        click.echo(json.dumps(event) if output == "json" else _line(event))

    return Migrator(package, dsn, options, report)


async def _patiently(work: Any, seconds: float, report: Any) -> Status:
    """Run *work*; while the server cannot be reached, try again for *seconds*."""
    loop = asyncio.get_running_loop()
    deadline, pause, told = loop.time() + seconds, _FIRST_PAUSE, False
    while True:
        try:
            status: Status = await work()
        except MigrationError as error:
            if not error.unreachable or loop.time() + pause > deadline:
                raise
            if not told:
                report({"event": "waiting", "message": f"waiting: {error}"})
                told = True
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        else:
            return status


def _line(event: dict[str, Any]) -> str:
    match event["event"]:
        case "applying":
            return f"applying {event['migration']}  {event['title']}"
        case "applied":
            return f"applied  {event['migration']}  ({event['seconds']:.2f} s)"
        case "rehearsed":
            lines = [f"rehearsed {event['migration']}  ({event['seconds']:.2f} s), rolled back at the end"]
            lines += [textwrap.indent(f"{statement};", "    ") for statement in event["statements"]]
            lines += [f"  others wait for {lock}" for lock in event["locks"]]
            return "\n".join(lines)
        case "warning":
            return f"warning: {event['message']}"
        case _:
            return str(event["message"])


def _show(status: Status, output: str) -> None:
    if output == "json":
        click.echo(json.dumps({"event": "status", **asdict(status)}))
        return
    click.echo(
        f"current: {status.current or '-'}  head: {status.head or '-'}  pending: {len(status.pending)}"
    )
    for migration in status.pending:
        click.echo(f"  {migration.revision}  {migration.title}")


def _show_remarks(migrator: Migrator, output: str) -> int:
    """Show what the linter says; returns the exit code: 1 if it says anything."""
    from moorage.database.linting import lint

    remarks = lint(migrator)
    for remark in remarks:
        click.echo(json.dumps({"event": "remark", **asdict(remark)}) if output == "json" else str(remark))
    return 1 if remarks else 0


def _leave_message(message: str) -> None:
    with contextlib.suppress(OSError):  # outside a container there is none
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_bytes(message.encode()[:_TERMINATION_LIMIT])
