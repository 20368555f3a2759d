"""Configuration while the process runs: files are watched and reread, and what may change does, all at once.

A poll instead of inotify: nodes run out of inotify instances, some mounts never notify, and watchfiles adds 7 MiB and 2
threads to a process (measured), where a `stat` of a dozen files costs 0.1 ms a second.
"""

import asyncio
import copy
import datetime
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from moorage.config.layers import Mark, Values, mark
from moorage.config.loading import ConfigError, Loaded, Source, validated
from moorage.config.settings import Config, Settings
from moorage.config.values import reloads
from moorage.metrics import Metrics

log = structlog.get_logger("moorage.config")

POLL_S: Final = 1.0
MEND: Final = (
    "it is read at the start only: restart the process; on a cluster a changed Module or Secret does"
)
_ATTEMPTS: Final = 3

Leaf = tuple[tuple[str, ...], FieldInfo, object]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The configuration in force at one moment; it never changes, another one takes its place.

    Whoever works on one request or event keeps the one that it began with: ``groups`` are the module's own, by class.
    """

    sequence: int
    settings: Settings
    groups: Mapping[type, Config]


Subscriber = Callable[[Snapshot, frozenset[str]], None]
"""Gets the new snapshot, and which fields (``logging.level``) have changed."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was read, or why it cannot be used, and from which state of the files."""

    loaded: Loaded | None
    problem: str
    mark: Mark


