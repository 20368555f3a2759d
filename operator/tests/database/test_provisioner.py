"""Schemas, roles and grants on a real PostgreSQL, by an admin who is no superuser."""

import asyncio
import json
import traceback
import uuid

import asyncpg
import pytest

from moorage_operator.database import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    ForeignSchemaError,
    Provisioner,
    grants,
)
from moorage_operator.plan.names import DatabaseNames, database_names

pytestmark = pytest.mark.postgres

UID = "11111111-1111-1111-1111-111111111111"


def unique(module: str = "blog", namespace: str = "default") -> DatabaseNames:
    """Names in an installation of the test's own: roles are shared by all databases of the server."""
    return database_names(f"test-{uuid.uuid4()}", namespace, module)


async def migrated(provisioner: Provisioner, names: DatabaseNames) -> None:
    """What the migrator leaves behind: a table, and the record of its revision."""
    owner = await provisioner.open_owner(names, seconds=60)
    connection = await asyncpg.connect(owner)
    try:
        await connection.execute("CREATE TABLE post (id serial PRIMARY KEY, title text)")
        await connection.execute("CREATE TABLE moorage_migrations (revision text PRIMARY KEY)")
        await connection.execute("INSERT INTO moorage_migrations VALUES ('r1')")
    finally:
        await connection.close()
    await provisioner.close_owner(names)


