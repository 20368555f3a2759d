"""A server process of a benchmark with all that it starts: what it costs, and how it ends."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

PYTHON: Final = sys.executable
_PATIENCE: Final = 60.0
_END_PATIENCE: Final = 15.0
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_FOLDER: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Memory:
    """Of a process and its children, in MiB. Pages that several of them share count in each one's ``resident``."""

    resident: float
    private: float


class Server:
    """A running server that listens on ``port`` of 127.0.0.1."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self.name, self.port, self.log = name, port, log
        self._process = process

    async def listening(self) -> None:
        """Wait until it takes connections; raises `RuntimeError` with the end of its log where it does not."""
        deadline = time.monotonic() + _PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"{self.name} does not listen; the end of its log:\n{self.tail()}")

    def cpu(self) -> float:
        """Seconds of processor time that it and its children used so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self._tree())

    def memory(self) -> Memory:
        """What it and its children hold now."""
        found = [process.memory_full_info() for process in self._tree()]
        return Memory(sum(one.rss for one in found) / 2**20, sum(one.uss for one in found) / 2**20)

    def tail(self, characters: int = 3000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-characters:]

    def stop(self) -> None:
        """End it in order, and by force what is left of it after a while."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_PATIENCE)
        with suppress(ProcessLookupError):  # its session has nobody else in it
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]


@contextmanager
def started(
    name: str,
    command: Sequence[str | Path],
    *,
    port: int,
    log: Path,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run *command* for the length of the block; what it says goes to *log*.

    It has a session of its own, so that Ctrl-C reaches the benchmark alone, which ends its servers in order. Should the
    benchmark be killed, the kernel tells the server.

    Args:
        environ: what the server is told, besides the little that every process needs.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=_FOLDER / "modules",
            env={**_environment(), **(environ or {})},
            start_new_session=True,
        )
    server = Server(name, process, port, log)
    try:
        yield server
    finally:
        server.stop()


def _environment() -> dict[str, str]:
    """Nothing that would set something in a server; where the tests' coverage is measured, that goes on."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("COVERAGE")}
    # As in the images; -m finds the benchmark's own modules.
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(_FOLDER)}
