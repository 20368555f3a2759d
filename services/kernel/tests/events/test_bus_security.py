"""What a module's app role tries against the bus of others, as an attacker who may send any SQL."""

import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from rigs.buses import PostgresBus

pytestmark = pytest.mark.postgres
TABLES = ("principal", "topic", "partition", "event", "subscription", "member", "lease")
VICTIM = uuid.UUID(int=7)
PUBLISH = "SELECT moorage_bus.publish(ARRAY['{}'], ARRAY['k'], ARRAY['\\x7b7d'::bytea], ARRAY['{{}}'])"


@dataclass
class Scene:
    """``blog`` publishes, ``search`` reads as member `VICTIM`, ``evil`` publishes and reads things of its own."""

    bus: PostgresBus
    roles: dict[str, str]

    async def run(self, module: str, script: str) -> None:
        connection = await asyncpg.connect(self.bus.dsn("default", module))
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    async def ask(self, module: str, statement: str) -> list[Any]:
        connection = await asyncpg.connect(self.bus.dsn("default", module))
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()

    async def admin(self, script: str) -> list[Any]:
        connection = await asyncpg.connect(self.bus.admin_dsn)
        try:
            return list(await connection.fetch(script))
        finally:
            await connection.close()

    async def state(self) -> dict[str, list[Any]]:
        """All that is in the bus's tables."""
        return {
            table: sorted(map(repr, await self.admin(f"SELECT * FROM moorage_bus.{table}")))
            for table in TABLES
        }


@pytest.fixture(params=["18", "15"])
def server_dsn(request: pytest.FixtureRequest) -> str:
    """A superuser's, of either version."""
    return str(request.getfixturevalue("moorage_postgres" if request.param == "18" else "postgres15"))


@pytest.fixture
async def scene(server_dsn: str) -> AsyncIterator[Scene]:
    async with PostgresBus.create(server_dsn) as bus:
        await bus.declare("default", "blog", publishes=["blog.post.published"])
        await bus.declare("default", "search", subscribes=["blog.post.published"])
        await bus.declare("default", "evil", publishes=["evil.thing.done"], subscribes=["evil.thing.done"])
        await bus.declare("other", "blog", publishes=["blog.post.published"])
        roles = {name: await bus.role("default", name) for name in ("blog", "search", "evil", "stranger")}
        scene = Scene(bus, {**roles, "bus": bus.name})
        await scene.run("blog", PUBLISH.format("blog.post"))
        await scene.run(
            "search", f"SELECT * FROM moorage_bus.heartbeat('{VICTIM}', ARRAY['blog.post'], '1 hour', NULL)"
        )
        yield scene


