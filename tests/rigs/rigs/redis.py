"""A real Redis on a loopback port and a Unix socket of its own, that tests may kill and start again."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rigs import RigUnavailable, packages

_PATIENCE: Final = 10.0


class RedisServer:
    """One server. Port, socket and password stay the same when it is started again; its data do not."""

    def __init__(self, folder: Path, also: Sequence[str] = ()) -> None:
        self.port = _free_port()
        self.password = secrets.token_hex(8)
        self._folder = folder
        self._addresses = ("127.0.0.1", *also)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For clients, by TCP."""
        return self.url_at("127.0.0.1")

    def url_at(self, address: str) -> str:
        """For clients, by TCP, at one of its addresses."""
        return f"redis://:{self.password}@{address}:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """For clients, by the Unix socket."""
        return f"unix://:{self.password}@{self._folder / 'redis.sock'}?db=0"

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            RigUnavailable: it does not come up; the message has the end of its log.
        """
        log = self._folder / "redis.log"
        options = {
            "port": str(self.port),
            "unixsocket": str(self._folder / "redis.sock"),
            "requirepass": self.password,
            "save": "",
            "appendonly": "no",
            "dir": str(self._folder),
            "maxmemory": "64mb",
            "logfile": str(log),
        }
        # By standard input: a password among the arguments is everybody's to read.
        text = "".join(f'{name} "{value}"\n' for name, value in options.items())
        text += f"bind {' '.join(self._addresses)}\n"
        self._process = subprocess.Popen(
            ["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.close()
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = log.read_text()[-1000:] if log.exists() else "nothing was logged"
                raise RigUnavailable(f"redis-server does not answer on port {self.port}: {tail}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as a machine that fails does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Let it hang: connections stay open and nothing is answered, until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        os.kill(self._process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (part := connection.recv(64)):
                    answer += part
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"


@contextmanager
def running(also: Sequence[str] = ()) -> Iterator[RedisServer]:
    """A server for the length of the block.

    Args:
        also: further addresses of this machine to answer on; pods reach the host by the bridge's.

    Raises:
        RigUnavailable: there is no `redis-server`, and it cannot be installed here.
    """
    packages.ensure("redis-server")
    # Short: the path of a Unix socket has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="rig-redis-", dir="/tmp"))
    server = RedisServer(folder, also)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
