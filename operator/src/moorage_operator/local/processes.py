"""The supervisor's end of the zygote: start processes, signal them, learn of their end, read their output."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from moorage_operator.local.launch import Launch

_START_TIMEOUT_S: Final = 30.0
_LINE_LIMIT: Final = 64 * 1024
"""Bytes of one line of output; a longer one is read in pieces."""


class ZygoteLostError(Exception):
    """The preloaded parent died, and every module with it."""


class Child:
    """A running process: its ``pid`` (also its group's), its output and, once it ended, its exit code."""

    def __init__(self, pid: int, output: asyncio.StreamReader, send: Callable[[int, int], None]) -> None:
        self.pid = pid
        self.output = output
        self._send = send
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def running(self) -> bool:
        """Whether no end was reported yet."""
        return not self._exit.done()

    async def wait(self) -> int:
        """The exit code; negative: the signal that ended it."""
        return await asyncio.shield(self._exit)

    def signal(self, number: int) -> None:
        """Signal the process's whole group; without effect when it is gone."""
        if self.running:
            self._send(self.pid, number)

    async def stop(self, grace_s: float) -> int:
        """SIGTERM, and SIGKILL after *grace_s* seconds. Returns the exit code."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.wait(), grace_s)
        self.signal(signal.SIGKILL)
        return await self.wait()

    def ended(self, code: int) -> None:
        """Note the exit code (called by `Zygote`)."""
        if self.running:
            self._exit.set_result(code)


class Zygote:
    """Starts the preloaded parent when first needed, and anew when it was lost.

    Without *preload* it imports nothing ahead, and every child pays for what it imports.
    """

    def __init__(self, *, preload: bool = True) -> None:
        self._preload = preload
        self._process: asyncio.subprocess.Process | None = None
        self._commands: socket.socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._starting: dict[int, asyncio.Future[int]] = {}
        self._children: dict[int, Child] = {}
        self._early_exits: dict[int, int] = {}
        self._adopted: set[int] = set()
        self._ids = count(1)
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The zygote's process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the preloaded parent and wait until it has imported everything.

        Raises `ZygoteLostError` when it does not come up.
        """
        async with self._lock:
            if self._commands is None:
                await self._launch()

    async def spawn(self, launch: Launch) -> Child:
        """Start *launch*; it runs when this returns. Raises `ZygoteLostError`."""
        await self.start()
        identity = next(self._ids)
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._starting[identity] = started
        read_end, write_end = os.pipe()
        output = await _stream(read_end)
        try:
            self._command({"op": "start", "id": identity, **launch.fields()}, write_end)
        finally:
            os.close(write_end)  # without a writer the stream ends and closes itself
        pid = await asyncio.wait_for(started, _START_TIMEOUT_S)
        child = Child(pid, output, self._signal)
        if (code := self._early_exits.pop(pid, None)) is not None:
            child.ended(code)
        else:
            self._children[pid] = child
        return child

    def adopt(self, pid: int) -> None:
        """Have *pid*, which somebody else started, stopped (SIGINT) if this process dies without a word."""
        self._adopted.add(pid)
        if self._commands is not None:  # else it is told when it starts
            self._command({"op": "adopt", "pid": pid})

    def release(self, pid: int) -> None:
        """Undo `adopt`: *pid* is being stopped in order."""
        self._adopted.discard(pid)
        if self.pid is not None:
            self._command({"op": "release", "pid": pid})

    async def close(self, *, kill: bool = False) -> None:
        """End the zygote and whatever still runs below it; idempotent."""
        for child in self._children.values():
            if kill:
                child.signal(signal.SIGKILL)
        if self._commands is not None:
            self._commands.close()
            self._commands = None
        if self._process is not None:
            await self._process.wait()
        if self._reader is not None:
            await self._reader

    async def _launch(self) -> None:
        if self._reader is not None:
            await self._reader  # the lost one's last events
        if self._process is not None:
            await self._process.wait()
        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        command = ("-P", "-m", "moorage_operator.local.zygote", "--commands", str(theirs.fileno()))
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                "--events",
                str(write_end),
                *(() if self._preload else ("--no-preload",)),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), write_end),
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(write_end)
        self._commands = ours
        self._ready = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._follow(await _stream(read_end)))
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), _START_TIMEOUT_S)
        except TimeoutError:
            raise ZygoteLostError(
                f"the preloaded parent process is not ready after {_START_TIMEOUT_S:.0f} s"
            ) from None
        for pid in self._adopted:
            self._command({"op": "adopt", "pid": pid})

    async def _follow(self, events: asyncio.StreamReader) -> None:
        while line := await events.readline():
            self._on_event(json.loads(line))
        self._on_lost()

    def _on_event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "ready":
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(None)
            case "started":
                if not (started := self._starting.pop(event["id"])).done():
                    started.set_result(event["pid"])
            case "exited":
                if (child := self._children.pop(event["pid"], None)) is not None:
                    child.ended(event["code"])
                else:
                    self._early_exits[event["pid"]] = event["code"]

    def _on_lost(self) -> None:
        lost = ZygoteLostError("the preloaded parent process of all modules ended unexpectedly")
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(lost)
        for started in self._starting.values():
            if not started.done():
                started.set_exception(lost)
        self._starting.clear()
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # on Linux PR_SET_PDEATHSIG has done it already
            child.ended(-signal.SIGKILL)
        self._children.clear()
        self._early_exits.clear()
        if self._commands is not None:
            self._commands.close()
            self._commands = None

    def _signal(self, pid: int, number: int) -> None:
        self._command({"op": "signal", "pid": pid, "signal": int(number)})

    def _command(self, command: dict[str, Any], descriptor: int | None = None) -> None:
        """Write one command. It blocks for no noticeable time: the zygote does nothing but read them."""
        if self._commands is None:
            raise ZygoteLostError("the preloaded parent process does not run")
        data = json.dumps(command).encode() + b"\n"
        try:
            sent = socket.send_fds(self._commands, [data], [descriptor] if descriptor is not None else [])
            self._commands.sendall(data[sent:])
        except OSError as error:
            raise ZygoteLostError(f"the preloaded parent process does not listen: {error}") from error


async def _stream(descriptor: int) -> asyncio.StreamReader:
    """The read end of a pipe as a stream."""
    reader = asyncio.StreamReader(limit=_LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    return reader


async def read_line(reader: asyncio.StreamReader) -> str | None:
    """The next line of output without its end (at most 64 KiB), or ``None`` at the end of the stream."""
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        line = end.partial
        if not line:
            return None
    except asyncio.LimitOverrunError as overrun:
        line = await reader.readexactly(overrun.consumed)
    return line.decode("utf-8", "replace").rstrip("\r\n")
