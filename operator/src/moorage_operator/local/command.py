"""`moorage up` from beginning to end: check, lock, start, report, follow, stop."""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from moorage.database.embedded import EmbeddedError
from moorage_operator.local import catalog as catalogs
from moorage_operator.local import report
from moorage_operator.local.catalog import Catalog
from moorage_operator.local.console import Console
from moorage_operator.local.ports import PortTakenError, require
from moorage_operator.local.processes import ZygoteLostError
from moorage_operator.local.runner import SETTINGS, WITHOUT_RATE_LIMITS
from moorage_operator.local.service import StartError
from moorage_operator.local.session import Session
from moorage_operator.local.state import State, StateError
from moorage_operator.local.watch import Watcher

OK, FAILED, KILLED = 0, 1, 130


@dataclass(frozen=True)
class Options:
    """The command line of `moorage up`."""

    folders: tuple[Path, ...]
    state_dir: Path
    port: int
    watch: bool = False
    machine: bool = False
    verbose: bool = False
    rate_limits: bool = True
    """Whether the installation's default limits hold; those of Routes do anyway."""


class Interruptions:
    """Ctrl-C and SIGTERM: the first asks to stop, the second to stop at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.kill = asyncio.Event()

    def install(self) -> None:
        """Take the signals over."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.kill if self.stop.is_set() else self.stop).set()


def run(options: Options) -> int:
    """Run `moorage up`; returns the exit code."""
    console = Console(machine=options.machine, verbose=options.verbose)
    catalog = catalogs.read(options.folders)
    report.show_problems(console, catalog.problems)
    if catalog.errors:
        if options.machine:
            _print_json({"problems": [problem.as_dict() for problem in catalog.problems]})
        count = len(catalog.errors)
        console.say(f"{count} problem{'s' if count > 1 else ''} to mend; nothing was started.")
        return FAILED
    try:
        state = State(options.state_dir)
        state.create()
        with state.locked():
            port = require(options.port, "--port")
            state.announce(url=None)
            if left := state.clean_leftovers():
                console.warn(f"ended what an earlier `moorage up` left running: {', '.join(left)}")
            return asyncio.run(_run(options, console, state, catalog, port))
    except (StateError, PortTakenError) as error:
        console.error(str(error))
        return FAILED


async def _run(options: Options, console: Console, state: State, catalog: Catalog, port: int) -> int:
    settings = SETTINGS if options.rate_limits else WITHOUT_RATE_LIMITS
    return await Run(options, console, state, Session(state, console, port, settings)).run(catalog)


class Run:
    """One `moorage up`, between its lock and its exit code."""

    def __init__(self, options: Options, console: Console, state: State, session: Session) -> None:
        self._options = options
        self._console = console
        self._state = state
        self._session = session
        self._interruptions = Interruptions()
        folders = [folder.resolve() for folder in options.folders]
        self._watcher = Watcher(folders, session, partial(catalogs.read, options.folders))

    async def run(self, catalog: Catalog) -> int:
        """Start, follow and stop everything; returns the exit code."""
        self._interruptions.install()
        code = OK
        # From the beginning: what is saved while things start must not be missed.
        collecting = asyncio.create_task(self._watcher.collect()) if self._options.watch else None
        try:
            await _unless(self._interruptions.stop, self._start(catalog))
            if not self._interruptions.stop.is_set():
                await self._follow()
        except (StartError, ZygoteLostError, EmbeddedError) as error:
            self._console.error(str(error))
            code = FAILED
        finally:
            if collecting is not None:
                collecting.cancel()
                await asyncio.gather(collecting, return_exceptions=True)
            if not await self._stop():
                code = KILLED
        return code

    async def _start(self, catalog: Catalog) -> None:
        await self._session.start(catalog)
        await self._first_request()
        failed = [runner for runner in self._session.runners.values() if runner.problem is not None]
        if failed and not self._options.watch:
            names = ", ".join(runner.module.label for runner in failed)
            raise StartError(f"not started: {names}; the reason stands above. Everything is stopped again.")
        self._state.announce(url=self._session.url)
        if self._options.machine:
            _print_json(report.document(self._session, self._state))
        else:
            report.show(self._console, self._session, self._state)

    async def _first_request(self) -> None:
        """A request through gateway and guard: only an answer shows that the whole chain works."""
        console, session = self._console, self._session
        found = [rule for runner in session.runners.values() for rule in report.rules(session, runner)]
        path = next((rule.path for rule in found if "{" not in rule.path and "*" not in rule.path), "/")
        began = time.monotonic()
        try:
            status = await session.answers(path)
        except (aiohttp.ClientError, TimeoutError) as error:
            console.warn(f"GET {session.url}{path} is not answered: {str(error) or type(error).__name__}")
        else:
            console.detail(
                f"first request: GET {path} answered {status} after {time.monotonic() - began:.3f} s"
            )
        console.say(f"Up in {console.timings.total:.1f} s.", "bold")

    async def _follow(self) -> None:
        """Show logs, and with `--watch` follow changes, until somebody wants to stop."""
        if not self._options.machine:
            following = "; watching for changes" if self._options.watch else ""
            self._console.say(f"Following the logs{following}. Ctrl-C stops everything.\n", "dim")
        self._session.show_logs()
        if self._options.watch:
            await _unless(self._interruptions.stop, self._watcher.run())
        else:
            await self._interruptions.stop.wait()

    async def _stop(self) -> bool:
        """Stop in order; ``False``: a second signal ended everything at once."""
        console, session = self._console, self._session
        if self._interruptions.stop.is_set():
            console.say("\nStopping; once more Ctrl-C kills.", "dim")
        self._interruptions.stop.set()
        session.show_logs(console.verbose)
        began = time.monotonic()
        if await _unless(self._interruptions.kill, session.stop()):
            console.say(f"Stopped in {time.monotonic() - began:.1f} s; the data stay in the state folder.")
            return True
        await session.kill()
        console.warn("killed; the next `moorage up` recovers the database by itself")
        return False


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do *work*, cancelled when *event* comes first; whether it was done. Raises what *work* raises."""
    task = asyncio.create_task(work)
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        if not task.done():
            task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return not task.cancelled()


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
    sys.stdout.flush()
