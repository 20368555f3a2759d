"""What is compressed, for whom, and what is not."""

import gzip
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest

from moorage import Content, Module
from moorage.http.compression import accepted
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]
TEXT = "a lamp " * 1000


def rule(name: str) -> dict[str, object]:
    return {"name": name, "methods": ["GET"], "path": f"/{name}", "auth": "none"}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def started(serve: Serve, **environ: str) -> ModuleHarness:
    module = Module("shop")

    @module.handle("text", etag=True)
    async def text() -> str:
        return TEXT

    @module.handle("short")
    async def short() -> str:
        return "x"

    @module.handle("image")
    async def image() -> Content:
        return Content(b"x" * 5000, "image/png")

    @module.handle("secret", compress=False)
    async def secret() -> str:
        return TEXT

    return await serve(module, [rule(name) for name in ("text", "short", "image", "secret")], environ=environ)


async def test_text_is_compressed_for_who_asks(serve: Serve, session: aiohttp.ClientSession) -> None:
    shop = await started(serve)
    for given, coding in (
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br, GZIP;q=0.5", "gzip"),
        ("*", "gzip"),
        ("identity", None),
        ("gzip;q=0, *;q=0", None),
        ("identity, gzip;q=0.5", None),
        ("", None),
    ):
        async with session.get(f"{shop.url}/text", headers={"Accept-Encoding": given}) as answer:
            assert answer.headers.get("Content-Encoding") == coding, given
            assert answer.headers["Vary"] == "Accept-Encoding"
            content = await answer.read()
            assert int(answer.headers["Content-Length"]) == len(content)
            tag = answer.headers["ETag"]
            assert tag.endswith(f'-{coding}"') is (coding is not None)
        plain = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[coding](content)
        assert plain == f'"{TEXT}"'.encode()
        headers = {"Accept-Encoding": given, "If-None-Match": tag}
        async with session.get(f"{shop.url}/text", headers=headers) as again:
            assert again.status == 304


@pytest.mark.parametrize(
    ("name", "headers"),
    [
        ("short", {}),
        ("image", {}),
        ("secret", {}),
        ("text", {"Cookie": "session=1"}),
        ("text", {"Authorization": "Basic YTpi"}),
    ],
)
async def test_what_is_not_compressed(
    serve: Serve, session: aiohttp.ClientSession, name: str, headers: dict[str, str]
) -> None:
    shop = await started(serve)
    headers = {"Accept-Encoding": "gzip", **headers}
    async with session.get(f"{shop.url}/{name}", headers=headers) as answer:
        assert answer.status == 200
        assert "Content-Encoding" not in answer.headers


async def test_it_can_be_switched_off(serve: Serve, session: aiohttp.ClientSession) -> None:
    shop = await started(serve, SERVER_COMPRESSION="false")
    async with session.get(f"{shop.url}/text", headers={"Accept-Encoding": "gzip"}) as answer:
        assert "Content-Encoding" not in answer.headers


def test_what_cannot_be_read_in_the_header_does_not_count() -> None:
    assert accepted(["gzip;q=x"]) is None
    assert accepted(["gzip;level=9"]) is None
    assert accepted(["nonsense/;;", "deflate"]) is not None
