"""The state folder of local mode: what lies where, who may read it, and that only one `moorage up` uses it.

``.moorage/{postgres,logs,keys,policy,run,secrets}``, all 0700. ``run/up.lock`` is locked (flock) while
`moorage up` runs; ``run/up.json`` says which process that is and where it serves; ``run/processes.json``
names every process below it with its start time, so that leftovers of one that was killed are told from
strangers with a reused id.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import psutil

DEFAULT: Final = Path(".moorage")
_MARKER: Final = "moorage-state.json"
_START_TOLERANCE_S: Final = 2.0  # psutil derives start times from the boot time, which clock corrections move


class StateError(Exception):
    """The state folder cannot be used; the message says why and what to do."""


class AlreadyRunningError(StateError):
    """Another `moorage up` uses the folder."""


class State:
    """Paths of one state folder. Nothing is created before `create`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.postgres = self.root / "postgres"
        self.logs = self.root / "logs"
        self.keys = self.root / "keys"
        self.policy = self.root / "policy"
        self.run = self.root / "run"
        self.secrets = self.root / "secrets"
        self.policy_key = self.keys / "policy.pem"
        self.token_key = self.keys / "token.pem"
        self.module_key = self.keys / "module.pem"

    def create(self) -> None:
        """Make the folders, private to this user; raises `StateError` for a folder that is not Moorage's."""
        marker = self.root / _MARKER
        try:
            if self.root.is_dir() and not marker.exists() and any(self.root.iterdir()):
                raise StateError(
                    f"{self.root} is not a state folder of moorage: choose another with --state-dir"
                )
            for folder in (self.root, self.logs, self.keys, self.policy, self.run, self.secrets):
                folder.mkdir(mode=0o700, parents=folder == self.root, exist_ok=True)
                if folder != self.root and folder.is_symlink():
                    raise StateError(
                        f"{folder} is a symbolic link, through which files elsewhere would be changed: remove it"
                    )
                folder.chmod(0o700)
        except OSError as error:
            raise StateError(f"cannot use {self.root} as state folder: {error.strerror}") from error
        if not marker.exists():
            write_private(marker, json.dumps({"v": 1}).encode())
            (self.root / ".gitignore").write_text("*\n")

    @property
    def exists(self) -> bool:
        """Whether there is such a state folder."""
        return (self.root / _MARKER).is_file()

    def contents(self) -> list[tuple[str, int]]:
        """Each entry of the folder with the bytes in it."""
        return sorted((entry.name, _size(entry)) for entry in self.root.iterdir())

    def purge(self) -> None:
        """Remove the folder and all in it; raises `StateError` if it is not a state folder of Moorage."""
        if self.root.is_symlink() or not self.exists:
            raise StateError(f"{self.root} is not a state folder of moorage; nothing was removed")
        shutil.rmtree(self.root)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; raises `AlreadyRunningError` if another one does."""
        with self._lock_file() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunningError(_already_running(self.root, self.running())) from None
            try:
                yield
            finally:
                (self.run / "up.json").unlink(missing_ok=True)

    def _lock_file(self) -> IO[bytes]:
        path = self.run / "up.lock"
        try:
            return os.fdopen(
                os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+b"
            )
        except OSError as error:
            raise StateError(f"cannot use {path}: {error.strerror}; remove it") from error

    def is_locked(self) -> bool:
        """Whether a `moorage up` uses the folder now."""
        path = self.run / "up.lock"
        if not path.exists():
            return False
        with path.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def announce(self, **facts: object) -> None:
        """Write ``run/up.json``: this process, and what others want to know of it."""
        me = psutil.Process()
        write_private(
            self.run / "up.json", json.dumps({"pid": me.pid, "started": me.create_time(), **facts}).encode()
        )

    def running(self) -> dict[str, Any] | None:
        """What the running `moorage up` announced, or ``None``."""
        facts = _read_json(self.run / "up.json")
        return facts if isinstance(facts, dict) and alive(facts.get("pid"), facts.get("started")) else None

    def record(self, processes: Iterable[tuple[str, int]]) -> None:
        """Note the (name, pid) of everything that runs below this process."""
        entries = []
        for name, pid in processes:
            with contextlib.suppress(psutil.Error):
                entries.append({"name": name, "pid": pid, "started": psutil.Process(pid).create_time()})
        write_private(self.run / "processes.json", json.dumps(entries).encode())

    def clean_leftovers(self, grace_s: float = 5.0) -> list[str]:
        """End what a killed `moorage up` left running (call it under the lock); returns the names of that."""
        entries = _read_json(self.run / "processes.json")
        left = [e for e in entries if alive(e["pid"], e["started"])] if isinstance(entries, list) else []
        for number in (signal.SIGTERM, signal.SIGKILL):
            for entry in left:
                polite = number == signal.SIGTERM
                # PostgreSQL takes SIGTERM as "wait for the clients", SIGINT as "stop now".
                _end(entry["pid"], signal.SIGINT if polite and entry["name"] == "postgres" else number)
            deadline = time.monotonic() + grace_s
            while any(alive(e["pid"], e["started"]) for e in left) and time.monotonic() < deadline:
                time.sleep(0.05)
        (self.run / "processes.json").unlink(missing_ok=True)
        return [entry["name"] for entry in left]


def alive(pid: object, started: object) -> bool:
    """Whether the process with id *pid* that began at *started* (seconds since the epoch) still runs."""
    if not isinstance(pid, int) or not isinstance(started, int | float):
        return False
    try:
        process = psutil.Process(pid)
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and abs(process.create_time() - started) < _START_TOLERANCE_S
        )
    except psutil.Error:
        return False


def write_private(path: Path, data: bytes) -> None:
    """Write *data* to *path* at once (rename), readable by this user only."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 by mkstemp
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _end(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # Children lead their own group; the zygote and PostgreSQL too. Never our own group.
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_size(entry) for entry in path.iterdir())
    return path.lstat().st_size


def _already_running(root: Path, facts: dict[str, Any] | None) -> str:
    who = f" (pid {facts['pid']}{', ' + facts['url'] if facts.get('url') else ''})" if facts else ""
    return (
        f"`moorage up` already runs here{who}, with its state in {root}: "
        "stop it with Ctrl-C or `moorage down`, or give this one another --state-dir and --port"
    )
