"""Two tiny modules: ``orders`` asks, remembers, stores and emits; ``ledger`` answers and reacts."""

from sqlalchemy import text

from moorage import Cache, Clients, Db, Event, EventInfo, Model, Module


class Placed(Event, type="orders.order.placed", key="item"):
    """An order."""

    item: str


class Known(Model):
    """What the ledger knows of an item."""

    item: str
    times: int


orders = Module("orders")
ledger = Module("ledger")


@orders.handle("place")
async def place(item: str, db: Db, cache: Cache, clients: Clients) -> int:
    """Place an order; how often there was one before."""

    async def ask() -> int:
        return (await clients("ledger").get("/api/v1/ledger/items/{item}", item=item, into=Known)).times

    times = await cache.get_or_compute(f"times:{item}", ask, int)
    await db.execute(text("INSERT INTO placed (item) VALUES (:item)"), {"item": item})
    await db.emit(Placed(item=item))
    return times


@ledger.handle("known")
async def known(item: str, db: Db) -> Known:
    """How often an item was ordered."""
    times = await db.execute(text("SELECT count(*) FROM entry WHERE item = :item"), {"item": item})
    return Known(item=item, times=times.scalar_one())


@ledger.on(Placed)
async def write_down(event: Placed, db: Db, info: EventInfo) -> None:
    """Remember an order."""
    await db.execute(
        text("INSERT INTO entry (item, trace_id) VALUES (:item, :trace)"),
        {"item": event.item, "trace": info.trace_id},
    )
