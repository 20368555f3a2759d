"""What the events benchmark runs: ``shop`` emits, ``ledger`` counts and times what it is given."""

import time
from array import array

from moorage import Db, Event, Module

shop = Module("shop")
ledger = Module("ledger")
_latencies = array("d")


class Placed(Event, type="shop.order.placed", key="customer"):
    """An order, of about the size of a real one."""

    customer: str
    number: int
    at: float
    """When it was emitted, seconds since 1970."""
    note: str


@shop.handle("emit")
async def emit(db: Db, first: int = 0, events: int = 1) -> int:
    """Emit some events in one transaction, each of another customer."""
    for number in range(first, first + events):
        await db.emit(
            Placed(customer=f"customer-{number % 1000}", number=number, at=time.time(), note="x" * 200)
        )
    return events


@ledger.on(Placed)
async def count(event: Placed) -> None:
    """Note how long it took."""
    _latencies.append(time.time() - event.at)


@ledger.handle("counted")
async def counted() -> int:
    """How many there were since the last `take`."""
    return len(_latencies)


@ledger.handle("take")
async def take() -> list[float]:
    """How long each took, in seconds; begins anew."""
    taken = _latencies.tolist()
    del _latencies[:]
    return taken
