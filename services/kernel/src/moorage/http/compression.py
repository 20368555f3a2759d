"""Compressed answers, where the client asks for them, they are text, and worth it.

Compression tells an attacker who sees lengths, and who can put text beside a secret, what the secret is like (BREACH).
He also has to make the victim's browser send the requests, which then need credentials that it adds by itself. Access
tokens are none of these: a page of another origin cannot send them. So compression is on, but an answer to a request
with cookies or other credentials of a browser is never compressed, and a handler can say ``compress=False``.
"""

import re
from functools import lru_cache
from typing import Final

from aiohttp import web

from moorage.module import Handler

LEAST: Final = 1024
"""Bytes; less fits a packet or two either way."""
_TEXT: Final = re.compile(
    r"(?:text/.+|application/(?:.+\+)?(?:json|xml|yaml|javascript)|image/svg\+xml)(?:;.*)?"
)
_CODINGS: Final = {"gzip": web.ContentCoding.gzip, "deflate": web.ContentCoding.deflate}
_ITEM: Final = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:;\s*[qQ]\s*=\s*([01](?:\.\d{0,3})?)\s*)?")


def compress(
    request: web.BaseRequest, response: web.StreamResponse, handler: Handler, *, enabled: bool
) -> None:
    """Compress the answer, if all agree. A strong entity tag is of the bytes, so it gets the coding's name, too."""
    if not enabled or not handler.compress or response.prepared or not isinstance(response, web.Response):
        return
    if response.status == 304:
        response.headers.add("Vary", "Accept-Encoding")
    content = response.body
    if not isinstance(content, bytes) or len(content) < LEAST:
        return
    headers = response.headers
    if not _is_text(headers.get("Content-Type", "")) or "Content-Encoding" in headers:
        return
    response.headers.add("Vary", "Accept-Encoding")
    wanted = request.headers.getall("Accept-Encoding", None)
    if wanted is None or "Cookie" in request.headers or _browser_credentials(request):
        return
    coding = accepted(wanted)
    if coding is None:
        return
    if (tag := response.headers.get("ETag")) is not None:
        response.headers["ETag"] = f'{tag[:-1]}-{coding.value}"'
    response.enable_compression(coding)


@lru_cache(maxsize=256)
def _is_text(media: str) -> bool:
    return _TEXT.fullmatch(media) is not None


def accepted(given: list[str]) -> web.ContentCoding | None:
    """The coding that ``Accept-Encoding`` likes best of ours (RFC 9110, 12.5.3); None: send it as it is."""
    weights: dict[str, float] = {}
    for item in ",".join(given).split(","):
        if (found := _ITEM.fullmatch(item)) is not None:
            weights[found[1].lower()] = float(found[2] or 1)
    rest = weights.get("*", 0.0)
    name = max(_CODINGS, key=lambda coding: weights.get(coding, rest))
    weight = weights.get(name, rest)
    return _CODINGS[name] if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _browser_credentials(request: web.BaseRequest) -> bool:
    return request.headers.get("Authorization", "")[:7].lower() not in ("", "bearer ")
