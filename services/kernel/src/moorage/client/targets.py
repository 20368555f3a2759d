"""Where modules are: cluster DNS, or the registry of local mode."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import structlog

from moorage.config.loading import ConfigError

log = structlog.get_logger("moorage.client")

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_EVERY_S: Final = 1.0
CORE: Final = frozenset({"identity", "auth", "authz", "audit"})
"""Modules that are in the core namespace, unless another one is named."""


class Places(Protocol):
    """Says where a module answers."""

    def url(self, namespace: str, name: str) -> str | None:
        """Scheme, host and port, without a path; None: it is not known."""
        ...

    def failed(self) -> None:
        """What it said did not lead anywhere: look again before the next answer."""
        ...


class Dns:
    """Kubernetes Services."""

    def url(self, namespace: str, name: str) -> str | None:
        """``http://<module>.<namespace>.svc``."""
        return f"http://{name}.{namespace}.svc"

    def failed(self) -> None:
        """The resolver looks again by itself."""


class Registry:
    """JSON: ``{"namespace/module": "http://127.0.0.1:8091"}``, or just ``module`` for that name in any namespace.

    Args:
        source: the JSON itself, or the file that has it; a file is read anew when it has changed.

    Raises:
        ConfigError: it is no such mapping.
    """

    def __init__(self, source: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = None if source.lstrip().startswith("{") else Path(source)
        self._clock = clock
        self._seen: tuple[int, int] | None = None
        self._looked = clock()
        self._urls: dict[str, str] = {}
        if self._file is None:
            self._urls = _parse(source)
        else:
            self._look()

    def url(self, namespace: str, name: str) -> str | None:
        """As `Places.url`."""
        if self._file is not None and self._clock() - self._looked > _EVERY_S:
            try:
                self._look()
            except ConfigError as exc:  # what was known before is better than nothing
                log.error("registry of modules is unreadable", reason=str(exc))
        return self._urls.get(f"{namespace}/{name}") or self._urls.get(name)

    def failed(self) -> None:
        """As `Places.failed`."""
        self._looked = -_EVERY_S

    def _look(self) -> None:
        assert self._file is not None
        self._looked = self._clock()
        try:
            stat = self._file.stat()
            if (stat.st_mtime_ns, stat.st_ino) != self._seen:
                self._urls = _parse(self._file.read_text())
                self._seen = (stat.st_mtime_ns, stat.st_ino)
        except FileNotFoundError:
            self._urls, self._seen = {}, None  # it may come: local mode writes it when it knows the ports


def _parse(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            'client.registry: not JSON of the form {"namespace/module": "http://127.0.0.1:8091"}'
        )
    for name, url in found.items():
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"client.registry: {name}: not of the form http://host:port")
    return {name: url.rstrip("/") for name, url in found.items()}


def split(name: str, namespace: str | None, *, own: str, core: str) -> tuple[str, str]:
    """Namespace and name of a module, as ``identity``, ``other/blog`` or with *namespace* said apart.

    Raises:
        ValueError: it is none that a Module can have; so no text from outside becomes a host.
    """
    if namespace is None and "/" in name:
        namespace, _, name = name.partition("/")
    if namespace is None:
        namespace = core if name in CORE else own
    if not _NAME.fullmatch(name) or not _NAMESPACE.fullmatch(namespace):
        raise ValueError(f"{namespace}/{name} cannot be a module")
    return namespace, name
