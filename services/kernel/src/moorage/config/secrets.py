"""Secrets that rotate while a module runs: read when they are asked for, never kept in anything that can be shown."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

import structlog
from pydantic import SecretStr

from moorage.config.layers import LayerError, mounted_files, read_secret, secret_files
from moorage.errors import Unavailable

log = structlog.get_logger("moorage.config")

_IN_CONTAINER: Final = (
    Path("/.dockerenv"),
    Path("/run/.containerenv"),
    Path("/var/run/secrets/kubernetes.io"),
)

Seen = tuple[Path, tuple[int, int, int], SecretStr]


class SecretMissing(Unavailable):
    """503: a secret that the code asks for is not there. The caller does not learn its name, the log does."""

    code = "secret_missing"


class Secrets:
    """The module's secrets by name; a handler asks for it by type::

        async def pay(secrets: Secrets) -> None:
            key = secrets.current("stripe_key").get_secret_value()

    A name is that of a file below ``MOORAGE_SECRETS_DIR``, which the platform mounts (every key of the Secrets in
    ``spec.secretRefs``), else of an environment variable in capitals. The newest content is given each time: a
    `stat` tells whether the file has to be read again, and kubelet's switch of a whole mount is followed.

    It shows no value: not by ``repr``, ``str`` or logging; it cannot be pickled.
    """

    __slots__ = ("_environ", "_folder", "_paths", "_seen")

    def __init__(self, folder: str | None, environ: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._environ = os.environ if environ is None else environ
        self._paths: dict[str, Path] = {}
        self._seen: dict[str, Seen] = {}

    def current(self, name: str) -> SecretStr:
        """The newest value of *name*; capitals, ``-`` and ``.`` (for ``_``) do not count.

        Raises:
            SecretMissing: there is no such secret, or it cannot be read; what was read before is not given, because
                it may have been withdrawn.
        """
        plain = name.lower().replace("-", "_").replace(".", "_")
        try:
            found = self._from_file(plain)
        except LayerError as exc:
            raise SecretMissing(reason=str(exc)) from None
        if found is not None:
            return found
        value = self._environ.get(plain.upper())
        if value:
            return SecretStr(value)
        where = (
            f"no file of that name in {self._folder}" if self._folder else "MOORAGE_SECRETS_DIR is not set"
        )
        raise SecretMissing(
            reason=f"the secret {name!r} is missing: {where}, and no variable {plain.upper()}; name the Secret that "
            f"has the key in spec.secretRefs of the Module"
        )

    def __contains__(self, name: str) -> bool:
        try:
            self.current(name)
        except SecretMissing:
            return False
        return True

    def _from_file(self, plain: str) -> SecretStr | None:
        for again in (False, True):
            if again or plain not in self._paths:
                self._paths = secret_files(self._folder)
            path = self._paths.get(plain)
            if path is None:
                return None
            try:
                status = path.stat()
            except OSError:
                continue  # it has moved, or gone: look for it anew
            mark = (status.st_ino, status.st_mtime_ns, status.st_size)
            seen = self._seen.get(plain)
            if seen is not None and seen[:2] == (path, mark):
                return seen[2]
            value = SecretStr(read_secret(path))
            self._seen[plain] = (path, mark, value)
            return value
        return None

    def __repr__(self) -> str:
        return f"Secrets({self._folder!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets cannot be pickled")


def warn_of_open_files(folder: str | None) -> list[Path]:
    """Warn of secrets that every user of this machine can read; gives them.

    Not in a container: there kubelet makes them 0644, and there is one user.
    """
    if any(place.exists() for place in _IN_CONTAINER) or "KUBERNETES_SERVICE_HOST" in os.environ:
        return []
    found = []
    for path in mounted_files(folder):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        if mode & stat.S_IROTH:
            found.append(path)
            log.warning(
                "a secret can be read by every user of this machine", file=str(path), mend=f"chmod 600 {path}"
            )
    return found
