"""``moorage migrate`` as a user runs it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from moorage.cli.migrate import migrate
from moorage.testing import SchemaDatabase

pytestmark = pytest.mark.postgres


@pytest.fixture
async def dsn(moorage_postgres: str) -> AsyncIterator[str]:
    """A database with an empty schema ``shop``, and its owner."""
    database = await SchemaDatabase.create(moorage_postgres, "shop")
    yield database.owner_dsn
    await database.drop()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    versions = tmp_path / "work" / "src" / "shop_cli" / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions.parents[1] / "__init__.py").touch()
    (versions / "0001_first.py").write_text(
        '"""The first."""\nfrom alembic import op\nimport sqlalchemy as sa\nrevision = "0001"\ndown_revision = None\n'
        'def upgrade():\n    op.create_table("item", sa.Column("id", sa.Integer))\n'
    )
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("sys.path", list(sys.path))  # the command adds to it
    monkeypatch.setenv("DATABASE_SCHEMA", "shop")
    monkeypatch.setenv("MOORAGE_REVISION", "abc")
    return versions


def events(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


async def invoke(*arguments: str, dsn: str | None) -> tuple[int, str]:
    """In a thread, since the command runs a loop of its own."""
    environ = {"DATABASE_DSN": dsn} if dsn else {}
    result = await asyncio.to_thread(
        CliRunner().invoke, migrate, ["shop_cli:module", *arguments], env=environ
    )
    return result.exit_code, result.output


async def test_status_tells_what_is_pending_and_migrate_runs_it(shop: Path, dsn: str) -> None:
    code, output = await invoke("--status", dsn=dsn)
    assert code == 0
    assert "pending: 1" in output
    assert "0001  The first." in output
    code, output = await invoke("-o", "json", dsn=dsn)
    assert code == 0, output
    assert [event["event"] for event in events(output)] == ["applying", "applied", "status"]
    assert events(output)[-1]["current"] == "0001"
    code, output = await invoke(dsn=dsn)
    assert (code, output.strip()) == (0, "current: 0001  head: 0001  pending: 0")


async def test_a_dry_run_shows_what_would_be_done_and_does_not_do_it(shop: Path, dsn: str) -> None:
    code, output = await invoke("--dry-run", dsn=dsn)
    assert code == 0, output
    assert "rehearsed 0001" in output
    assert "CREATE TABLE item" in output
    assert "current: -  head: 0001  pending: 1" in output
    code, output = await invoke("--status", dsn=dsn)
    assert "pending: 1" in output


DANGEROUS = """
from alembic import op
import sqlalchemy as sa
from moorage.migrations import standard_columns, tenanted
revision = "0002"
down_revision = "0001"
{top}
def upgrade():
    op.create_table("parcel", sa.Column("name", sa.String()), *standard_columns())
    tenanted("parcel")
    op.create_index("ix_parcel", "parcel", ["name"])
    op.drop_column("item", "id")
    op.create_index("ix_item", "item", ["id"])
"""


async def test_the_linter_names_what_would_stop_or_break_a_running_app(shop: Path) -> None:
    (shop / "0002_second.py").write_text(DANGEROUS.format(top=""))
    code, output = await invoke("--lint", "-o", "json", dsn=None)
    found = [(event["migration"], event["rule"]) for event in events(output)]
    assert (code, found) == (1, [("0002", "ban-drop-column"), ("0002", "require-concurrent-index-creation")])
    allowed = 'lint_ignore = ("ban-drop-column", "require-concurrent-index-creation")'
    (shop / "0002_second.py").write_text(DANGEROUS.format(top=allowed))
    assert await invoke("--lint", dsn=None) == (0, "")


async def test_sql_needs_no_database(shop: Path) -> None:
    code, output = await invoke("--sql", dsn=None)
    assert code == 0
    assert "CREATE TABLE item" in output


async def test_a_folder_with_manifests_names_the_package(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from its parent, where the folder has the package's name."""
    here = shop.parents[4]
    folder = (here / "work").rename(here / "shop_cli")
    (folder / "module.yaml").write_text(
        "apiVersion: moorage.dev/v1alpha1\nkind: Module\nmetadata: {name: shop}\n"
        'spec: {version: 1.0.0, image: "shop:1", app: "shop_cli:module", database: {}}\n'
    )
    monkeypatch.chdir(here)
    for target in ("shop_cli", "./shop_cli"):
        result = await asyncio.to_thread(CliRunner().invoke, migrate, [target, "--sql"])
        assert result.exit_code == 0, result.output
        assert "CREATE TABLE item" in result.output


async def test_a_failure_is_left_where_kubelet_looks(
    shop: Path, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr("moorage.cli.migrate.TERMINATION_LOG", log)
    (shop / "0002_bad.py").write_text(
        '"""Bad."""\nfrom alembic import op\nrevision = "0002"\ndown_revision = "0001"\n'
        'def upgrade():\n    op.execute("SELECT * FROM nothing_here")\n'
    )
    code, output = await invoke(dsn=dsn)
    assert code == 1
    assert "migration 0002" in log.read_text()
    assert "nothing_here" in log.read_text()
    assert "Traceback" not in output


async def test_without_a_dsn_the_variable_is_named(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_DSN", raising=False)
    code, output = await invoke(dsn=None)
    assert code == 1
    assert "DATABASE_DSN" in output


async def test_a_database_that_is_away_is_waited_for_and_then_named(shop: Path) -> None:
    code, output = await invoke("--wait", "0.3", dsn="postgresql://me:sesame@127.0.0.1:9/x")
    assert code == 1
    assert "does not answer" in output
    assert "sesame" not in output


async def test_sql_needs_no_database_that_answers(shop: Path) -> None:
    code, output = await invoke("--sql", dsn="postgresql://me@127.0.0.1:9/x")
    assert code == 0
    assert "CREATE TABLE item" in output
