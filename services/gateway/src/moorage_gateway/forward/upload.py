"""The request's body on its way to the upstream: counted, timed, and never held."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from moorage import errors

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Upload:
    """One request's body.

    ``deadline`` moves on with every piece that passes, so that a rule's timeout bounds silence and not the
    size of a body. ``failure`` says whose fault a broken transfer is: aiohttp reports all of them alike.
    """

    __slots__ = ("_limit", "_request", "_timeout_s", "deadline", "failure", "waits_for_client")

    def __init__(self, request: web.BaseRequest, *, limit: int | None, timeout_s: float) -> None:
        self._request = request
        self._limit = limit
        self._timeout_s = timeout_s
        self.deadline: asyncio.Timeout | None = None
        self.failure: errors.AppError | None = None
        self.waits_for_client = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes in. The interim 100 goes out only now: the upstream is there to take it."""
        request = self._request
        if request.headers.get("Expect") and (transport := request.transport) is not None:
            transport.write(CONTINUE)
        seen = 0
        content = request.content
        while True:
            self.waits_for_client = True
            try:
                piece = await content.readany()
            except (web.RequestPayloadError, asyncio.IncompleteReadError) as exc:
                self.failure = errors.BadRequest("The request's body is malformed.", reason=repr(exc))
                raise
            self.waits_for_client = False
            if not piece:
                return
            seen += len(piece)
            if self._limit is not None and seen > self._limit:
                self.failure = errors.TooLarge(self._limit)
                raise self.failure
            self._progress()
            yield piece

    def _progress(self) -> None:
        deadline = self.deadline
        if deadline is not None and not deadline.expired():
            deadline.reschedule(asyncio.get_running_loop().time() + self._timeout_s)