async def test_the_app_role_reads_and_writes_rows_and_nothing_else(server, provisioner) -> None:
    names = unique()
    password = await provisioner.ensure(names, UID)
    await migrated(provisioner, names)
    await provisioner.ensure(names, UID, app_password=password)
    app = provisioner.app_dsn(names, password)
    await server.run(app, "INSERT INTO post (title) VALUES ('first')")
    assert [row["title"] for row in await server.run(app, "SELECT title FROM post")] == ["first"]
    for statement in (
        "CREATE TABLE mine (id int)",
        "ALTER TABLE post ADD COLUMN x int",
        "DROP TABLE post",
        "TRUNCATE post",
        "INSERT INTO moorage_migrations VALUES ('r2')",
        "CREATE SCHEMA mine",
        f"SET ROLE {names.owner}",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await server.run(app, statement)


async def test_a_module_does_not_reach_another_modules_schema(server, provisioner) -> None:
    blog, shop = unique("blog"), unique("shop")
    await provisioner.ensure(blog, UID)
    await migrated(provisioner, blog)
    password = await provisioner.ensure(shop, UID)
    for statement in (
        f'SELECT * FROM "{blog.schema}".post',
        f'INSERT INTO "{blog.schema}".post (title) VALUES (1)',
        f'CREATE TABLE "{blog.schema}".mine (id int)',
        f"SET ROLE {blog.app}",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await server.run(provisioner.app_dsn(shop, password), statement)
    owner = await provisioner.open_owner(shop, seconds=60)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await server.run(owner, f'SELECT * FROM "{blog.schema}".post')


async def test_ensuring_again_keeps_the_password_and_changes_nothing(server, provisioner) -> None:
    names = unique()
    password = await provisioner.ensure(names, UID)
    await migrated(provisioner, names)
    await provisioner.ensure(names, UID, app_password=password)
    rows = (
        "SELECT xmin::text FROM pg_namespace WHERE nspname = $1 UNION ALL SELECT xmin::text FROM pg_authid "
        "WHERE rolname = $2 UNION ALL SELECT s.xmin::text FROM pg_db_role_setting s "
        "JOIN pg_roles r ON r.oid = s.setrole WHERE r.rolname = $2"
    )
    first = await server.run(server.superuser, rows, names.schema, names.app)
    assert await provisioner.ensure(names, UID, app_password=password) == password
    assert await server.run(server.superuser, rows, names.schema, names.app) == first


async def test_a_password_that_the_database_lost_is_set_again(server, provisioner) -> None:
    names = unique()
    password = await provisioner.ensure(names, UID)
    await server.run(server.superuser, f"ALTER ROLE {names.app} PASSWORD 'other'")
    assert await provisioner.ensure(names, UID, app_password=password) == password
    await server.run(provisioner.app_dsn(names, password), "SELECT 1")


async def test_rights_that_nobody_declared_are_revoked(server, provisioner) -> None:
    names = unique()
    password = await provisioner.ensure(names, UID)
    await migrated(provisioner, names)
    schema = f'"{names.schema}"'
    for statement in (
        f"GRANT USAGE, CREATE ON SCHEMA {schema} TO PUBLIC",
        f"GRANT SELECT ON {schema}.post TO PUBLIC",
        f"GRANT TRUNCATE ON {schema}.post TO {names.app}",
        f"REVOKE INSERT ON {schema}.post FROM {names.app}",
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {names.owner} IN SCHEMA {schema} GRANT TRUNCATE ON TABLES TO {names.app}",
        f"GRANT {names.owner} TO {names.app}",
    ):
        await server.run(server.superuser, statement)
    # A membership that a superuser granted cannot be revoked by another admin (PostgreSQL 16+): refused, not ignored.
    with pytest.raises(DatabaseRefusedError, match="REVOKE mg_"):
        await provisioner.ensure(names, UID, app_password=password)
    await server.run(server.superuser, f"REVOKE {names.owner} FROM {names.app}")
    await provisioner.ensure(names, UID, app_password=password)
    app = provisioner.app_dsn(names, password)
    await server.run(app, "INSERT INTO post (title) VALUES ('x')")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await server.run(app, "TRUNCATE post")
    rows = await server.run(
        server.superuser, "SELECT nspacl::text AS acl FROM pg_namespace WHERE nspname = $1", names.schema
    )
    assert ",=" not in rows[0]["acl"]
    assert not rows[0]["acl"].startswith("{=")


async def test_a_schema_that_nobody_claimed_is_refused_and_left_alone(server, provisioner) -> None:
    names = unique()
    await server.run(server.superuser, f'CREATE SCHEMA "{names.schema}"')
    with pytest.raises(ForeignSchemaError, match="was not made by Moorage"):
        await provisioner.ensure(names, UID)
    roles = await server.run(server.superuser, "SELECT rolname FROM pg_roles WHERE rolname = $1", names.owner)
    assert roles == []
    assert not await provisioner.drop(names, UID)


async def test_another_installations_schema_is_refused(provisioner) -> None:
    mine, other = unique(), unique()
    assert mine.schema == other.schema
    await provisioner.ensure(mine, UID)
    with pytest.raises(ForeignSchemaError, match="belongs to Module default/blog of installation"):
        await provisioner.ensure(other, UID, adopt=UID)


async def test_data_of_a_deleted_module_are_taken_over_only_when_asked(provisioner) -> None:
    names, new = unique(), "22222222-2222-2222-2222-222222222222"
    await provisioner.ensure(names, UID)
    with pytest.raises(ForeignSchemaError, match=rf"moorage.dev/adopt-database={UID}"):
        await provisioner.ensure(names, new)
    with pytest.raises(ForeignSchemaError):
        await provisioner.ensure(names, new, adopt="33333333-3333-3333-3333-333333333333")
    await provisioner.ensure(names, new, adopt=UID)
    await provisioner.ensure(names, new)
    with pytest.raises(ForeignSchemaError):
        await provisioner.ensure(names, UID)


async def test_drop_removes_schema_and_roles_of_its_own_claim_only(server, provisioner) -> None:
    names = unique()
    password = await provisioner.ensure(names, UID)
    await migrated(provisioner, names)
    assert not await provisioner.drop(names, "22222222-2222-2222-2222-222222222222")
    session = await asyncpg.connect(provisioner.app_dsn(names, password))
    assert await provisioner.drop(names, UID)
    with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError)):
        await session.fetch("SELECT 1")
    await session.close()
    left = await server.run(
        server.superuser,
        "SELECT rolname FROM pg_roles WHERE rolname IN ($1, $2) "
        "UNION SELECT nspname FROM pg_namespace WHERE nspname = $3",
        names.owner,
        names.app,
        names.schema,
    )
    assert left == []
    assert not await provisioner.drop(names, UID)


