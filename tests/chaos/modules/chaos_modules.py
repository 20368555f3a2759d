"""Two tiny modules: ``shop`` counts orders of each customer and emits each, ``ledger`` writes down what it is told."""

from sqlalchemy import text

from moorage import Db, Event, EventInfo, Module
from moorage.config import Config

FLAKY = 40
"""Every so-manieth event of a customer fails when it is handled first."""


class Placed(Event, type="shop.order.placed", key="customer"):
    """A customer's order; ``number`` is 1, 2, 3, … in the order of the commits."""

    customer: str
    number: int


class LedgerConfig(Config):
    """How ``ledger`` behaves."""

    flaky: bool = False


shop = Module("shop")
ledger = Module("ledger", config=LedgerConfig)

# The counter's row lock makes the numbers of one customer exactly as many and in the order of the commits.
_COUNT = text(
    "INSERT INTO counter (customer, number) VALUES (:customer, 1) "
    "ON CONFLICT (customer) DO UPDATE SET number = counter.number + 1 RETURNING number"
)
_EFFECT = text(
    "INSERT INTO effect (customer, number, event, attempt) VALUES (:customer, :number, :event, :attempt)"
)


@shop.handle("place")
async def place(customer: str, db: Db) -> int:
    """Take an order; its number is the proof that it will reach the ledger."""
    number = (await db.execute(_COUNT, {"customer": customer})).scalar_one()
    await db.emit(Placed(customer=customer, number=number))
    return int(number)


@ledger.on(Placed)
async def write_down(event: Placed, db: Db, info: EventInfo, config: LedgerConfig) -> None:
    """The effect; nothing in its table forbids a second one, so that a second one would be seen."""
    await db.execute(
        _EFFECT,
        {"customer": event.customer, "number": event.number, "event": info.id, "attempt": info.attempt},
    )
    if config.flaky and event.number % FLAKY == 0 and info.attempt == 1:
        raise RuntimeError("the first try of this one fails, after it did its work")
