"""As whom a call is made. Chosen once for each process: ``assembly.share(Identity, …)`` before the port attaches.

By default a module calls as itself. The token of the user it works for is never sent along: whoever gets it could use
it elsewhere. Exchanging it for one that only the called module accepts is auth's, and will be an `Identity` like this.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import structlog

from moorage.scope import Scope

log = structlog.get_logger("moorage.client")

_EVERY_S: Final = 1.0
_LARGEST: Final = 64 * 1024


@runtime_checkable
class Identity(Protocol):
    """Says with which headers a call proves who makes it."""

    async def headers(self, target: str, scope: Scope | None) -> Mapping[str, str]:
        """The headers for a call to *target* (``namespace/module``), made in *scope*."""
        ...


class OwnToken:
    """The module's service-account token, from a file that is replaced before the token expires."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._looked = -_EVERY_S
        self._seen: tuple[int, int] | None = None
        self._headers: Mapping[str, str] = {}
        self._missed = False

    async def headers(self, target: str, scope: Scope | None) -> Mapping[str, str]:
        """As `Identity.headers`; none without a token: then only rules that ask for none will answer."""
        now = time.monotonic()
        if now - self._looked > _EVERY_S:
            self._looked = now
            self._look()
        return self._headers

    def _look(self) -> None:
        try:
            stat = self._file.stat()
            if (stat.st_mtime_ns, stat.st_ino) == self._seen:
                return
            token = self._file.read_bytes()[:_LARGEST].decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as exc:
            if not self._missed:
                self._missed = True
                log.warning(
                    "no token to call other modules with", file=str(self._file), reason=type(exc).__name__
                )
            self._headers, self._seen = {}, None
            return
        self._seen, self._missed = (stat.st_mtime_ns, stat.st_ino), False
        self._headers = {"Authorization": f"Bearer {token}"} if token.isprintable() and token else {}