async def test_ten_runs_at_once_make_one_schema(provisioner) -> None:
    names = unique()
    await asyncio.gather(*(provisioner.ensure(names, UID, app_password="a" * 64) for _ in range(10)))


class Cut(Exception):
    """Stands for the end of the process."""


class CuttingConnection:
    """A connection on which all changes after the first *allowed* never happen."""

    def __init__(self, real: asyncpg.Connection, allowed: int) -> None:
        self._real = real
        self._left = allowed

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    async def execute(self, statement: str, *arguments: object) -> object:
        if statement.startswith(("CREATE", "ALTER", "GRANT", "COMMENT", "REVOKE")):
            if self._left == 0:
                raise Cut
            self._left -= 1
        return await self._real.execute(statement, *arguments)


async def steps(provisioner: Provisioner, connection: CuttingConnection, names: DatabaseNames) -> None:
    await provisioner._ensure_roles(connection, names)
    await provisioner._ensure_schema(connection, names, UID)
    await provisioner._ensure_settings(connection, names)
    await grants.converge(connection, names)


@pytest.mark.parametrize("allowed", range(12))
async def test_a_run_that_was_killed_between_two_statements_is_finished_by_the_next(
    server, allowed: int
) -> None:
    names = unique()
    connection = await asyncpg.connect(server.admin)
    cutting = CuttingConnection(connection, allowed)
    async with Provisioner(server.admin) as provisioner:
        with pytest.raises(Cut):
            await steps(provisioner, cutting, names)
        connection.terminate()
        password = await provisioner.ensure(names, UID)
        await migrated(provisioner, names)
        await server.run(provisioner.app_dsn(names, password), "INSERT INTO post (title) VALUES ('whole')")


async def test_the_owner_logs_in_only_while_a_migration_may_run(server, provisioner) -> None:
    names = unique()
    await provisioner.ensure(names, UID)
    expired = await provisioner.open_owner(names, seconds=-5)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await server.run(expired, "SELECT 1")
    owner = await provisioner.open_owner(names, seconds=60)
    assert (await server.run(owner, "SHOW search_path"))[0]["search_path"] == names.schema
    await provisioner.close_owner(names)
    with pytest.raises((asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidPasswordError)):
        await server.run(owner, "SELECT 1")


async def test_completion_of_migrations_is_read_from_the_database(provisioner) -> None:
    names = unique()
    await provisioner.ensure(names, UID)
    assert not await provisioner.migration_done(names, "r1")
    await migrated(provisioner, names)
    assert await provisioner.migration_done(names, "r1")
    assert not await provisioner.migration_done(names, "r2")


BACK_TO_ADMIN = """
    CREATE FUNCTION climb() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
        SET ROLE NONE;
        INSERT INTO {schema}.seen VALUES (current_user::text);
        RETURN true;
    END $$;
    CREATE TABLE seen (who text);
    GRANT USAGE ON SCHEMA {schema} TO PUBLIC;
    GRANT INSERT ON seen TO PUBLIC;
    ALTER TABLE moorage_migrations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY climbing ON moorage_migrations USING (climb());
"""


@pytest.mark.parametrize("admin", ["admin", "superuser"])
async def test_what_a_migration_left_in_its_record_never_runs_as_the_admin(server, admin) -> None:
    """A row-level policy calls a function of the table's owner, and `SET ROLE` can be undone by it."""
    names = unique(f"climber-{admin}")
    async with Provisioner(getattr(server, admin)) as provisioner:
        await provisioner.ensure(names, UID)
        await migrated(provisioner, names)
        await server.run_script(
            await provisioner.open_owner(names, seconds=60), BACK_TO_ADMIN.format(schema=f'"{names.schema}"')
        )
        assert await provisioner.migration_done(names, "r1")
        seen = await server.run(server.superuser, f'SELECT DISTINCT who FROM "{names.schema}".seen')
        assert [row["who"] for row in seen] == [names.owner]


