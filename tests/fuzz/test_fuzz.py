"""Whole modules under schemathesis: no answer of theirs is a 5xx, and every answer is as their document says.

A fixed seed, so that a change is judged by what it changed; `FUZZ_SEED` and `FUZZ_EXAMPLES` search further.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import pytest
from pydantic import AnyUrl, Field, SecretStr
from sqlalchemy import select
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.pool import NullPool

from moorage import (
    Content,
    CursorPage,
    CursorPaging,
    Db,
    Model,
    Module,
    NotFound,
    Out,
    Page,
    Paging,
    Query,
    Request,
    ServerSent,
    Stream,
    Table,
    User,
    WebSocket,
)
from moorage.database import platform
from moorage.database.engine import new_engine
from moorage.testing import ModuleHarness, SchemaDatabase

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(600)]
EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "6")
SEED = os.environ.get("FUZZ_SEED", "20300101")
LEFT_OUT = "positive_data_acceptance,ensure_resource_availability"
"""The first takes a 422 for values that fit the schema as a fault, but a foreign key or a used idempotency key is none;
the second takes it ill that the answer to a repeated key names something that was deleted since.
"""
CONFIG = """
[checks]
# 412: preconditions are judged before a body is looked at (RFC 9110, 13.2.1). The rest: ways to say no, too.
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 408, 409, 412, 413, 414, 415, 422, 426, 431]
"""


async def fuzz(served: ModuleHarness, roles: list[str], folder: Path) -> None:
    """Run schemathesis against *served*; its report is the failure's text."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    # It is written for a terminal of its own: a process, as anybody would run it.
    token = served.client(roles=roles).headers["Authorization"]
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        *("--config-file", str(folder / "schemathesis.toml"), "run"),
        *(f"{served.admin.base_url}/openapi.json", "--url", served.url),
        *("--header", f"Authorization: {token}"),
        *("--checks", "all", "--exclude-checks", LEFT_OUT, "--max-examples", EXAMPLES, "--seed", SEED),
        *("--suppress-health-check", "all", "--no-color", "--request-timeout", "20"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
    )
    report, _ = await process.communicate()
    assert process.returncode == 0, report.decode(errors="replace")[-20_000:]


async def test_the_blog(moorage_postgres: str, tmp_path: Path) -> None:
    async with ModuleHarness(
        Path(__file__).parents[2] / "services/blog", server_dsn=moorage_postgres
    ) as blog:
        await fuzz(blog, ["author", "editor"], tmp_path)


# ---- a module with everything that a handler can take and give


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class FuzzedThing(Table):
    """A row with a column of each common type."""

    name: Mapped[str] = mapped_column(unique=True)
    size: Mapped[int]
    price: Mapped[Decimal | None]
    due: Mapped[date | None]
    at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(default=1)


class Inner(Model):
    kind: Literal["a", "b"]
    url: AnyUrl | None = None
    # From a year on pydantic writes "P1Y20D", which RFC 3339 has not.
    period: Annotated[timedelta, Field(ge=timedelta(0), lt=timedelta(days=365))] = timedelta(0)


class Everything(Model):
    """A body with all kinds of fields."""

    text: Annotated[str, Field(max_length=50)]
    colour: Colour
    number: int
    real: float = Field(0.0, allow_inf_nan=False)
    decimal: Decimal = Decimal(0)
    day: date | None = None
    at: datetime | None = None
    inner: Inner | None = None
    either: int | str | list[int] = 0
    many: dict[str, list[Inner]] = Field(default_factory=dict, max_length=3)
    secret: SecretStr | None = Field(None, exclude=True)


class ThingIn(Model):
    name: Annotated[str, Field(min_length=1, max_length=40)]
    size: int = 0
    price: Decimal | None = None
    due: date | None = None
    at: datetime | None = None


class ThingOut(ThingIn):
    id: UUID
    version: int


class Wanted(Query):
    colours: list[Colour] = Field(default_factory=list, description="Any of these.")
    least: int | None = None


async def load(id: UUID, db: Db) -> FuzzedThing:
    return await db.get(FuzzedThing, id, lock=True) or NotFound.throw("thing", id)


