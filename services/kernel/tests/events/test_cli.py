"""``moorage events``, and what ``moorage check`` and the migrator say of events."""

import asyncio
import json
import os
import re
import secrets
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from moorage import Event, Module, Reject
from moorage.cli.checking import check
from moorage.cli.events import events
from moorage.database.migrations import MigrationError, Migrator, Options
from moorage.testing import SchemaDatabase
from rigs.events import Site, until

pytestmark = pytest.mark.postgres

TYPE = "cli.thing.changed"


class Changed(Event, type=TYPE, key="id"):
    id: str
    n: int = 0


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, dsn: str = "") -> Result:
        return CliRunner().invoke(events, arguments, env={"DATABASE_DSN": dsn})

    return invoke


async def given(site: Site) -> list[bool]:
    """One dead letter, one parked event with another behind it, and one that is not sent yet."""
    module, mended = Module("things"), [False]

    @module.on(Changed)
    async def handle(event: Changed) -> None:
        if event.id == "dead" and not mended[0]:
            raise Reject("not like this")
        if event.id == "parked":
            raise RuntimeError("later")

    subscribes = json.dumps([{"type": TYPE, "retries": 100}])
    process = await site.start(
        module, [TYPE], EVENTS_SUBSCRIBES=subscribes, EVENTS_FIRST_RETRY="1h", EVENTS_LONGEST_RETRY="1h"
    )
    async with process.pool.unit() as db:
        for id, n in (("dead", 1), ("parked", 2), ("parked", 3), ("fine", 4)):
            await db.emit(Changed(id=id, n=n))
    await until(lambda: _states(site, {"done": 1, "dead": 1, "retry": 2}))
    site.bus.away = True
    async with process.pool.unit() as db:
        await db.emit(Changed(id="waiting", n=5))
    return mended


async def _states(site: Site, wanted: dict[str, int]) -> bool:
    return await site.states() == wanted


async def test_list_shows_what_waits_and_what_failed(site: Site) -> None:
    await given(site)
    rows = json.loads(await command(site, "list", "-o", "json"))
    assert {(row["state"], row["key"], row["attempts"]) for row in rows} == {
        ("pending", "waiting", 0),
        ("dead", "dead", 1),
        ("retry", "parked", 1),
        ("retry", "parked", 0),
    }
    assert "event" not in rows[0]
    text = await command(site, "list", "--state", "dead")
    assert "rejected: not like this" in text
    assert "1 event" in text
    assert "0 events" in await command(site, "list", "--type", "cli.thing.other")


async def test_show_tells_all_of_one(site: Site) -> None:
    await given(site)
    (id,) = await site.query("SELECT id FROM moorage_inbox WHERE state = 'dead'")
    (row,) = json.loads(await command(site, "show", id, "-o", "json"))
    assert row["event"]["data"] == {"id": "dead", "n": 1}
    assert row["reason"] == "rejected: not like this"
    assert '"id": "dead"' in await command(site, "show", id)
    assert "has an event nonsense" in await command(site, "show", "nonsense", fails=True)


async def test_what_others_wrote_does_not_reach_the_terminal_as_it_is(site: Site) -> None:
    await site.execute(
        r"""
        INSERT INTO moorage_inbox (source, id, type, topic, partition, position, key, state, reason, event)
        VALUES (E'/s\x1b[2J', E'id\x1b[2J', 't', 'x', 0, 0, E'k\x1b[31m', 'dead', E'no\nevil\u009b', E'raw \x1b[2J')
        """
    )
    for arguments in (["list"], ["show", "id\x1b[2J"], ["replay", "id\x1b[2J"]):
        text = await command(site, *arguments)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
        assert r"id\x1b[2J" in text
        if arguments == ["list"]:
            assert r"key=k\x1b[31m" in text
            assert r"no\nevil\x9b" in text
            (row,) = json.loads(await command(site, "list", "-o", "json"))
            assert (row["key"], row["reason"]) == ("k\x1b[31m", "no\nevil\x9b")


@pytest.mark.parametrize("how", ["id", "type", "all"])
async def test_replay_handles_a_dead_letter_again(site: Site, how: str) -> None:
    mended = await given(site)
    mended[0] = True
    (id,) = await site.query("SELECT id FROM moorage_inbox WHERE state = 'dead'")
    arguments = {"id": [id], "type": ["--type", TYPE], "all": ["--all-dead"]}[how]
    answer = json.loads(await command(site, "replay", *arguments, "-o", "json"))
    assert answer == {"replayed": [{"id": id, "type": TYPE, "source": "/test/things"}], "missing": []}
    await until(lambda: _states(site, {"done": 2, "retry": 2}))


async def test_replay_wants_to_know_what(site: Site) -> None:
    assert "name events by ID" in await command(site, "replay", fails=True)
    said = await command(site, "replay", "nonsense", fails=True)
    assert "no dead letter: nonsense" in said


