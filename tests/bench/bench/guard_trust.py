"""Whom the guards of the benchmark believe, what they ask for, and the check that they really do."""

import asyncio
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import jwt

from bench.item import BODY, ITEM, PATH
from moorage.guard import signing, tokens
from moorage.guard.limits.document import Limits
from moorage.guard.policy import BaseDocument, Issuer, PermissionPolicy, Rule

URL_PATH: Final = f"{PATH}/{ITEM['id']}"
MODULE: Final = "shop"
NAMESPACE: Final = "default"
ISSUER: Final = "https://issuer.test"
AUDIENCE: Final = "bench"
ROLE: Final = "reader"
_PERMISSION: Final = "shop.item.read"
_USER: Final = "6f9619ff-8b86-4d01-b42d-00c04fc964ff"
_LIFETIME_S: Final = 6 * 3600
_COUNTED: Final = re.compile(r'^http_requests_total\{.*status="200".*\} (\S+)$', re.MULTILINE)
_TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
_TRIES: Final = 50


class UnguardedError(RuntimeError):
    """A side does not do what it is measured for; its figures would mean nothing."""


@dataclass(frozen=True)
class Trust:
    """The users' issuer: one ES256 key, one role, one permission."""

    key: bytes = field(default_factory=tokens.new_es256_key, repr=False)

    @property
    def jwk(self) -> dict[str, str]:
        """Its public key."""
        return tokens.public_jwk(self.key)

    def header(self, *roles: str, forged: bool = False) -> dict[str, str]:
        """The field with a user's token; a *forged* one is signed by a stranger, and names the right key."""
        token = tokens.issue_user_token(
            self.key, issuer=ISSUER, audience=AUDIENCE, user_id=_USER, roles=roles, lifetime_s=_LIFETIME_S
        )
        if forged:
            claims = jwt.decode(token, options={"verify_signature": False})
            named = jwt.get_unverified_header(token)
            token = jwt.encode(claims, tokens.new_es256_key(), algorithm="ES256", headers=named)
        return {"Authorization": f"Bearer {token}"}

    def write_policy(self, folder: Path, limits: Limits | None = None) -> None:
        """The signed document for Moorage's guards, in-process and sidecar: one rule, one permission.

        Args:
            limits: of the rule; ``None``: it has none.
        """
        issuer = Issuer(
            issuer=ISSUER, audiences=[AUDIENCE], algorithms=["ES256"], keys=[dict(self.jwk)], subject="user"
        )
        document = BaseDocument(
            namespace=NAMESPACE,
            module=MODULE,
            sequence=1,
            issued_at="2026-01-01T00:00:00Z",
            issuers=[issuer],
            rules=[
                Rule(
                    name="read", methods=["GET"], path=f"{PATH}/{{id}}", permission=_PERMISSION, limits=limits
                )
            ],
            permissions={_PERMISSION: PermissionPolicy()},
            grants={ROLE: [_PERMISSION]},
        )
        signing.write_folder(folder, document, signing.new_key())


async def check_guard(session: aiohttp.ClientSession, url: str, trust: Trust) -> None:
    """Raise `UnguardedError` unless the right token gets the item, and no other gets anything."""
    await check_answer(session, url, trust)
    for what, headers, status in (
        ("without a token", {}, 401),
        ("with a forged token", trust.header(ROLE, forged=True), 401),
        ("with a token without the role", trust.header("guest"), 403),
    ):
        async with session.get(url + URL_PATH, headers=headers) as answer:
            if answer.status != status:
                raise UnguardedError(f"{url} answers {answer.status} {what}, not {status}")


async def check_answer(session: aiohttp.ClientSession, url: str, trust: Trust) -> None:
    """Raise `UnguardedError` unless the right token gets the item, byte for byte."""
    async with session.get(url + URL_PATH, headers=trust.header(ROLE)) as answer:
        body = await answer.read()
        if (answer.status, body) != (200, BODY):
            raise UnguardedError(f"{url} answers {answer.status} to the right token: {body[:300]!r}")


async def check_observed(
    session: aiohttp.ClientSession, url: str, admin: str, log: Path, trust: Trust
) -> None:
    """Raise `UnguardedError` unless what is on in production is: metrics, request id, trace, a line in the log."""
    before = await counted(session, admin)
    headers = {**trust.header(ROLE), "traceparent": f"00-{_TRACE}-00f067aa0ba902b7-00"}
    async with session.get(url + URL_PATH, headers=headers) as answer:
        request_id = answer.headers.get("X-Request-ID", "")
    if not request_id:
        raise UnguardedError(f"{url} gives no request id")
    for _ in range(_TRIES):  # the sidecar counts and logs what it has sent
        logged = [line for line in _lines(log) if line.get("request_id") == request_id]
        if logged and await counted(session, admin) == before + 1:
            break
        await asyncio.sleep(0.1)
    else:
        raise UnguardedError(f"{url} does not log the request {request_id} or does not count it")
    if [(line["logger"], line["trace_id"]) for line in logged] != [("moorage.access", _TRACE)]:
        raise UnguardedError(f"{url} should say one line with the request's trace, and says {logged}")


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


async def counted(session: aiohttp.ClientSession, admin: str) -> float:
    """Good answers, by the process's own count."""
    async with session.get(f"{admin}/metrics") as answer:
        return sum(float(number) for number in _COUNTED.findall(await answer.text()))