def wide_module() -> tuple[Module, list[dict[str, Any]]]:  # noqa: C901 - a list of declarations
    """The module and its rules."""
    module = Module("wide")
    module.serve_openapi(page="docs")
    rules: list[dict[str, Any]] = [
        {"name": "openapi", "methods": ["GET"], "path": "/openapi.json", "auth": "none"},
        {"name": "docs", "methods": ["GET"], "path": "/docs", "auth": "none"},
    ]

    def rule(name: str, method: str, path: str, auth: str = "optional") -> str:
        # So wide that none is refused; what it tells has to be as the document says.
        limits = {"perIp": "9999999/second", "outage": "refuse"}
        rules.append({"name": name, "methods": [method], "path": path, "auth": auth, "rateLimit": limits})
        return name

    @module.handle(rule("echo", "POST", "/echo"))
    async def echo(given: Everything) -> Everything:
        """What was sent.

        Body example:
            {"text": "x", "colour": "red", "number": 1}
        """
        return given

    @module.handle(rule("types", "GET", "/types/{number}/{colour}/{text}"))
    async def types(
        number: int,
        colour: Colour,
        text: str,
        flag: bool = False,
        ratio: float = 1.0,
        tag: list[str] = [],  # noqa: B006
    ) -> dict[str, Any]:
        return {"number": number, "colour": colour, "text": text, "flag": flag, "tag": tag}

    @module.handle(rule("list", "GET", "/things"))
    async def index(wanted: Wanted, paging: Paging, db: Db) -> Out[Page[ThingOut]]:
        query = select(FuzzedThing).order_by(FuzzedThing.name)
        if wanted.least is not None:
            query = query.where(FuzzedThing.size >= wanted.least)
        return await db.page(query, paging)

    @module.handle(rule("walk", "GET", "/walk"))
    async def walk(paging: CursorPaging, db: Db) -> Out[CursorPage[ThingOut]]:
        return await db.page(select(FuzzedThing).order_by(FuzzedThing.at.desc(), FuzzedThing.price), paging)

    @module.handle(rule("create", "POST", "/things", "required"), status=201, idempotent=True)
    async def create(new: ThingIn, user: User, db: Db) -> Out[ThingOut]:
        return await db.add(FuzzedThing(**new.model_dump()))

    @module.handle(rule("read", "GET", "/things/{id}"), resource=load, etag="version")
    async def read(thing: FuzzedThing) -> Out[ThingOut]:
        return thing

    @module.handle(rule("replace", "PUT", "/things/{id}", "required"), resource=load, etag="version")
    async def replace(new: ThingIn, thing: FuzzedThing) -> Out[ThingOut]:
        thing.assign(new)
        thing.version += 1
        return thing

    @module.handle(rule("drop", "DELETE", "/things/{id}", "required"), resource=load, etag="version")
    async def drop(thing: FuzzedThing, db: Db) -> None:
        await db.delete(thing)

    @module.handle(rule("files", "GET", "/files/**"))
    async def files(request: Request) -> Content:
        return Content(request.params["**"].encode(), "text/plain", {"X-Path": "x"})

    @module.handle(rule("rows", "GET", "/rows"))
    async def rows(db: Db) -> AsyncIterator[Out[ThingOut]]:
        for thing in await db.scalars(select(FuzzedThing).limit(50)):
            yield thing

    @module.handle(rule("happens", "GET", "/happens"))
    async def happens(times: Annotated[int, Field(ge=0, le=5)] = 2) -> AsyncIterator[ServerSent]:
        for n in range(times):
            yield ServerSent({"n": n})

    @module.handle(rule("csv", "GET", "/csv"))
    async def csv() -> Stream:
        async def lines() -> AsyncIterator[bytes]:
            yield b"a,b\n"

        return Stream(lines(), "text/csv")

    @module.websocket(rule("chat", "GET", "/chat"))
    async def chat(socket: WebSocket[ThingIn, ThingOut]) -> None: ...

    return module, rules


async def test_a_module_with_everything(moorage_database: SchemaDatabase, tmp_path: Path) -> None:
    engine = new_engine(SecretStr(moorage_database.owner_dsn), connect_args={}, poolclass=NullPool)
    async with engine.connect() as connection:
        await platform.converge(connection)
        await connection.run_sync(FuzzedThing.__table__.create)
        await connection.commit()
    await engine.dispose()
    module, rules = wide_module()
    header = {"apiVersion": "moorage.dev/v1alpha1", "metadata": {"name": "wide"}}
    resources = [
        {**header, "kind": "Module", "spec": {"version": "1.0.0", "image": "x:1", "app": "x:y"}},
        {**header, "kind": "Route", "spec": {"module": "wide", "rules": rules}},
    ]
    (tmp_path / "all.yaml").write_text("\n---\n".join(map(json.dumps, resources)))
    connection = await asyncpg.connect(moorage_database.owner_dsn)
    for n in range(30):
        await connection.execute(
            "INSERT INTO fuzzed_thing (id, name, size, version) VALUES (gen_random_uuid(), $1, $2, 1)",
            f"thing {n}",
            n,
        )
    await connection.close()
    environ = {"DATABASE_DSN": moorage_database.app_dsn}
    async with ModuleHarness(tmp_path, module=module, environ=environ) as wide:
        await fuzz(wide, ["author"], tmp_path)
