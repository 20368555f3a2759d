"""Long-lived processes that outlive the command which started them, and are found again safely.

A process is known by its id *and* its start time: ids are reused, and a pid file that survived a
crash must never make us signal a stranger. Each process leads a session and process group of its
own, logs to a file, and carries `MOORAGE_TEST_CLUSTER` in its environment, so that even one whose
pid file was never written (a kill at the wrong moment) can be found.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

MARK = "MOORAGE_TEST_CLUSTER"
"""Environment variable that names the run directory a process belongs to."""


class ProcessError(RuntimeError):
    """A process did not do what it had to; the message ends with its last log lines."""


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is gone or a zombie.

    proc(5): fields after the command's closing parenthesis are `state` (first) and `starttime` (20th).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def boot_id() -> str:
    """Return the kernel's id of this boot: start times of different boots cannot be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Identity:
    """A process, in a form that can be written down and recognised later."""

    pid: int
    start: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        """Return the identity of a running process, or None."""
        start = start_time(pid)
        return None if start is None else cls(pid, start, boot_id())

    def alive(self) -> bool:
        """Tell whether this very process still runs (a dead child of ours is reaped on the way)."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        return self.boot == boot_id() and start_time(self.pid) == self.start


def end(identity: Identity, grace: float = 5.0) -> None:
    """End a process and its group: SIGTERM, and after `grace` seconds SIGKILL. Returns when it is gone."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        if not identity.alive():
            break
        _signal(identity.pid, number)
        deadline = time.monotonic() + patience
        while identity.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
    # What the leader left behind in its group: nobody else can be in it, ids of living groups are not reused.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(identity.pid, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        try:
            leads_group = os.getpgid(pid) == pid
        except ProcessLookupError:
            return
        if leads_group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


class Supervisor:
    """Starts, finds and ends the processes that belong to one run directory."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.pids = run / "pids"
        self.logs = run / "logs"

    def spawn(
        self,
        name: str,
        argv: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> Identity:
        """Start a process in the background and remember it as `name`.

        `env` is added to the environment; `prefix` is a command that replaces itself by the
        process (`setpriv …`). Raises ProcessError if one of that name runs, or none could start.
        """
        if (running := self.find(name)) is not None:
            raise ProcessError(f"{name} runs already (process {running.pid})")
        for folder in (self.pids, self.logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [*prefix, *(os.fspath(part) for part in argv)]
        log = self.log(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawnp(
            command[0],
            command,
            {**os.environ, **(env or {}), MARK: str(self.run)},
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        identity = Identity.of(pid)
        if identity is None:
            raise ProcessError(f"{name} ended at once:\n{self.tail(name)}")
        unfinished = self.pids / f".{name}"
        unfinished.write_text(json.dumps(asdict(identity)))
        unfinished.rename(self.pids / name)
        return identity

    def log(self, name: str) -> Path:
        """Return the file that takes a process's standard output and error."""
        return self.logs / f"{name}.log"

    def tail(self, name: str, lines: int = 15) -> str:
        """Return the last lines of a process's log."""
        try:
            text = self.log(name).read_text(errors="replace")
        except FileNotFoundError:
            return f"({name} wrote no log)"
        return "\n".join(text.splitlines()[-lines:])

    def find(self, name: str) -> Identity | None:
        """Return the running process remembered as `name`; a stale pid file is removed."""
        path = self.pids / name
        try:
            identity = Identity(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            path.unlink(missing_ok=True)  # cut short by a full disk or a crash: it names nobody
            return None
        if not identity.alive():
            path.unlink(missing_ok=True)
            return None
        return identity

    def running(self) -> dict[str, Identity]:
        """Return every remembered process that runs, by name."""
        if not self.pids.is_dir():
            return {}
        names = sorted(p.name for p in self.pids.iterdir() if not p.name.startswith("."))
        found = ((name, self.find(name)) for name in names)
        return {name: identity for name, identity in found if identity is not None}

    def stop(self, name: str, grace: float = 5.0) -> None:
        """End the process remembered as `name`, if it runs, and forget it."""
        identity = self.find(name)
        if identity is not None:
            end(identity, grace)
        (self.pids / name).unlink(missing_ok=True)

    def marked(self) -> Iterator[Identity]:
        """Yield every process that carries this run directory's mark, remembered or not."""
        wanted = f"{MARK}={self.run}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue  # gone, or not ours to read
            if wanted in environment.split(b"\0"):
                identity = Identity.of(int(entry.name))
                if identity is not None:
                    yield identity
