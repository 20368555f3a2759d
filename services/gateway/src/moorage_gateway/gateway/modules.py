"""The modules behind the gateway: made from the file, swapped as one when it changes."""

import asyncio
import contextlib
import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from moorage.guard.engine import Guard
from moorage.guard.following import Work
from moorage.guard.limits.limiter import Limiter
from moorage_gateway.forward.http import DEFAULT_TIMEOUT_S
from moorage_gateway.forward.upstream import Upstream
from moorage_gateway.gateway.config import ConfigError, GatewayConfig, ModuleEntry, load
from moorage_gateway.gateway.table import Table, TableError
from moorage_gateway.proxy import Target

log = structlog.get_logger("moorage.gateway")

POLL_S: Final = 0.25
GUARDED_TIMEOUT_S: Final = 300.0
"""Until an answer of a module with its own guard begins: its rules have timeouts of their own, and this one is
for a process that hangs."""

Fingerprint = tuple[int, int, int]


@dataclass
class Entry:
    """One module: what the file says, what requests meet, and the task that follows its policy."""

    said: ModuleEntry
    target: Target
    watching: asyncio.Task[None] | None = None


@dataclass
class State:
    """Everything that changes when the file does; replaced in one assignment."""

    config: GatewayConfig
    entries: Mapping[str, Entry] = field(default_factory=dict)
    table: Table[Target] = field(default_factory=Table)


class Modules:
    """Follows the gateway's file. Raises `ConfigError` if it cannot be used at the start.

    Args:
        limiter: makes what counts the requests of one module that is guarded here.
    """

    def __init__(self, path: Path, limiter: Callable[[], Limiter] = Limiter) -> None:
        self._path = path
        self._limiter = limiter
        self._seen = _fingerprint(path)
        self._state = State(GatewayConfig())
        self.error: str | None = None
        self.loaded_at = ""
        self._apply(load(path))

    @property
    def config(self) -> GatewayConfig:
        """The file that is in force."""
        return self._state.config

    def find(self, host: str, path: str) -> Target:
        """The module for a host and a decoded path; raises `NotFound`."""
        return self._state.table.find(host, path)

    def _apply(self, config: GatewayConfig) -> None:
        """Put *config* in force, keeping what it leaves as it was; raises `ConfigError` and changes nothing."""
        before = self._state.entries
        entries: dict[str, Entry] = {}
        for said in config.modules:
            if said.key in entries:
                raise ConfigError(f"{self._path}: modules: {said.key} appears twice")
            known = before.get(said.key)
            entries[said.key] = (
                known if known is not None and known.said == said else _entry(said, known, self._limiter)
            )
        try:
            table = Table(
                (entry.said.key, entry.said.hosts, entry.said.prefixes, entry.target)
                for entry in entries.values()
            )
        except TableError as exc:
            raise ConfigError(f"{self._path}: modules: {exc}") from None
        self._state = State(config, entries, table)
        self.error = None
        self.loaded_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def reload(self) -> bool:
        """Read the file again; a bad one is refused, said in the log, and the last good one stays in force."""
        before = self._state
        try:
            config = load(self._path)
            self._apply(config)
        except ConfigError as exc:
            self.error = str(exc)
            log.error("configuration refused, the last good one stays in force", error=self.error)
            return False
        if (config.listen, config.admin) != (before.config.listen, before.config.admin):
            log.warning("listen and admin take effect only when the gateway starts again")
        if config.trusted_proxies != before.config.trusted_proxies:
            log.warning("trusted_proxies takes effect only when the gateway starts again")
        log.info("configuration in force", modules=sorted(self._state.entries))
        return True

    async def watch(self, keys: Callable[[Guard], Work]) -> None:
        """Follow the file, every policy folder, and the keys that issuers publish, until cancelled.

        Args:
            keys: lets a guard rely on such keys; what has to run meanwhile.
        """
        watched: dict[str, Entry] = {}
        try:
            while True:
                self._follow(watched, keys)
                await asyncio.sleep(POLL_S)
                mark = _fingerprint(self._path)
                # A file that is just being replaced may be gone for a moment.
                if mark is not None and mark != self._seen:
                    self._seen = mark
                    self.reload()
        finally:
            for entry in watched.values():
                await _stop(entry)

    def _follow(self, watched: dict[str, Entry], keys: Callable[[Guard], Work]) -> None:
        """Have exactly the guards watched that are in force."""
        entries = self._state.entries
        for key in [key for key, entry in watched.items() if entries.get(key) is not entry]:
            task = watched.pop(key).watching
            if task is not None:
                task.cancel()
        for key, entry in entries.items():
            if key not in watched and entry.target.guard is not None:
                entry.watching = asyncio.create_task(_watch(entry.target.guard, keys))
                watched[key] = entry

    def status(self) -> dict[str, Any]:
        """What ``GET /policy`` answers: the file's state, and each module with its guard's."""
        return {
            "config": str(self._path),
            "loaded_at": self.loaded_at,
            "error": self.error,
            "modules": [_status(entry) for _, entry in sorted(self._state.entries.items())],
        }


def _entry(said: ModuleEntry, known: Entry | None, limiter: Callable[[], Limiter]) -> Entry:
    upstream = Upstream(said.key, said.upstream) if said.upstream is not None else None
    guard = None
    if not said.guarded:
        assert said.policy_dir is not None
        if known is not None and known.said.policy_dir == said.policy_dir and known.target.guard is not None:
            guard = known.target.guard  # keeps the policy's sequence and the tokens that were verified
        else:
            guard = Guard.from_folder(
                said.policy_dir, namespace=said.namespace, module=said.module, limiter=limiter()
            )
            guard.bind_proxy()
    target = Target(
        namespace=said.namespace,
        module=said.module,
        upstream=upstream,
        guard=guard,
        timeout_s=said.timeout_s or (GUARDED_TIMEOUT_S if said.guarded else DEFAULT_TIMEOUT_S),
    )
    if known is not None and known.target.upstream == upstream:
        target.answered = known.target.answered
    return Entry(said, target)


def _status(entry: Entry) -> dict[str, Any]:
    said, target = entry.said, entry.target
    shared = {
        "namespace": said.namespace,
        "module": said.module,
        "guarded": said.guarded,
        "hosts": said.hosts,
        "prefixes": said.prefixes,
        "upstream": said.upstream,
        "answered": target.answered,
    }
    return {**(target.guard.status() if target.guard is not None else {}), **shared}


async def _watch(guard: Guard, keys: Callable[[Guard], Work]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(guard.watch())
        group.create_task(keys(guard)())


async def _stop(entry: Entry) -> None:
    if entry.watching is not None:
        entry.watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await entry.watching


def _fingerprint(path: Path) -> Fingerprint | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