async def command(site: Site, *arguments: str, fails: bool = False) -> str:
    """The command as a process of its own: here, what the module logs would be mixed with its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moorage.cli", "events", *arguments),
        env={**os.environ, "DATABASE_DSN": site.database.app_dsn},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    assert (process.returncode != 0) == fails, error
    return (error if fails else out).decode()


def test_without_a_database_it_says_which_variable_is_missing(run: Run) -> None:
    assert "DATABASE_DSN" in run("list").output


# -- schemas


class Shop:
    """A folder with a module that emits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = f"shop_{secrets.token_hex(4)}"
        (folder / self.package / "migrations" / "versions").mkdir(parents=True)
        (folder / "manifests").mkdir()
        self.write("n: int = 0")

    def write(self, fields: str, *, code: str = "", spec: str = "publishes: [shop.post.published]") -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == self.package]:
            del sys.modules[name]
        (self.folder / self.package / "__init__.py").write_text(
            "from moorage import Db, Event, Module\n"
            'module = Module("shop")\n'
            f'class Published(Event, type="shop.post.published", key="id"):\n    id: str\n    {fields}\n'
            + textwrap.dedent(code)
        )
        (self.folder / "manifests" / "module.yaml").write_text(
            "apiVersion: moorage.dev/v1alpha1\nkind: Module\nmetadata: {name: shop}\n"
            f"spec: {{version: 1.0.0, image: x/shop:1, app: '{self.package}:module', database: {{}}, "
            f"events: {{{spec}}}}}\n"
        )

    def problems(self) -> list[str]:
        return [str(problem) for problem in check(self.folder) if problem.severity == "error"]

    @property
    def schemas(self) -> Any:
        return json.loads((self.folder / self.package / "events.json").read_text())["events"]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    shop = Shop(tmp_path)
    yield shop
    # Event classes live as long as somebody refers to them: those of the test are to be gone.
    for name in [name for name in sys.modules if name.partition(".")[0] == shop.package]:
        del sys.modules[name]


def test_schemas_are_written_and_check_asks_for_them(shop: Shop, run: Run) -> None:
    (problem,) = shop.problems()
    assert "events.json is missing" in problem
    assert f"moorage events schemas {shop.folder}" in problem
    assert "1 types, written" in run("schemas", str(shop.folder)).output
    assert shop.schemas["shop.post.published"]["key"] == "id"
    assert shop.problems() == []
    assert "unchanged" in run("schemas", str(shop.folder)).output
    shop.write("n: int = 0; more: str = ''")
    assert "is not what the code says" in shop.problems()[0]
    assert run("schemas", str(shop.folder)).exit_code == 0
    assert shop.problems() == []


def test_a_change_that_breaks_readers_is_refused_by_both(shop: Shop, run: Run) -> None:
    run("schemas", str(shop.folder))
    shop.write("n: str = ''")
    (problem,) = shop.problems()
    assert "shop.post.published: the field n was integer and is string" in problem
    assert "shop.post.published_v2" in problem
    refused = run("schemas", str(shop.folder))
    assert refused.exit_code == 1
    assert "the field n was integer and is string" in refused.output
    assert run("schemas", str(shop.folder), "--force").exit_code == 0
    assert shop.problems() == []


def test_check_holds_code_and_manifest_to_each_other(shop: Shop, run: Run) -> None:
    run("schemas", str(shop.folder))
    code = """
    class Other(Event, type="shop.other.changed", key="id"):
        id: str

    class Unused(Event, type="shop.unused.changed", key="id"):
        id: str

    @module.on(Other)
    async def react(event: Other, what: dict) -> None: ...
    """
    shop.write(
        "n: int = 0",
        code=code,
        spec="publishes: [shop.post.published, shop.post.archived], subscribes: [{type: shop.post.deleted}]",
    )
    found = "\n".join(shop.problems())
    assert "nothing provides a <class 'dict'> for the parameter 'what'" in found
    assert "react handles shop.other.changed, which the Module does not subscribe to" in found
    assert "handles shop.post.deleted" in found
    assert "Unused is of type shop.unused.changed, which is neither emitted nor handled" in found
    assert "is of type shop.post.archived" in found


async def test_the_migrator_refuses_a_version_that_breaks_readers_before_any_migration(
    shop: Shop, run: Run, moorage_database: SchemaDatabase
) -> None:
    def migrator() -> Migrator:
        return Migrator(
            shop.package, SecretStr(moorage_database.owner_dsn), Options(schema=moorage_database.schema)
        )

    await asyncio.to_thread(run, "schemas", str(shop.folder))
    await migrator().upgrade()
    shop.write("more: int = 0")
    (shop.folder / shop.package / "migrations" / "versions" / "0001_x.py").write_text(
        "from alembic import op\nrevision = '0001'\ndown_revision = None\n"
        "def upgrade():\n    op.execute('CREATE TABLE made (id int)')\n"
    )
    await asyncio.to_thread(run, "schemas", str(shop.folder), "--force")
    with pytest.raises(
        MigrationError, match=r"shop\.post\.published: the field n is gone; keep it as it was"
    ):
        await migrator().upgrade()
    assert (await migrator().status()).current is None
    shop.write("n: int = 0; more: int = 0")
    await asyncio.to_thread(run, "schemas", str(shop.folder))
    assert (await migrator().upgrade()).current == "0001"
