"""The handlers behind `Module.serve_openapi`: the document and a page that shows it, all in one file.

The page fetches nothing: the document is in it, and its style and script are allowed by their hashes, so that
nothing else runs there.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Final

from moorage.guard.policy import BaseDocument
from moorage.http.answers import JSON, Content

HTML: Final = "text/html; charset=utf-8"
_BLOCK: Final = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


class ApiDocument:
    """The OpenAPI document of a process, made anew when another policy is in force."""

    def __init__(
        self, policy: Callable[[], BaseDocument | None], make: Callable[[BaseDocument | None], bytes]
    ) -> None:
        self._policy = policy
        self._make = make
        self._made: tuple[BaseDocument | None, bytes] | None = None

    def content(self) -> bytes:
        """The document as JSON."""
        policy = self._policy()
        if self._made is None or self._made[0] is not policy:
            self._made = (policy, self._make(policy))
        return self._made[1]


async def document(api: ApiDocument) -> Content:
    """The API's description (OpenAPI 3.1)."""
    return Content(api.content(), JSON)


async def page(api: ApiDocument) -> Content:
    """The API's description for people."""
    body, policy = render(api.content())
    return Content(body, HTML, {"Content-Security-Policy": policy})


def render(content: bytes) -> tuple[bytes, str]:
    """The page that shows the document *content*, and the Content-Security-Policy that lets it run."""
    template, policy = _template()
    # In a block of data "<" could end the block or begin a comment.
    embedded = content.decode().replace("<", "\\u003c")
    title = html.escape(json.loads(content)["info"]["title"])
    return template.replace("{{title}}", title).replace("{{document}}", embedded).encode(), policy


@cache
def _template() -> tuple[str, str]:
    text = files("moorage.http").joinpath("apidocs.html").read_text(encoding="utf-8")
    hashes = {kind: _hash(block) for kind, block in _BLOCK.findall(text)}
    policy = (
        f"default-src 'none'; style-src {hashes['style']}; script-src {hashes['script']}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hash(block: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"
