"""docs/ports/postgres-bus.md: its statements run, its tables are those of the code."""

import asyncio
import json
import re
from typing import Any

import asyncpg
import pytest

from moorage.events.bus import Message, Partition
from moorage.events.busschema import API, SCHEMA
from moorage.events.postgres import _BEATS_PER_LEASE
from rigs.buses import PostgresBus

PAGE = "docs/ports/postgres-bus.md"


def statement(page: Any, title: str) -> str:
    (block,) = page(PAGE).titled(title)
    return str(block.text)


@pytest.mark.postgres
async def test_the_statements_show_what_the_page_says(page, moorage_postgres: str) -> None:
    async with PostgresBus.create(moorage_postgres) as bus:
        await bus.declare("default", "shop", publishes=["shop.order.placed"])
        for module in ("mail", "stock"):
            await bus.declare("default", module, subscribes=["shop.order.placed"])
        shop, mail = bus.publisher("default", "shop"), bus.subscriber("default", "mail")
        await shop.open()
        bodies = [json.dumps({"type": "shop.order.placed", "n": n}).encode() for n in range(3)]
        await shop.publish([Message("shop.order", "k", body) for body in bodies])

        async def change(_: frozenset[Partition]) -> None:
            pass

        await mail.open(["shop.order"], change)
        async with asyncio.timeout(10):
            while not (found := await mail.fetch(10, 1.0)):
                pass
        await mail.commit({place: one[1].position + 1 for place, one in found.items()})
        admin = await asyncpg.connect(bus.admin_dsn)
        (topic,) = await admin.fetch(statement(page, "topics"))
        assert dict(topic) == {
            "namespace": "default",
            "topic": "shop.order",
            "publisher": "shop",
            "readers": ["default/mail", "default/stock"],
        }
        lag = {
            row["module"]: (row["lag"], row["processes"]) for row in await admin.fetch(statement(page, "lag"))
        }
        assert lag == {"stock": (3, 0), "mail": (1, 1)}
        events = await admin.fetch(statement(page, "events"))
        assert [(row["position"], row["type"]) for row in events] == [
            (n, "shop.order.placed") for n in (2, 1, 0)
        ]
        await admin.close()
        await mail.close()
        await shop.close()


def test_the_functions_are_those_of_the_code(page) -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page(PAGE).text, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == API.keys()
    assert f"`{SCHEMA}`" in page(PAGE).text


def test_the_share_of_the_lease_is_that_of_the_code(page) -> None:
    assert f"`events.lease` ÷ {_BEATS_PER_LEASE}" in page(PAGE).text
