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
    interruptions = Interruptions()
    interruptions.install()
    session = Session(state, console, port)
    code = OK
    try:
        await _unless(interruptions.stop, _start(options, console, session, state, catalog))
        if not interruptions.stop.is_set():
            code = await _follow(options, console, session, interruptions)
    except (StartError, ZygoteLostError, EmbeddedError) as error:
        console.error(str(error))
        code = FAILED
    finally:
        if not await _stop(console, session, interruptions):
            code = KILLED
    return code


async def _start(
    options: Options, console: Console, session: Session, state: State, catalog: Catalog
) -> None:
    await session.start(catalog)
    await _first_request(console, session)
    failed = [runner for runner in session.runners.values() if runner.problem is not None]
    if failed and not options.watch:
        names = ", ".join(runner.module.label for runner in failed)
        raise StartError(f"not started: {names}; the reason stands above. Everything is stopped again.")
    state.announce(url=session.url)
    if options.machine:
        _print_json(report.document(session, state))
    else:
        report.show(console, session, state)


async def _first_request(console: Console, session: Session) -> None:
    """A request through gateway and guard: only an answer shows that the whole chain works."""
    found = [rule for runner in session.runners.values() for rule in report.rules(session, runner)]
    path = next((rule.path for rule in found if "{" not in rule.path and "*" not in rule.path), "/")
    began = time.monotonic()
    try:
        status = await session.answers(path)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise StartError(f"the gateway does not answer GET {session.url}{path}: {error}") from error
    console.detail(f"first request: GET {path} answered {status} after {time.monotonic() - began:.3f} s")
    console.say(f"Up in {console.timings.total:.1f} s.", "bold")


async def _follow(options: Options, console: Console, session: Session, interruptions: Interruptions) -> int:
    """Show logs, and with `--watch` follow changes, until somebody wants to stop."""
    if not options.machine:
        following = "; watching for changes" if options.watch else ""
        console.say(f"Following the logs{following}. Ctrl-C stops everything.\n", "dim")
    session.show_logs()
    if not options.watch:
        await interruptions.stop.wait()
        return OK
    folders = [folder.resolve() for folder in options.folders]
    watcher = Watcher(folders, session, partial(catalogs.read, options.folders))
    await _unless(interruptions.stop, watcher.run())
    return OK


async def _stop(console: Console, session: Session, interruptions: Interruptions) -> bool:
    """Stop in order; ``False``: a second signal ended everything at once."""
    if interruptions.stop.is_set():
        console.say("\nStopping; once more Ctrl-C kills.", "dim")
    interruptions.stop.set()
    session.show_logs(console.verbose)
    began = time.monotonic()
    if await _unless(interruptions.kill, session.stop()):
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
