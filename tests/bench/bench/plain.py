"""The guard benchmark's servers without Moorage: the bare app, and what nginx asks about each token.

Run as ``python -m bench.plain app PORT`` or ``python -m bench.plain verifier PORT FILE``. Both are as lean as aiohttp
allows: uvloop, one route, no access log, no metrics.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import jwt
import uvloop
from aiohttp import web

from bench.item import ITEM, PATH, encoded

_MOST_REMEMBERED: Final = 4096


def app() -> web.Application:
    """The bare app: no token is asked for, nothing is counted or logged."""
    items = {ITEM["id"]: ITEM}

    async def read(request: web.Request) -> web.Response:
        item = items.get(request.match_info["id"])
        if item is None:
            raise web.HTTPNotFound
        return web.Response(body=encoded(item), content_type="application/json")

    made = web.Application()
    made.router.add_get(f"{PATH}/{{id}}", read)
    return made


def verifier(trust: dict[str, Any]) -> web.Application:
    """For nginx's ``auth_request``: 204, 401 or 403, and who the user is.

    Good tokens are remembered until they expire, as Moorage and Envoy do.

    Args:
        trust: ``issuer``, ``audience``, ``jwk`` (the public key) and ``role`` (what a token must have).
    """
    key = jwt.PyJWK(trust["jwk"], "ES256")
    remembered: dict[str, dict[str, Any]] = {}

    def claims_of(authorization: str) -> dict[str, Any]:
        known = remembered.get(authorization)
        if known is not None and time.time() < known["exp"]:
            return known
        claims = jwt.decode(
            authorization.removeprefix("Bearer "),
            key,
            algorithms=["ES256"],
            audience=trust["audience"],
            issuer=trust["issuer"],
            options={"require": ["exp", "iat", "sub"]},
        )
        if len(remembered) >= _MOST_REMEMBERED:
            del remembered[next(iter(remembered))]
        remembered[authorization] = claims
        return claims

    async def judge(request: web.Request) -> web.Response:
        try:
            claims = claims_of(request.headers.get("Authorization", ""))
        except jwt.PyJWTError:
            return web.Response(status=401)
        if trust["role"] not in claims.get("roles", ()):
            return web.Response(status=403)
        return web.Response(status=204, headers={"X-User": claims["sub"]})

    made = web.Application()
    made.router.add_get("/verify", judge)
    return made


def main(role: str, port: str, *more: str) -> None:
    """Serve one of them on 127.0.0.1 until a signal."""
    made = app() if role == "app" else verifier(json.loads(Path(more[0]).read_text()))
    web.run_app(
        made, host="127.0.0.1", port=int(port), access_log=None, print=None, loop=uvloop.new_event_loop()
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