async def test_functions_of_modules_never_stand_in_for_the_servers_own(server, provisioner) -> None:
    """On PostgreSQL 14 everybody may create in `public`; a function that fits better there would be taken."""
    await server.run_script(
        server.superuser,
        """
        CREATE TABLE public.seen (who text);
        GRANT ALL ON public.seen TO PUBLIC;
        CREATE FUNCTION public.hashtextextended(text, integer) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO public.seen VALUES (current_user::text);
            RETURN 1;
        END $$;
        """,
    )
    await provisioner.ensure(unique("overloaded"), UID)
    assert not await server.run(server.superuser, "SELECT who FROM public.seen")


async def test_a_database_that_is_away_is_unavailable_and_comes_back(server) -> None:
    away = Provisioner("postgresql://x:secret-pw@127.0.0.1:9/none")
    with pytest.raises(DatabaseUnavailableError) as caught:
        await away.ping()
    assert "secret-pw" not in str(caught.value)
    assert "127.0.0.1:9/none" in str(caught.value)
    await away.close()


@pytest.mark.parametrize("password", ["a/secret", "7/secret", "a?secret", "a#secret"])
def test_a_password_that_was_not_percent_encoded_is_not_taken_for_the_address(password: str) -> None:
    assert "secret" not in Provisioner(f"postgresql://admin:{password}@db.example/app").address


@pytest.mark.parametrize(
    "dsn",
    [
        *("postgresql://admin:secret/x@127.0.0.1:9/app", "postgresql://admin:secret#x@127.0.0.1:9/app"),
        *("postgresql://admin:secret?x@127.0.0.1:9/app", "postgresql://admin:secret@[::1:9/app"),
        *("postgresql://admin:x@127.0.0.1:secret/app", "mysql://admin:secret@h/app", "secret"),
    ],
)
async def test_a_dsn_that_cannot_be_read_is_refused_and_not_quoted(dsn: str) -> None:
    async with Provisioner(dsn) as broken:
        with pytest.raises(DatabaseRefusedError, match="not of the form") as caught:
            await broken.ping()
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_modules_get_of_the_admin_dsn_how_to_connect_and_not_as_whom() -> None:
    admin = "postgresql://db.example:6543/app?user=admin&password=pw&sslkey=/k&options=-cx&sslmode=require"
    dsn = Provisioner(admin).app_dsn(unique(), "mine")
    assert dsn.endswith(":mine@db.example:6543/app?sslmode=require")


async def test_wrong_rights_are_told_apart_from_an_outage(server, provisioner) -> None:
    names = unique()
    app = provisioner.app_dsn(names, await provisioner.ensure(names, UID))
    async with Provisioner(app) as weak:
        with pytest.raises(DatabaseRefusedError, match="CREATEROLE"):
            await weak.ensure(unique("other"), UID)
    async with Provisioner(server.admin.replace(":admin@", ":wrong@")) as wrong:
        with pytest.raises(DatabaseRefusedError, match="name or password"):
            await wrong.ping()
    async with Provisioner(server.admin.rpartition("/")[0] + "/missing") as missing:
        with pytest.raises(DatabaseRefusedError, match="does not exist"):
            await missing.ping()


async def test_a_database_that_only_reads_is_unavailable(server) -> None:
    """As after a failover to a standby."""
    database = server.admin.rpartition("/")[2]
    await server.run(server.superuser, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    async with Provisioner(server.admin) as standby:
        with pytest.raises(DatabaseUnavailableError, match="read-only"):
            await standby.ensure(unique(), UID)


async def test_the_schemas_comment_says_whose_it_is(server, provisioner) -> None:
    names = unique()
    await provisioner.ensure(names, UID)
    rows = await server.run(
        server.superuser,
        "SELECT obj_description(oid, 'pg_namespace') AS comment FROM pg_namespace WHERE nspname = $1",
        names.schema,
    )
    assert json.loads(rows[0]["comment"])["moorage"] == {
        "installation": names.installation,
        "namespace": "default",
        "module": "blog",
        "uid": UID,
    }
