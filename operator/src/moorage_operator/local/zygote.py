"""The preloaded parent: it imports the platform once and forks a process per module in milliseconds.

It runs as ``python -P -m moorage_operator.local.zygote --commands FD --events FD`` with one thread and no
event loop, because a fork copies neither threads nor a loop's state sanely. Modules are imported in the child
only, so that they cannot see, slow or break each other.

Commands are JSON lines on a Unix stream socket: ``{"op": "start", "id", …Launch}`` with the process's output
as a file descriptor beside it (SCM_RIGHTS), ``{"op": "signal", "pid", "signal"}``, ``{"op": "adopt", "pid"}``
for a process that somebody else started and that must not outlive us (PostgreSQL). Events are JSON lines on a
pipe: ``started {id, pid}``, ``exited {pid, code}`` (negative: the signal), ``ready``.

The end of the command stream means that the supervisor is gone, in whatever way: everything is then stopped.
That works on macOS as well; on Linux children besides die with the zygote (``PR_SET_PDEATHSIG``).
"""

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from moorage_operator.local.launch import Launch

PRELOAD: Final = (
    "aiohttp.web",
    "alembic.command",
    "asyncpg",
    "cryptography.hazmat.primitives.asymmetric.ec",
    "jwt",
    "prometheus_client",
    "pydantic",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.ext.asyncio",
    "structlog",
    "uvloop",
    "yaml",
    "moorage",
    "moorage.cli",
    "moorage.cli.serve",
    "moorage.cli.migrate",
    "moorage_gateway.commands",
    "moorage_gateway.gateway.serving",
)
_PR_SET_PDEATHSIG: Final = 1
_GRACE_S: Final = 5.0
_CHUNK: Final = 65536


def preload() -> None:
    """Import what modules will need; what fails to be imported is left to the process that misses it."""
    for name in PRELOAD:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


class Zygote:
    """The loop of the preloaded parent."""

    def __init__(self, commands: socket.socket, events: int) -> None:
        self._commands = commands
        self._events = events
        self._buffer = b""
        self._descriptors: list[int] = []
        self._children: list[int] = []
        self._adopted: list[int] = []
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)

    def run(self) -> Launch | None:
        """Serve until the supervisor is gone: ``None``; in a forked child, the `Launch` to become."""
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        # Not epoll or kqueue: their descriptors do not survive, or wrongly survive, a fork.
        with selectors.SelectSelector() as selector:
            selector.register(self._commands, selectors.EVENT_READ)
            selector.register(self._wake_in, selectors.EVENT_READ)
            self._emit({"event": "ready"})
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._wake_in:
                        self._reap()
                        continue
                    lines = self._receive()
                    if lines is None:
                        self._stop_everything()
                        return None
                    for line in lines:
                        if (launch := self._obey(json.loads(line))) is not None:
                            return launch

    def _receive(self) -> list[bytes] | None:
        """Complete lines that have arrived, or ``None`` at the end of the stream."""
        data, descriptors, _, _ = socket.recv_fds(self._commands, _CHUNK, 16)
        self._descriptors.extend(descriptors)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return lines

    def _obey(self, command: dict[str, Any]) -> Launch | None:
        match command["op"]:
            case "start":
                return self._fork(command.pop("id"), Launch.decode(command))
            case "signal":
                if command["pid"] in self._children:
                    _signal_group(command["pid"], command["signal"])
            case "adopt":
                self._adopted.append(command["pid"])
            case "release":
                self._adopted = [pid for pid in self._adopted if pid != command["pid"]]
        return None

    def _fork(self, identity: int, launch: Launch) -> Launch | None:
        output = self._descriptors.pop(0)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(output, parent)
            return launch
        os.close(output)
        self._children.append(pid)
        self._emit({"event": "started", "id": identity, "pid": pid})
        return None

    def _become_child(self, output: int, parent: int) -> None:
        # A session of its own: the terminal's Ctrl-C is for the supervisor alone, and a signal reaches the
        # whole group.
        os.setsid()
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for end in (self._wake_in, self._wake_out, self._commands):
            end.close()
        os.close(self._events)
        for pending in self._descriptors:
            os.close(pending)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(null)
        os.close(output)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_in.recv(4096):
                pass
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                # What the process started in its group would hold its port and its output open.
                _signal_group(pid, signal.SIGKILL)
                self._children.remove(pid)
                self._emit({"event": "exited", "pid": pid, "code": os.waitstatus_to_exitcode(status)})

    def _emit(self, event: dict[str, object]) -> None:
        # The reader may be gone already; the end of the command stream then follows.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._events, json.dumps(event).encode() + b"\n")

    def _stop_everything(self) -> None:
        """Stop children, then what was adopted: politely first, with SIGKILL after the grace."""
        for pid in reversed(self._children):
            _signal_group(pid, signal.SIGTERM)
        _wait_until(lambda: not self._alive_children(), _GRACE_S)
        for pid in self._children:
            _signal_group(pid, signal.SIGKILL)
        for pid in self._adopted:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGINT)  # PostgreSQL's fast shutdown

    def _alive_children(self) -> bool:
        self._reap()
        return bool(self._children)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone, where there is ``prctl``."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it went away between fork and prctl
        os._exit(1)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        # The child may not have called setsid yet; macOS answers EPERM for a group of zombies.
        if number != signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _wait_until(done: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)


def become(launch: Launch) -> None:
    """Turn this forked child into what *launch* says, until that program is done."""
    os.environ.clear()
    os.environ.update(launch.env)
    try:
        os.chdir(launch.cwd)
        if launch.entry is None:
            # A program that the manifest names, with a list of arguments and without a shell.
            os.execvpe(launch.argv[0], launch.argv, dict(launch.env))  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"cannot start {launch.argv[0]!r} in {launch.cwd}: {error}\n")
        raise SystemExit(127) from error
    sys.path[:0] = [str(folder) for folder in launch.path]
    importlib.invalidate_caches()
    sys.argv = list(launch.argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # never None here
    module, _, function = str(launch.entry).partition(":")
    getattr(importlib.import_module(module), function)()


def main() -> None:
    """Entry point of the zygote's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--commands", type=int, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--no-preload", action="store_true")
    arguments = parser.parse_args()
    if not arguments.no_preload:
        preload()
    # What was imported never dies: without this, every collection in a child would touch, and so copy, its
    # pages.
    gc.collect()
    gc.freeze()
    launch = Zygote(socket.socket(fileno=arguments.commands), arguments.events).run()
    if launch is not None:
        become(launch)


if __name__ == "__main__":
    main()
