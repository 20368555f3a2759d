"""Migrators as processes: many at once, and killed at any point."""

import asyncio
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from moorage.database.placement import place
from moorage.testing import SchemaDatabase

pytestmark = pytest.mark.postgres

_ZYGOTE = """
import os, sys
from moorage.cli.migrate import migrate
for line in sys.stdin:
    command, *arguments = line.split()
    if command == "wait":
        print(*(os.waitstatus_to_exitcode(os.waitpid(int(pid), 0)[1]) for pid in arguments), flush=True)
        continue
    os.environ["DATABASE_DSN"], *arguments = arguments
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.environ["OUT"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        migrate.main(arguments)
    print(pid, flush=True)
"""


class Migrators:
    """Forks processes that run `moorage migrate`: the interpreter starts once, not twenty times."""

    def __init__(self, package: str, root: Path) -> None:
        self.out = root / "out"
        self.package = package
        environ = {**os.environ, "PYTHONPATH": str(root), "DATABASE_SCHEMA": "shop", "OUT": str(self.out)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
            cwd=root,
        )

    def start(self, dsn: str) -> int:
        """Start one; returns its process id."""
        return int(self._ask(f"run {dsn} {self.package} -o json"))

    def wait(self, *pids: int) -> list[int]:
        """The exit codes, once all have ended."""
        return [int(code) for code in self._ask(f"wait {' '.join(map(str, pids))}").split()]

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def close(self) -> None:
        """End it; its processes have ended."""
        self._process.communicate()


Forking = Callable[[list[tuple[str, str]]], Migrators]


def write(root: Path, upgrades: list[tuple[str, str]]) -> str:
    """A package with one migration for each pair of top and body."""
    name = f"shop_{secrets.token_hex(4)}"
    versions = root / name / "migrations" / "versions"
    versions.mkdir(parents=True)
    (root / name / "__init__.py").touch()
    for number, (top, body) in enumerate(upgrades, 1):
        before = f"{number - 1:04}" if number > 1 else None
        (versions / f"{number:04}_step.py").write_text(
            f'"""Step {number}."""\nimport time\nimport sqlalchemy as sa\nfrom alembic import op\n'
            f"from moorage.migrations import standard_columns, tenanted\n"
            f"revision = '{number:04}'\ndown_revision = {before!r}\n{top}\n"
            f"def upgrade():\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n"
        )
    return name


@pytest.fixture
def forking(tmp_path: Path) -> Iterator[Forking]:
    """Makes migrators of a package with the given migrations."""
    made: list[Migrators] = []

    def make(upgrades: list[tuple[str, str]]) -> Migrators:
        made.append(Migrators(write(tmp_path, upgrades), tmp_path))
        return made[-1]

    yield make
    for migrators in made:
        migrators.close()


@pytest.fixture
async def database(moorage_postgres: str) -> AsyncIterator[SchemaDatabase]:
    database = await SchemaDatabase.create(moorage_postgres, "shop")
    yield database
    await database.drop()


