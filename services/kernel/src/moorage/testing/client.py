"""A client for tests: whole answers, JSON decoded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiohttp
from multidict import CIMultiDictProxy


@dataclass(frozen=True)
class Answer:
    """An answer that has wholly arrived. ``body``: decoded JSON; None for an empty body or another type."""

    status: int
    headers: CIMultiDictProxy[str]
    content: bytes

    @property
    def body(self) -> Any:
        """The decoded JSON."""
        return json.loads(self.content) if self.content and "json" in self.headers["Content-Type"] else None

    @property
    def code(self) -> str | None:
        """The code of the standard error body; None for a success."""
        return self.body["error"]["code"] if isinstance(self.body, dict) and "error" in self.body else None


@dataclass(frozen=True)
class Client:
    """One caller of one server; ``user_id`` is whom its token names, None for an anonymous one."""

    session: aiohttp.ClientSession
    base_url: str
    headers: Mapping[str, str]
    user_id: UUID | None = None

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        """Send a request; *options* are aiohttp's (``json``, ``data``, ``params``, ``headers``)."""
        headers = {**self.headers, **options.pop("headers", {})}
        async with self.session.request(method, self.base_url + path, headers=headers, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        """GET."""
        return await self.request("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answer:
        """POST."""
        return await self.request("POST", path, **options)

    async def put(self, path: str, **options: Any) -> Answer:
        """PUT."""
        return await self.request("PUT", path, **options)

    async def patch(self, path: str, **options: Any) -> Answer:
        """PATCH."""
        return await self.request("PATCH", path, **options)

    async def delete(self, path: str, **options: Any) -> Answer:
        """DELETE."""
        return await self.request("DELETE", path, **options)