REFUSED: dict[str, str] = {
    **{f"read the table {name}": f"SELECT * FROM moorage_bus.{name}" for name in TABLES},
    **{f"lock the table {name}": f"BEGIN; LOCK TABLE moorage_bus.{name}" for name in TABLES},
    "copy events out": "COPY moorage_bus.event TO STDOUT",
    "write an event by hand": "INSERT INTO moorage_bus.event VALUES (1, 0, 0, 'k', '', '{}')",
    "delete events": "DELETE FROM moorage_bus.event",
    "empty the table": "TRUNCATE moorage_bus.event",
    "take a lease by hand": "UPDATE moorage_bus.lease SET member = gen_random_uuid()",
    "become a topic's owner": "UPDATE moorage_bus.topic SET owner = 3",
    "register as another": "UPDATE moorage_bus.principal SET module = 'blog'",
    "publish to another module's topic": PUBLISH.format("blog.post"),
    "publish to a topic that nobody has": PUBLISH.format("brand.new"),
    "publish to a platform topic": PUBLISH.format("platform.session"),
    "slip a foreign topic in among own ones": (
        "SELECT moorage_bus.publish(ARRAY['evil.thing', 'blog.post'], ARRAY['k', 'k'], "
        "ARRAY['{}', '{}']::bytea[], ARRAY['{}', '{}'])"
    ),
    "join a topic without a subscription": (
        "SELECT * FROM moorage_bus.heartbeat(gen_random_uuid(), ARRAY['blog.post'], '1h', NULL)"
    ),
    "become another module": "SET ROLE {blog}",
    "become the owner of the bus": "SET ROLE {bus}",
    "log in as another in mid-session": "SET SESSION AUTHORIZATION {blog}",
    "the same by function": "SELECT set_config('session_authorization', '{blog}', false)",
    "become the owner by function": "SELECT set_config('role', '{bus}', false)",
    "become a member of another": "GRANT {blog} TO {evil}",
    "take another's name": "ALTER ROLE {evil} RENAME TO {blog}_2",
    "call the inner functions": "SELECT moorage_bus._caller()",
    "ask for another group's shares": f"SELECT * FROM moorage_bus._shares(2, '{VICTIM}')",
    "make an object in the schema": "CREATE TABLE moorage_bus.mine (a int)",
    "make a function in the schema": (
        "CREATE FUNCTION moorage_bus.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'"
    ),
    "replace a function": (
        "CREATE OR REPLACE FUNCTION moorage_bus.lag() RETURNS TABLE (topic text, partition smallint, lag bigint) "
        "LANGUAGE sql AS 'SELECT NULL, NULL, NULL'"
    ),
    "change a function": "ALTER FUNCTION moorage_bus.lag() SECURITY INVOKER",
    "hang a trigger on the events": (
        "CREATE TRIGGER t AFTER INSERT ON moorage_bus.event "
        "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    ),
    "refer to a table": "CREATE TEMP TABLE t (a int REFERENCES moorage_bus.principal)",
    "stand in the way of an upgrade by a row type": "CREATE TEMP TABLE t (e moorage_bus.event)",
    "stand in the way by an array of it": "CREATE TEMP TABLE t (e moorage_bus.event[])",
    "rename the schema": "ALTER SCHEMA moorage_bus RENAME TO mine",
    "comment on the schema": "COMMENT ON SCHEMA moorage_bus IS 'mine'",
    "give rights on": "ALTER DEFAULT PRIVILEGES FOR ROLE {bus} GRANT SELECT ON TABLES TO {evil}",
    "shadow the tables by temporary ones": (
        "CREATE TEMP TABLE principal (id int, role name, channel text); "
        "INSERT INTO principal VALUES (1, session_user, 'c'), (2, session_user, 'c'); "
        "CREATE TEMP TABLE topic AS SELECT 1 AS id, 'blog.post' AS name, 8 AS partitions, 1 AS owner; "
        "SET search_path = pg_temp, moorage_bus; " + PUBLISH.format("blog.post")
    ),
    "shadow a temporary type": (
        "CREATE TYPE pg_temp.integer AS (a int); SET search_path = pg_temp; " + PUBLISH.format("blog.post")
    ),
    "call from a function of one's own": (
        "CREATE FUNCTION pg_temp.f() RETURNS void SECURITY DEFINER LANGUAGE sql AS $$ "
        + PUBLISH.format("blog.post")
        + " $$; SELECT pg_temp.f()"
    ),
    "use another resolution of names": (
        "SET plpgsql.variable_conflict = use_variable; " + PUBLISH.format("blog.post")
    ),
}
"""What fails, by what it tries to do; each is one script of `evil`."""


REFUSALS = {"42501", "0A000", "42P16", "MB001", "MB002", "MB003"}
"""Insufficient privilege, a name in use, a table that a temporary one may not refer to, and the bus's own."""


async def test_every_attempt_is_refused_and_leaves_no_trace(scene: Scene) -> None:
    before, wrong = await scene.state(), {}
    for attempt, script in REFUSED.items():
        for name in ("blog", "evil", "bus"):
            script = script.replace(f"{{{name}}}", scene.roles[name])
        try:
            await scene.run("evil", script)
        except asyncpg.PostgresError as refusal:
            if refusal.sqlstate not in REFUSALS:
                wrong[attempt] = f"{refusal.sqlstate}: {refusal}"
        else:
            wrong[attempt] = "it went through"
        if await scene.state() != before:
            wrong[attempt] = "it changed something"
    assert wrong == {}


WITHOUT_EFFECT: dict[str, Callable[[int], str]] = {
    "read with another's lease": lambda token: (
        f"SELECT * FROM moorage_bus.fetch('{VICTIM}', ARRAY['blog.post'], ARRAY[0,1,2,3,4,5,6,7]::smallint[], "
        f"array_fill({token}::bigint, ARRAY[8]), array_fill(0::bigint, ARRAY[8]), 100, 1000)"
    ),
    "release another's partitions": lambda _: (
        f"SELECT moorage_bus.release('{VICTIM}', ARRAY['blog.post'], ARRAY[0]::smallint[])"
    ),
    "end another's membership": lambda _: f"SELECT moorage_bus.leave('{VICTIM}')",
    "trim everything": lambda _: "SELECT moorage_bus.trim('-1 day', 1000)",
}


async def test_what_is_not_refused_finds_and_changes_nothing(scene: Scene) -> None:
    before = await scene.state()
    (token,) = {
        row["token"]
        for row in await scene.admin("SELECT token FROM moorage_bus.lease WHERE member IS NOT NULL")
    }
    for attempt, make in WITHOUT_EFFECT.items():
        rows = await scene.ask("evil", make(token))
        assert [row for row in rows if any(row.values())] == [], attempt
        after = await scene.state()
        assert {**after, "topic": before["topic"]} == before, attempt  # it may set its own topic's retention
        assert after["topic"][0] == before["topic"][0], attempt


async def test_another_groups_position_cannot_be_moved(scene: Scene) -> None:
    before = await scene.state()
    lost = await scene.ask(
        "evil",
        f"SELECT * FROM moorage_bus.commit('{VICTIM}', ARRAY['blog.post'], ARRAY[0]::smallint[], ARRAY[1], ARRAY[1])",
    )
    assert [tuple(row) for row in lost] == [("blog.post", 0)]
    assert await scene.state() == before


async def test_objects_in_public_are_not_what_the_functions_use(scene: Scene) -> None:
    """A database that was upgraded from PostgreSQL 14 lets everybody create things in ``public``."""
    await scene.admin("GRANT CREATE ON SCHEMA public TO PUBLIC")
    traps = """
        CREATE TABLE public.caught (who text);
        GRANT ALL ON public.caught TO PUBLIC;
        CREATE FUNCTION public.trap(integer, integer) RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.caught VALUES (current_user); RETURN true; END $$;
        CREATE OPERATOR public.= (LEFTARG = integer, RIGHTARG = integer, FUNCTION = public.trap);
        CREATE FUNCTION public.textual(text, text) RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.caught VALUES (current_user); RETURN true; END $$;
        CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.textual);
        CREATE FUNCTION public.sha256(bytea) RETURNS bytea LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.caught VALUES (current_user); RETURN '\\x0000'::bytea; END $$;
        CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.caught VALUES (current_user); END $$;
        CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.caught VALUES (current_user); RETURN now(); END $$;
        SET search_path = public, pg_catalog;
    """
    calls = (
        PUBLISH.format("evil.thing"),
        "SELECT * FROM moorage_bus.heartbeat(gen_random_uuid(), ARRAY['evil.thing'], '1h', NULL)",
        "SELECT * FROM moorage_bus.lag()",
        "SELECT moorage_bus.trim('1 day', 10)",
        "SELECT * FROM moorage_bus.channels()",
    )
    await scene.run("evil", traps + "; ".join(calls))
    assert await scene.admin("SELECT * FROM public.caught") == []
    with pytest.raises(asyncpg.PostgresError, match=r"blog\.post"):
        await scene.run("evil", "SET search_path = public, pg_catalog; " + PUBLISH.format("blog.post"))
    assert await scene.admin("SELECT * FROM public.caught") == []


async def test_converging_does_not_use_them_either(scene: Scene) -> None:
    await scene.admin("GRANT CREATE ON SCHEMA public TO PUBLIC")
    await scene.run(
        "evil",
        """
        CREATE FUNCTION public.format(text, name, name, name) RETURNS text LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'called by %', current_user; END $$;
        CREATE FUNCTION public.trap(name, name) RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'called by %', current_user; END $$;
        CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = name, FUNCTION = public.trap);
        """,
    )
    await scene.admin(f"ALTER DATABASE {scene.bus.name} SET search_path = public, pg_catalog")
    await scene.bus.declare(
        "default", "blog", publishes=["blog.post.published"], subscribes=["evil.thing.done"]
    )


async def test_a_role_that_is_not_registered_gets_nothing(scene: Scene) -> None:
    await scene.admin(f"GRANT USAGE ON SCHEMA moorage_bus TO {scene.roles['stranger']}")
    for function in ("lag()", "channels()", "leave(gen_random_uuid())", "trim('1d', 1)"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await scene.run("stranger", f"SELECT moorage_bus.{function}")
    await scene.admin(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA moorage_bus TO {scene.roles['stranger']}")
    for function in ("lag()", "channels()", "leave(gen_random_uuid())", "trim('1d', 1)"):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await scene.run("stranger", f"SELECT moorage_bus.{function}")
        assert caught.value.sqlstate == "MB001"


async def test_a_transaction_that_is_left_open_stops_nobody_else(scene: Scene) -> None:
    """Locks that an app role can take are of its own rows alone."""
    evil = await asyncpg.connect(scene.bus.dsn("default", "evil"))
    await scene.bus.declare(
        "default",
        "evil",
        publishes=["evil.thing.done"],
        subscribes=["blog.post.published", "evil.thing.done"],
    )
    await evil.execute("BEGIN")
    await evil.execute(
        "SELECT * FROM moorage_bus.heartbeat(gen_random_uuid(), ARRAY['blog.post'], '1h', NULL)"
    )
    await evil.execute(PUBLISH.format("evil.thing"))
    await evil.execute("SELECT moorage_bus.trim('2 days', 1000)")
    limit = "SET statement_timeout = '3s'; "
    await scene.run("blog", limit + PUBLISH.format("blog.post"))
    await scene.run(
        "search", limit + f"SELECT * FROM moorage_bus.heartbeat('{VICTIM}', ARRAY['blog.post'], '1h', NULL)"
    )
    await scene.run("blog", limit + "SELECT moorage_bus.trim('0 days', 1000)")
    for module, publishes in (
        ("evil", ["evil.thing.done"]),
        ("blog", ["blog.post.published", "blog.tag.made"]),
    ):
        await scene.bus.declare(
            "default", module, publishes=publishes, subscribes=["blog.post.published", "evil.thing.done"]
        )
    await evil.close()


async def test_channels_are_those_of_ones_own_topics(scene: Scene) -> None:
    rows = await scene.ask("evil", "SELECT topic, channel FROM moorage_bus.channels()")
    assert {row["topic"] for row in rows} == {None, "evil.thing"}
    everyones = await scene.admin(
        "SELECT channel FROM moorage_bus.topic UNION ALL SELECT channel FROM moorage_bus.principal"
    )
    assert len({row["channel"] for row in everyones}) == len(everyones)  # random: nobody guesses another's


@pytest.mark.parametrize(
    ("key", "body", "headers"),
    [
        ("k", b"{}", '{"a": ' + "[" * 3000 + "1" + "]" * 3000 + "}"),
        ("k", b"{}", '{"a": ' + "1" * 5000 + "}"),
        ("k", b"{}", '{"a": null}'),
        ("k", b"{}", "[]"),
        ("k", b"{}", '{"a": "' + "x" * 20_000 + '"}'),
        ("k", b"x" * (1024 * 1024 + 1), "{}"),
        ("k" * 2049, b"{}", "{}"),
    ],
    ids=["deep", "number", "null", "list", "long headers", "long body", "long key"],
)
async def test_what_readers_could_not_take_is_not_published(
    scene: Scene, key: str, body: bytes, headers: str
) -> None:
    """One such event among those that a reader asks for would keep all others from it."""
    connection = await asyncpg.connect(scene.bus.dsn("default", "evil"))
    try:
        with pytest.raises(asyncpg.PostgresError) as caught:
            await connection.execute(
                "SELECT moorage_bus.publish(ARRAY['evil.thing'], ARRAY[$1::text], ARRAY[$2::bytea], ARRAY[$3::text])",
                key,
                body,
                headers,
            )
    finally:
        await connection.close()
    assert caught.value.sqlstate == "MB004"