@dataclass
class Live:
    """A process's configuration; ``now`` is what is in force.

    ``error`` is why the files, as they are, were not taken; ``refused`` are fields that have changed in them, but are
    not `Reloadable`: they keep the value of the start.
    """

    now: Snapshot
    source: Source | None = None
    error: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    """Field → where its new value stands."""
    _values: Values = field(default_factory=dict)
    _groups: Mapping[str, type[Config]] = field(default_factory=dict)
    _seen: Mark = ()
    _at: str = ""
    _subscribers: list[Subscriber] = field(default_factory=list)
    _count: Callable[[str], None] = lambda outcome: None

    @classmethod
    def start(cls, source: Source) -> "Live":
        """Read *source*; raises `ConfigError`."""
        for _ in range(_ATTEMPTS):
            before = mark(source.variables, source.place, "")
            loaded = source.read()
            if mark(source.variables, source.place, "") == before:
                break
        live = cls.fixed(loaded.settings, source.groups)
        live.source, live._values = source, loaded.values
        return live

    @classmethod
    def fixed(cls, settings: Settings, groups: Mapping[str, type[Config]]) -> "Live":
        """Settings that were made elsewhere, and never change."""
        return cls(Snapshot(1, settings, _by_class(settings, groups)), _groups=groups, _at=_time())

    def subscribe(self, subscriber: Subscriber) -> None:
        """Tell *subscriber* of each change, once it is in force. It must be quick; what it raises is logged."""
        self._subscribers.append(subscriber)

    def measure(self, metrics: Metrics) -> None:
        """Count reloads, and show how many fields wait for a restart."""
        counter = metrics.counter(
            "config_reloads", "Changed configuration, by what became of it.", ("outcome",)
        )
        self._count = lambda outcome: counter.labels(outcome).inc()
        metrics.gauge_function(
            "config_refused_fields",
            "Fields whose new value waits for a restart.",
            lambda: float(len(self.refused)),
        )

    def status(self) -> dict[str, Any]:
        """What ``GET /config`` of the admin port answers: no value of any field."""
        return {
            "sequence": self.now.sequence,
            "loaded_at": self._at,
            "error": self.error,
            "refused": [
                {"field": name, "origin": origin, "mend": MEND}
                for name, origin in sorted(self.refused.items())
            ],
        }

    async def watch(self) -> None:
        """Look every second whether a file has changed, and take what may be taken; never returns."""
        while self.source is not None:
            await asyncio.sleep(POLL_S)
            if self._mark(self.source) != self._seen:
                # In a thread: it reads files and may parse a megabyte of YAML.
                self._take(await asyncio.to_thread(self._read))

    def refresh(self) -> None:
        """Reread now, whatever the files' times say."""
        self._take(self._read())

    def _read(self) -> "_Reading | None":
        """Everything from one state of the files; None: somebody keeps writing, ask again later."""
        assert self.source is not None
        for _ in range(_ATTEMPTS):
            before = self._mark(self.source)
            try:
                loaded, problem = self.source.read(), ""
            except ConfigError as exc:
                loaded, problem = None, str(exc)
            if self._mark(self.source) == before:
                return _Reading(loaded, problem, before)
        return None

    def _mark(self, source: Source) -> Mark:
        return mark(source.variables, source.place, self.now.settings.environment)

    def _take(self, reading: "_Reading | None") -> None:
        """Put what was read into force, as far as it may be."""
        if reading is None:
            return
        self._seen, loaded = reading.mark, reading.loaded
        if loaded is None:
            self._keep(reading.problem)
            return
        changed = _changes(self.now.settings, loaded.settings)
        fixed = {name: path for name, (path, info) in changed.items() if not reloads(info)}
        settings, values = loaded.settings, loaded.values
        if fixed:
            values = copy.deepcopy(values)
            for path in fixed.values():
                _restore(values, self._values, path)
            try:
                settings = validated(loaded.model, values, loaded.layers)
            except ConfigError as exc:
                self._keep(f"without a restart, part of it would not fit the rest: {exc}")
                return
        self._refuse({name: loaded.origin(name) or "its default" for name in fixed})
        taken = frozenset(changed.keys() - fixed.keys())
        if self.error is not None:
            self.error = None
            log.info("configuration can be read again")
        self._values = values
        if taken:
            self._switch(settings, taken)

    def _keep(self, problem: str) -> None:
        """Go on with what is in force, visibly."""
        self.error = problem
        self._count("failed")
        log.error(
            "changed configuration cannot be used; the last good one stays", problems=problem.splitlines()
        )

    def _refuse(self, refused: Mapping[str, str]) -> None:
        if refused and refused != self.refused:
            self._count("refused")
            for name, origin in sorted(refused.items()):
                log.warning("a changed setting is not taken", field=name, origin=origin, mend=MEND)
        self.refused = refused

    def _switch(self, settings: Settings, taken: frozenset[str]) -> None:
        self.now = Snapshot(self.now.sequence + 1, settings, _by_class(settings, self._groups))
        self._at = _time()
        self._count("taken")
        log.info("configuration changed", fields=sorted(taken), sequence=self.now.sequence)
        for subscriber in self._subscribers:
            try:
                subscriber(self.now, taken)
            except Exception:
                log.exception("a component could not take changed configuration")


def _by_class(settings: Settings, groups: Mapping[str, type[Config]]) -> dict[type, Config]:
    return {kind: getattr(settings, name) for name, kind in groups.items()}


def leaves(group: BaseModel, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every field below *group* that is no group itself: path (as in files), declaration, value."""
    for attribute, info in type(group).model_fields.items():
        value = getattr(group, attribute)
        here = (*path, info.alias or attribute)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from leaves(value, here)
        else:
            yield here, info, value


def _changes(before: Settings, after: Settings) -> dict[str, tuple[tuple[str, ...], FieldInfo]]:
    old = {path: value for path, _, value in leaves(before)}
    return {
        ".".join(path): (path, info)
        for path, info, value in leaves(after)
        if path in old and old[path] != value
    }


def _restore(values: Values, old: Values, path: tuple[str, ...]) -> None:
    """Let *values* say of the field at *path* what *old* says, be it nothing."""
    *groups, name = path
    there: Any = old
    for group in groups:
        values = values.setdefault(group, {})
        there = there.get(group, {}) if isinstance(there, dict) else {}
    if isinstance(there, dict) and name in there:
        values[name] = there[name]
    else:
        values.pop(name, None)


def _time() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
