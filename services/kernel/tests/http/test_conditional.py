"""Entity tags, conditional requests, and what caches may do."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from moorage import Model, Module, Out
from moorage.http.binding import bind
from moorage.http.conditional import _matches
from moorage.module import DeclarationError
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]


@dataclass
class Row:
    """Stands for a row with a version."""

    name: str
    version: int = 1


class ThingIn(Model):
    name: str


class ThingOut(ThingIn):
    version: int


rows: dict[str, Row] = {}


async def load(id: str) -> Row | None:
    return rows.get(id)


def shop_module() -> Module:
    module = Module("shop")

    @module.handle("hashed", etag=True)
    async def hashed(q: str = "") -> str:
        return q * 100

    @module.handle("read", resource=load, etag="version")
    async def read(row: Row) -> Out[ThingOut]:
        return row

    @module.handle("change", resource=load, etag="version")
    async def change(new: ThingIn, row: Row) -> Out[ThingOut]:
        row.name, row.version = new.name, row.version + 1
        return row

    @module.handle("drop", resource=load, etag="version")
    async def drop(id: str) -> None:
        del rows[id]

    @module.handle("plain", resource=load)
    async def plain(row: Row) -> None:
        row.name = "overwritten"

    @module.handle("same", resource=load, etag=True)
    async def same(row: Row) -> Out[ThingOut]:
        return row

    @module.handle("replace", resource=load, etag=True)
    async def replace(new: ThingIn, row: Row) -> Out[ThingOut]:
        row.name = new.name
        return row

    @module.handle("public", cache="public, max-age=60")
    async def public() -> str:
        return "x"

    return module


RULES = [
    {"name": "hashed", "methods": ["GET"], "path": "/hashed", "auth": "none"},
    {"name": "read", "methods": ["GET"], "path": "/things/{id}"},
    {"name": "change", "methods": ["PUT"], "path": "/things/{id}"},
    {"name": "drop", "methods": ["DELETE"], "path": "/things/{id}"},
    {"name": "plain", "methods": ["POST"], "path": "/things/{id}"},
    {"name": "same", "methods": ["GET"], "path": "/same/{id}"},
    {"name": "replace", "methods": ["PUT"], "path": "/same/{id}"},
    {"name": "public", "methods": ["GET"], "path": "/public", "auth": "none"},
]


@pytest.fixture
async def shop(serve: Serve) -> ModuleHarness:
    rows.clear()
    rows["a"] = Row("lamp")
    return await serve(shop_module(), RULES)


async def test_what_the_client_has_already_is_not_sent_again(shop: ModuleHarness) -> None:
    client = shop.anonymous()
    first = await client.get("/hashed?q=x")
    tag = first.headers["ETag"]
    assert tag.startswith('"')
    assert first.headers["Cache-Control"] == "no-cache"
    for given in (tag, f'"other", {tag}', f"W/{tag}", "*", f'{tag[:-1]}-gzip"'):
        again = await client.get("/hashed?q=x", headers={"If-None-Match": given})
        same = given if given.endswith('-gzip"') else tag  # that of the bytes which the client has
        assert (again.status, again.content, again.headers["ETag"]) == (304, b"", same), given
    for given in ('"other"', tag.strip('"'), ""):
        assert (await client.get("/hashed?q=x", headers={"If-None-Match": given})).status == 200
    assert (await client.get("/hashed?q=y")).headers["ETag"] != tag
    head = await client.request("HEAD", "/hashed?q=x", headers={"If-None-Match": tag})
    assert head.status == 304


async def test_nobody_overwrites_what_he_has_not_seen(shop: ModuleHarness) -> None:
    ada, bob = shop.client(), shop.client()
    tag = (await ada.get("/things/a")).headers["ETag"]
    changed = await ada.put("/things/a", json={"name": "chair"}, headers={"If-Match": tag})
    assert (changed.status, rows["a"].name) == (200, "chair")
    late = await bob.put("/things/a", json={"name": "table"}, headers={"If-Match": tag})
    assert (late.status, late.code, rows["a"].name) == (412, "precondition_failed", "chair")
    assert (await bob.delete("/things/a", headers={"If-Match": tag})).status == 412
    assert changed.headers["ETag"] == (await bob.get("/things/a")).headers["ETag"]
    gone = await bob.delete("/things/a", headers={"If-Match": changed.headers["ETag"]})
    assert (gone.status, "ETag" in gone.headers) == (204, False)
    assert (await bob.put("/things/a", json={"name": "x"}, headers={"If-Match": "*"})).status == 404


async def test_weak_tags_do_not_protect_and_any_means_any(shop: ModuleHarness) -> None:
    client = shop.client()
    tag = (await client.get("/things/a")).headers["ETag"]
    body = {"name": "x"}
    assert (await client.put("/things/a", json=body, headers={"If-Match": f"W/{tag}"})).status == 412
    assert (await client.put("/things/a", json=body, headers={"If-None-Match": "*"})).status == 412
    assert (await client.put("/things/a", json=body, headers={"If-Match": "*"})).status == 200
    assert (await client.put("/things/a", json=body)).status == 200


async def test_a_handler_without_tags_does_not_pretend_to_protect(shop: ModuleHarness) -> None:
    client = shop.client()
    assert (await client.post("/things/a", headers={"If-Match": '"1"'})).code == "precondition_failed"
    assert rows["a"].name == "lamp"
    assert (await client.post("/things/a")).status == 204


async def test_the_answers_own_hash_protects_too(shop: ModuleHarness) -> None:
    client = shop.client()
    tag = (await client.get("/same/a")).headers["ETag"]
    changed = await client.put("/same/a", json={"name": "chair"}, headers={"If-Match": tag})
    assert changed.status == 200
    assert changed.headers["ETag"] == (await client.get("/same/a")).headers["ETag"] != tag
    assert (await client.put("/same/a", json={"name": "table"}, headers={"If-Match": tag})).status == 412


async def test_caches_keep_only_what_the_handler_lets_them(shop: ModuleHarness) -> None:
    client = shop.client()
    assert (await client.get("/public")).headers["Cache-Control"] == "public, max-age=60"
    read = await client.get("/things/a")
    assert (read.headers["Cache-Control"], read.headers["Vary"]) == ("private, no-cache", "Authorization")
    assert (await client.get("/things/no")).headers["Cache-Control"] == "no-store"


async def test_a_wrong_attribute_is_our_mistake(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("read", etag="revision")
    async def read() -> Out[ThingOut]:
        return Row("a")

    shop = await serve(module, [{"name": "read", "methods": ["GET"], "path": "/", "auth": "none"}])
    assert (await shop.anonymous().get("/")).status == 500


def test_a_stream_has_no_tag() -> None:
    module = Module("shop")

    @module.handle("all", etag=True)
    async def every() -> AsyncIterator[bytes]:
        yield b""

    with pytest.raises(DeclarationError, match="a stream has no entity tag"):
        bind(module, {})


def test_a_long_list_of_tags_is_read_in_its_length() -> None:
    """8 KiB of spaces once took 1.5 s, in which the process answered nobody; these would take 40 s."""
    began = time.process_time()
    for given in ("x" + " " * 40_000 + "x", '"a"' + " " * 40_000 + "x", "W/" * 20_000, '"' * 40_000):
        assert _matches([given], "abc", weakly=True) is None
    assert time.process_time() - began < 1
