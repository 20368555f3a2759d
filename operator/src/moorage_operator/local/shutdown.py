"""`moorage down`: end the run that uses a state folder, and remove the folder on demand."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

from moorage.database.embedded import EmbeddedError, EmbeddedPostgres
from moorage_operator.local.console import Console
from moorage_operator.local.state import State, StateError

_STOP_TIMEOUT_S: Final = 45.0
"""A little more than a module has to drain."""
_UNITS: Final = ("B", "KiB", "MiB", "GiB")


def down(state_dir: Path, *, purge: bool) -> int:
    """Stop the `moorage up` of *state_dir*; with *purge* remove the folder. Returns the exit code."""
    console = Console()
    state = State(state_dir)
    if not state.exists:
        if state.root.exists():
            console.error(f"{state.root} is not a state folder of moorage; nothing was touched")
            return 1
        console.say(f"Nothing runs here: there is no {state.root}.")
        return 0
    try:
        _stop(console, state)
        with state.locked():
            if left := state.clean_leftovers():
                console.say(f"Ended what was left running: {', '.join(left)}.")
            if purge:
                _purge(console, state)
    except (StateError, EmbeddedError, OSError) as error:
        console.error(str(error))
        return 1
    return 0


def _stop(console: Console, state: State) -> None:
    """Ask the running `moorage up` to stop, and end it if it does not."""
    if not state.is_locked():
        console.say("Nothing runs here.")
        return
    facts = state.running()
    if facts is None:
        raise StateError(f"a process that does not say who it is holds {state.root}; end it first")
    pid: int = facts["pid"]
    console.say(f"Stopping `moorage up` (pid {pid}) …")
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            if not state.is_locked():
                console.say(
                    "Stopped." if number == signal.SIGTERM else "It did not stop in time and was killed."
                )
                return
            time.sleep(0.05)
    raise StateError(f"`moorage up` (pid {pid}) does not end")


def _purge(console: Console, state: State) -> None:
    console.say(f"Removing {state.root}:")
    for name, size in state.contents():
        console.say(f"  {name}  {_human(size)}")
    # As root the database's files lie elsewhere; only the server's own code knows where.
    if state.postgres.exists():
        EmbeddedPostgres(state.postgres).purge()
    state.purge()
    console.say("Removed.")


def _human(size: float) -> str:
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"
