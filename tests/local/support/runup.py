"""Runs the command `moorage` as a user would, and looks after every process that it starts."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

MOORAGE = str(Path(sys.executable).with_name("moorage"))
START_TIMEOUT_S = 60.0


def moorage(*arguments: str, cwd: Path, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [MOORAGE, *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False
    )


class Up:
    """A running `moorage up`. Leaving the block ends it and everything below it, whatever the test did.

    Without default limits: tests ask again and again until something has changed.
    """

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.cwd = cwd
        self._command = [MOORAGE, "up", "--port", "0", "--no-rate-limits", *arguments]
        self._lines: list[str] = []
        self._stdout: list[str] = []
        self._seen: dict[int, psutil.Process] = {}
        self.document: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            self._command,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # The group of a terminal's foreground job, so that a test can send what Ctrl-C sends.
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._stdout), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, []), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remember()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        for process in (
            [*self._seen.values(), psutil.Process(self.process.pid)] if self.process.poll() is None else []
        ):
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(10)
        for reader in self._readers:
            reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        if kind is not None:
            sys.stderr.write(f"--- output of {' '.join(self._command)}\n{self.output}\n---\n")

    def _read(self, stream: Any, own: list[str]) -> None:
        for line in stream:
            own.append(line)
            self._lines.append(line)

    @property
    def output(self) -> str:
        """Everything that it wrote so far."""
        return "".join(self._lines)

    @property
    def url(self) -> str:
        """The gateway's URL (after `ready`)."""
        return str(self.document["url"])

    def ready(self) -> Self:
        """Wait for the document of ``-o json``, which has stdout for itself."""
        self._wait(lambda: self._parse() is not None, "the document", START_TIMEOUT_S)
        self.document = self._parse() or {}
        self.remember()
        return self

    def _parse(self) -> dict[str, Any] | None:
        with contextlib.suppress(ValueError):
            return dict(json.loads("".join(self._stdout)))
        return None

    def wait_for_output(self, text: str, timeout_s: float = 20.0, *, after: int = 0) -> int:
        """Wait until *text* was written behind position *after* of the output; returns the position behind it."""
        self._wait(lambda: text in self.output[after:], repr(text), timeout_s)
        return self.output.index(text, after) + len(text)

    def _wait(self, done: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            if self.process.poll() is not None:
                for reader in self._readers:
                    reader.join(5)
                assert done(), f"it ended ({self.process.returncode}) without {what}:\n{self.output}"
                return
            assert time.monotonic() < deadline, f"no {what} within {timeout_s} s:\n{self.output}"
            time.sleep(0.02)

    def remember(self) -> list[psutil.Process]:
        """Note every process below this one, to be asked later whether it is gone."""
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self._seen[process.pid] = process
        return list(self._seen.values())

    def pid_of(self, name: str) -> int:
        """Process id of a module, ``gateway``, ``postgres`` or ``zygote``."""
        entries = json.loads((self.cwd / ".moorage/run/processes.json").read_bytes())
        return next(int(entry["pid"]) for entry in entries if entry["name"] == name)

    def interrupt(self) -> int:
        """Ctrl-C: SIGINT to the whole foreground group. Returns the exit code."""
        self.remember()
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(40)

    def survivors(self, within_s: float = 10.0) -> list[str]:
        """What still runs of everything that was ever seen below this process."""
        deadline = time.monotonic() + within_s
        while (left := list(self._alive())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def _alive(self) -> Iterator[str]:
        for process in self._seen.values():
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    yield f"{process.pid} {' '.join(process.cmdline())}"
