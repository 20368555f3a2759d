"""The schema of the Postgres bus: made once by whoever comes first, upgraded in place, left alone by older code."""

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import asyncpg
import pytest

from moorage.events import busschema
from moorage.events.busschema import Access, ForeignBusError, converge_access, ensure_bus, installed

pytestmark = pytest.mark.postgres
SUMS = {1: "f04d9e85f649adff", 2: "9b433737cb09395c"}
"""What ``bus.sql`` was at each version; a change of it is a new version with a new line here (see `busschema`)."""


@dataclass
class Place:
    """An empty database, and a role for its bus."""

    dsn: str
    owner: str

    async def connect(self) -> Any:
        return await asyncpg.connect(self.dsn)

    async def ask(self, statement: str) -> list[tuple[Any, ...]]:
        connection = await self.connect()
        try:
            return [tuple(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()


@pytest.fixture
async def place(moorage_postgres: str) -> AsyncIterator[Place]:
    name = f"b_{secrets.token_hex(5)}"
    server = await asyncpg.connect(moorage_postgres)
    await server.execute(f"CREATE DATABASE {name}")
    await server.execute(f"CREATE ROLE {name} NOLOGIN")
    yield Place(moorage_postgres.rpartition("/")[0] + f"/{name}", name)
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.execute(f"DROP ROLE {name}")
    await server.close()


async def ensure(place: Place) -> bool:
    connection = await place.connect()
    try:
        return await ensure_bus(connection, place.owner)
    finally:
        await connection.close()


def test_a_change_of_the_sql_is_a_new_version() -> None:
    """Else databases that are there would never get it."""
    text = files("moorage.events").joinpath("bus.sql").read_bytes()
    assert SUMS[busschema.VERSION] == hashlib.sha256(text).hexdigest()[:16]
    assert max(SUMS) == busschema.VERSION


def test_every_function_pins_the_search_path_and_the_callable_ones_are_listed() -> None:
    _, functions = busschema.read_sql()
    made = re.findall(r"FUNCTION moorage_bus\.(\w+)\(.*?AS \$\$", functions, flags=re.DOTALL)
    heads = re.findall(r"FUNCTION moorage_bus\.\w+\(.*?AS \$\$", functions, flags=re.DOTALL)
    assert all("SET search_path = pg_catalog, pg_temp AS $$" in head for head in heads)
    assert {name for name in made if not name.startswith("_")} == busschema.API.keys()
    assert all(
        "SECURITY DEFINER" in head for head, name in zip(heads, made, strict=True) if name in busschema.API
    )


async def test_it_is_made_once(place: Place) -> None:
    connection = await place.connect()
    assert not await installed(connection)
    assert await ensure_bus(connection, place.owner)
    assert await installed(connection)
    assert not await ensure_bus(connection, place.owner)
    await connection.close()


async def test_of_ten_at_once_one_makes_it(place: Place) -> None:
    assert sum(await asyncio.gather(*(ensure(place) for _ in range(10)))) == 1


async def test_one_that_broke_off_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, functions = busschema.read_sql()
    with monkeypatch.context() as patched:
        patched.setattr(busschema, "read_sql", lambda: (steps, functions + "SELECT 1 / 0;"))
        with pytest.raises(asyncpg.DivisionByZeroError):
            await ensure(place)
    assert await place.ask("SELECT FROM pg_namespace WHERE nspname = 'moorage_bus'") == []
    assert await ensure(place)


async def test_a_new_version_upgrades_in_place_and_old_code_leaves_it_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ensure(place)
    connection = await place.connect()
    role = f"{place.owner}_app"
    await connection.execute(f"CREATE ROLE {role}")
    await converge_access(connection, Access(role, "default", "blog", ["blog.post.published"]))
    steps, functions = busschema.read_sql()
    new = functions + "CREATE FUNCTION moorage_bus.extra() RETURNS integer LANGUAGE sql AS 'SELECT 7';"
    with monkeypatch.context() as patched:
        patched.setattr(busschema, "VERSION", busschema.VERSION + 1)
        patched.setattr(busschema, "API", {**busschema.API, "extra": ""})
        added = (busschema.VERSION, "ALTER TABLE moorage_bus.topic ADD COLUMN colour text DEFAULT 'blue';")
        patched.setattr(busschema, "read_sql", lambda: ([*steps, added], new))
        assert sum(await asyncio.gather(*(ensure(place) for _ in range(5)))) == 1
    assert await place.ask("SELECT name, colour FROM moorage_bus.topic") == [("blog.post", "blue")]
    # Those who are registered may call what is new, without waiting for the operator to look at each of them.
    assert await place.ask(f"SELECT has_function_privilege('{role}', 'moorage_bus.extra()', 'EXECUTE')") == [
        (True,)
    ]
    assert not await ensure(place)
    assert len(await place.ask("SELECT FROM pg_proc WHERE proname = 'extra'")) == 1
    await connection.execute(f"DROP OWNED BY {role}")
    await connection.execute(f"DROP ROLE {role}")
    await connection.close()


@pytest.mark.parametrize("comment", ["", "someone's notes", '{"moorage": {}}'])
async def test_an_empty_schema_of_ours_is_filled(place: Place, comment: str) -> None:
    connection = await place.connect()
    await connection.execute(f"CREATE SCHEMA moorage_bus AUTHORIZATION {place.owner}")
    await connection.execute(f"COMMENT ON SCHEMA moorage_bus IS $c${comment}$c$")
    await connection.close()
    assert await ensure(place)


async def test_somebody_elses_schema_is_left_alone(place: Place) -> None:
    connection = await place.connect()
    await connection.execute("CREATE SCHEMA moorage_bus")
    with pytest.raises(ForeignBusError, match=r"role postgres.*database of its own"):
        await ensure_bus(connection, place.owner)
    await connection.close()


async def test_a_role_that_is_named_anew_keeps_what_its_module_has(place: Place) -> None:
    """As after a restore into another installation's name."""
    await ensure(place)
    connection = await place.connect()
    for role in (f"{place.owner}_old", f"{place.owner}_new"):
        await connection.execute(f"CREATE ROLE {role}")
        await converge_access(connection, Access(role, "default", "blog", ["blog.post.published"]))
    assert await place.ask("SELECT role, module FROM moorage_bus.principal") == [
        (f"{place.owner}_new", "blog")
    ]
    assert await place.ask(f"SELECT has_schema_privilege('{place.owner}_old', 'moorage_bus', 'USAGE')") == [
        (False,)
    ]
    for role in (f"{place.owner}_old", f"{place.owner}_new"):
        await connection.execute(f"DROP OWNED BY {role}")
        await connection.execute(f"DROP ROLE {role}")
    await connection.close()