async def query(dsn: str, statement: str) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        return [row[0] for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def test_of_twenty_migrators_one_applies_and_the_others_find_nothing_to_do(
    forking: Forking, database: SchemaDatabase
) -> None:
    body = (
        "op.execute('CREATE TABLE post (id int)'); time.sleep(0.5); op.execute('INSERT INTO post VALUES (1)')"
    )
    migrators = forking([("", body), ("", "op.execute('INSERT INTO post VALUES (2)')")])
    pids = [migrators.start(database.owner_dsn) for _ in range(20)]
    codes = await asyncio.to_thread(migrators.wait, *pids)
    output = migrators.out.read_text()
    assert codes == [0] * 20, output
    assert output.count('"event": "applied"') == 2
    assert output.count('"current": "0002"') == 20
    assert await query(database.owner_dsn, "SELECT id FROM post ORDER BY 1") == [1, 2]


def steps() -> Iterator[tuple[str, str]]:
    """Four migrations of several statements each, with time between them to be killed in."""
    for number in range(1, 5):
        yield (
            "",
            f"""
            op.create_table("t{number}", sa.Column("name", sa.String()), *standard_columns())
            time.sleep(0.03)
            tenanted("t{number}")
            time.sleep(0.03)
            op.create_index("ix_t{number}_name", "t{number}", ["name"])
            op.execute("CREATE FUNCTION f{number}() RETURNS int LANGUAGE sql AS 'SELECT {number}'")
            time.sleep(0.03)
            """,
        )


def dump(database: SchemaDatabase) -> str:
    """``pg_dump -s`` of the schema, without what differs between two databases with the same content.

    And without the kernel's own tables, which are made before the first migration, each by a transaction of its own.
    """
    with_binaries = place(Path(os.environ["PG_DUMP_HOME"]))
    command = [str(with_binaries.binary("pg_dump")), "--schema-only", "--schema=shop", database.admin_dsn]
    command += ["--exclude-table=shop.moorage_*", "--exclude-table=shop.alembic_version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text = done.stdout
    for dsn, role in ((database.owner_dsn, "OWNER"), (database.app_dsn, "APP")):
        text = text.replace(str(urlsplit(dsn).username), role)
    return re.sub(r"^\\(un)?restrict .*$", "", text, flags=re.MULTILINE)


async def settled(database: SchemaDatabase) -> None:
    """Wait until the server has noticed that the migrator is gone."""
    for _ in range(200):
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'moorage-migrate%'"
        if await query(database.admin_dsn, sessions) == [0]:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the killed migrator's session does not end")


async def test_a_migrator_killed_at_any_point_leaves_whole_migrations_and_the_next_one_finishes(
    tmp_path: Path,
    forking: Forking,
    database: SchemaDatabase,
    moorage_postgres: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PG_DUMP_HOME", str(tmp_path / "pg"))
    whole = {dump(database)}
    for count in range(5):
        migrators = forking(list(steps())[:count])
        assert await asyncio.to_thread(migrators.wait, migrators.start(database.owner_dsn)) == [0]
        whole.add(dump(database))
    complete = dump(database)
    migrators = forking(list(steps()))
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    kills = 0
    for _ in range(3):
        other = await SchemaDatabase.create(moorage_postgres, "shop")
        try:
            while True:
                pid = migrators.start(other.owner_dsn)
                began = time.monotonic()
                await asyncio.sleep(chance.uniform(0, 0.7))
                os.kill(pid, signal.SIGKILL)  # one that has ended waits for us, so the id is still its own
                code = (await asyncio.to_thread(migrators.wait, pid))[0]
                await settled(other)
                found = dump(other)
                assert found in whole, f"seed {seed}, killed after {time.monotonic() - began:.2f} s:\n{found}"
                kills += code == -signal.SIGKILL
                if code == 0:
                    break
            assert found == complete
        finally:
            await other.drop()
    assert kills


async def test_a_killed_build_of_an_index_is_begun_again(forking: Forking, database: SchemaDatabase) -> None:
    """Declared as non-transactional: its schema may change before it is done, and the next run mends that."""
    build = "op.create_index('by_id', 'post', ['id'], postgresql_concurrently=True, if_not_exists=True)"
    first = ("", "op.execute('CREATE TABLE post AS SELECT generate_series(1, 1000) AS id')")
    migrators = forking([first, ("transactional = False", build)])
    owner = await asyncpg.connect(database.owner_dsn)
    open_ = owner.transaction(isolation="repeatable_read")
    await open_.start()
    await owner.execute(
        "SELECT 1"
    )  # it has a snapshot now, and the build waits for those that are older than it
    pid = migrators.start(database.owner_dsn)
    invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    for _ in range(300):
        if await query(database.admin_dsn, invalid) == ["shop.by_id"]:
            break
        await asyncio.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    await query(
        database.admin_dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'moorage-migrate%'",
    )
    assert await asyncio.to_thread(migrators.wait, pid) == [-signal.SIGKILL]
    await settled(database)
    await open_.rollback()
    await owner.close()
    assert await query(database.admin_dsn, invalid) == ["shop.by_id"]
    again = migrators.start(database.owner_dsn)
    assert await asyncio.to_thread(migrators.wait, again) == [0], migrators.out.read_text()
    assert await query(database.admin_dsn, invalid) == []
    assert await query(database.admin_dsn, "SELECT indexname FROM pg_indexes WHERE tablename = 'post'") == [
        "by_id"
    ]
