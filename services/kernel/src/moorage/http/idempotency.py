"""Idempotency keys (draft-ietf-httpapi-idempotency-key-header-07): a request that is sent again has no second
effect.

The answer is kept in the transaction in which the handler worked: either both are there or neither is. What an
error rolled back is not kept, so it can be tried again with the same key. Two at once: the second is told to come
back (409), and then gets the first one's answer.

A key belongs to a caller and a rule. Without a caller it belongs to the address that the request came from: a key
that somebody guesses must not show him another's answer.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from moorage.errors import AppError, BadRequest, Conflict, Unavailable
from moorage.guard.identity import ModuleCaller, User
from moorage.http.body import read_any
from moorage.http.request import Context
from moorage.kept import AnswerStore, Kept

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotency-Replayed"
METHODS: Final = frozenset({"POST", "PATCH"})
MAX_BODY: Final = 256 * 1024
"""Bytes of an answer that are kept; of a larger one only that it was given."""
_KEY: Final = re.compile(r"[!-~]{1,255}")
_NOT_KEPT: Final = frozenset({"set-cookie", "date", "connection", "transfer-encoding", "content-length"})


class KeyReused(AppError):  # noqa: N818 - says what happened, as the other errors do
    """422: the key was used for another request."""

    code, status = "idempotency_key_reused", 422
    default_message = "This Idempotency-Key was used for another request."


@dataclass(frozen=True)
class Keyed:
    """A request that has a key: which, and what the request is."""

    store: AnswerStore
    key: bytes
    fingerprint: bytes

    async def before(self, context: Context) -> web.Response | None:
        """The answer that was given before, if there is one.

        Raises:
            Conflict: the first request with this key still runs, or its answer was too large to keep.
            KeyReused: the key belongs to another request.
        """
        kept = await self.store.claim(context, self.key)
        if kept is None:
            return None
        if kept.fingerprint != self.fingerprint:
            raise KeyReused
        if kept.body is None:
            raise Conflict("This was done already; its answer was too large to keep.", code="answer_not_kept")
        response = web.Response(status=kept.status, body=kept.body or None)
        response.headers.update(kept.headers)
        response.headers[REPLAYED] = "true"
        return response

    async def after(self, context: Context, response: web.StreamResponse) -> None:
        """Keep the answer of a request that had its effect."""
        body = response.body if isinstance(response, web.Response) else None
        content = body if isinstance(body, bytes) else b"" if body is None else None
        if content is not None and len(content) > MAX_BODY:
            content = None
        headers = {name: value for name, value in response.headers.items() if name.lower() not in _NOT_KEPT}
        await self.store.keep(context, self.key, Kept(self.fingerprint, response.status, headers, content))


async def keyed(context: Context, store: AnswerStore | None, *, required: bool) -> Keyed | None:
    """The request's key, if it has one; reads the body.

    Raises:
        BadRequest: it has to have one, or what it has is none.
        Unavailable: the handler needs keys, and there is no database to keep answers in.
    """
    given = context.web.headers.getall(HEADER, [])
    if not given and required:
        raise BadRequest(f"This needs an {HEADER}.", code="idempotency_key_missing")
    if not given:
        return None
    if store is None or not await store.ready(context):
        if required:
            raise Unavailable(reason="idempotent=True needs a database with the kernel's tables")
        return None
    # The draft has a quoted string (RFC 8941); many clients send the value without quotes.
    key = given[0].strip().removeprefix('"').removesuffix('"')
    if len(given) > 1 or _KEY.fullmatch(key) is None:
        raise BadRequest(
            f"{HEADER} takes one value of 1 to 255 visible ASCII characters.", code="bad_idempotency_key"
        )
    body = await read_any(context)
    decision = context.decision
    request = [context.web.method, decision.target.path, decision.target.query]
    fingerprint = hashlib.sha256(json.dumps(request).encode() + b"\n" + body).digest()
    scope = json.dumps([_caller(context), decision.name, key]).encode()
    return Keyed(store, hashlib.sha256(scope).digest(), fingerprint)


def _caller(context: Context) -> list[str | None]:
    caller = context.decision.caller
    if isinstance(caller, User):
        return ["user", caller.tenant_id, str(caller.id)]
    if isinstance(caller, ModuleCaller):
        return ["module", caller.key]
    return ["address", context.decision.client.address]
