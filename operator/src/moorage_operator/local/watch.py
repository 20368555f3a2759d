"""`moorage up --watch`: what a saved file means, and what is done about it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from watchfiles import Change, DefaultFilter, awatch

from moorage.database.embedded import EmbeddedError
from moorage_operator.local.catalog import Catalog, LocalModule
from moorage_operator.local.processes import ZygoteLostError
from moorage_operator.local.runner import Runner
from moorage_operator.local.session import Session

_DEBOUNCE_MS: Final = 400
_STEP_MS: Final = 100
_MANIFEST_SUFFIXES: Final = frozenset({".yaml", ".yml"})
_SOURCE_SUFFIXES: Final = _MANIFEST_SUFFIXES | {
    ".py", ".pyi", ".json", ".toml", ".ini", ".cfg", ".sql", ".mako", ".j2", ".jinja", ".html", ".txt",
    ".js", ".ts", ".css", ".sh", ".go", ".rb", ".php", ".proto",
}  # fmt: skip
"""What people write. A module that writes data below its own folder must not restart itself by that."""
_IGNORED_FOLDERS: Final = (*DefaultFilter.ignore_dirs, ".moorage", "tests", "build", "dist", ".ruff_cache")


class SourceFilter(DefaultFilter):
    """Lets through what a person edits: no caches, no tests, no state."""

    def __init__(self) -> None:
        super().__init__(ignore_dirs=_IGNORED_FOLDERS)

    def __call__(self, change: Change, path: str) -> bool:
        return Path(path).suffix in _SOURCE_SUFFIXES and super().__call__(change, path)


@dataclass(frozen=True)
class Saved:
    """Files that were saved together, by what they mean for the modules."""

    manifests: tuple[Path, ...]
    code: tuple[Path, ...]

    @property
    def names(self) -> str:
        """The files' names for a person, at most three of them."""
        paths = [*self.manifests, *self.code]
        shown = ", ".join(path.name for path in paths[:3])
        return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"

    @classmethod
    def of(cls, paths: Sequence[Path], folders: Sequence[Path]) -> "Saved":
        """Sort *paths*: a YAML file in a given folder or its ``manifests`` is a manifest, all else is code."""
        places = {place for folder in folders for place in (folder, folder / "manifests")}

        def is_manifest(path: Path) -> bool:
            return path.suffix in _MANIFEST_SUFFIXES and (path.parent in places or path in places)

        return cls(tuple(p for p in paths if is_manifest(p)), tuple(p for p in paths if not is_manifest(p)))


class Watcher:
    """Keeps a session at what the files say."""

    def __init__(self, folders: Sequence[Path], session: Session, read: Callable[[], Catalog]) -> None:
        self._folders = folders
        self._session = session
        self._read = read
        self._say = session.console.say
        self._acted = False
        self._saved: asyncio.Queue[set[Path]] = asyncio.Queue()

    async def collect(self) -> None:
        """Take down what is saved, until cancelled; begin with it before anything reads the files."""
        watch = awatch(*self._folders, watch_filter=SourceFilter(), debounce=_DEBOUNCE_MS, step=_STEP_MS)
        async for changes in watch:
            self._saved.put_nowait({Path(path) for _, path in changes})

    async def run(self) -> None:
        """Follow what `collect` took down, until cancelled."""
        while True:
            paths = await self._saved.get()
            while not self._saved.empty():
                paths |= self._saved.get_nowait()
            try:
                await self.apply(Saved.of(sorted(paths), self._folders))
            except (EmbeddedError, ZygoteLostError, OSError) as error:
                self._session.console.error(str(error))

    async def apply(self, saved: Saved) -> None:
        """Do what *saved* asks for, module by module, and say it."""
        self._say(f"↻ {saved.names} changed", "bold")
        self._acted = False
        anew: set[tuple[str, str]] = set()
        if saved.manifests:
            catalog = self._read()
            if catalog.errors:
                for problem in catalog.problems:
                    self._session.console.error(str(problem))
                self._act("what runs keeps running as it was, until the files are mended")
            else:
                anew = await self._follow_manifests(catalog)
        for runner in list(self._session.runners.values()):
            touched = [path for path in saved.code if path.is_relative_to(runner.module.folder)]
            if runner.module.key in anew:
                await self._renew(runner, prepare=True)
            elif touched:
                migrations = any("migrations" in path.parts for path in touched)
                await self._renew(runner, prepare=migrations or runner.problem is not None)
        if self._session.update_gateway():
            self._act("the gateway has the new routes")
        if not self._acted:
            self._act("nothing to do")

    def _act(self, text: str) -> None:
        """Say what was done, or why nothing was."""
        self._acted = True
        self._say(f"  {text}")

    async def _follow_manifests(self, catalog: Catalog) -> set[tuple[str, str]]:
        """Add, remove and update modules; the keys of those that have to be started anew."""
        wanted = {module.key: module for module in catalog.modules}
        for key, runner in list(self._session.runners.items()):
            if key not in wanted:
                await self._session.remove(runner)
                self._act(f"{runner.module.label}: stopped, its Module is gone (its data stay)")
        anew: set[tuple[str, str]] = set()
        for key, runner in self._session.runners.items():
            old, runner.module = runner.module, wanted[key]
            if _differs(old, runner.module) or runner.problem is not None:
                anew.add(key)
            else:
                await self._follow_policy(runner)
        added = [module for key, module in wanted.items() if key not in self._session.runners]
        if added:
            self._acted = True
            await self._session.add(added)
        return anew

    async def _follow_policy(self, runner: Runner) -> None:
        sequence = runner.rewrite_policy()
        label = runner.module.label
        if sequence is None:
            return
        loads_itself = runner.module.module.spec.app is not None
        if loads_itself and not await runner.policy_in_force(sequence):
            self._acted = True
            self._session.console.warn(f"{label}: its guard has not loaded policy {sequence}; see its log")
        else:
            done = "signed and loaded" if loads_itself else "signed and written"
            self._act(f"{label}: policy {sequence} {done}; the process keeps running")
        await runner.inspect()

    async def _renew(self, runner: Runner, *, prepare: bool) -> None:
        label = runner.module.label
        self._acted = True
        if prepare and not await self._session.reprepare(runner):
            if runner.service.pid is not None:
                self._say(f"  {label}: the old process keeps running")
            return
        if not await self._session.restart(runner):
            self._say(f"  {label}: does not run; save a file to try again")


def _differs(old: LocalModule, new: LocalModule) -> bool:
    """Whether the process has to be started anew: routes and permissions are read by the running one."""
    return old.module.spec != new.module.spec or old.folder != new.folder
