"""What the guard benchmark runs in-process: a module as users write it, with one handler."""

from bench.item import ITEM
from moorage import Model, Module, NotFound

shop = Module("shop")


class Item(Model):
    """Something that is sold."""

    id: str
    title: str
    price: int
    stock: int
    tags: list[str]
    description: str


_ITEMS = {ITEM["id"]: Item(**ITEM)}


@shop.handle("read")
async def read(id: str) -> Item:
    """One of them."""
    return _ITEMS.get(id) or NotFound.throw("item", id)
