"""What a process of local mode is, and the wire form in which the supervisor hands it to the zygote."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PLATFORM_PREFIXES: Final = (
    "MOORAGE_",
    "DATABASE_",
    "SERVER_",
    "ADMIN_",
    "UPSTREAM_",
    "GATEWAY_",
    "EVENTS_",
    "KAFKA_",
    "CLIENT_",
)
ENTRY: Final = "moorage.cli:main"
PLATFORM_NAMES: Final = frozenset({"HOST", "PORT", "REDIS_URL"})


@dataclass(frozen=True)
class Launch:
    """One process to start.

    ``entry`` is ``package.module:function`` to be called in a fork of the zygote with ``sys.argv = argv``;
    without it ``argv`` is executed as a program. ``path`` goes in front of ``sys.path`` (only with
    ``entry``).
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    entry: str | None = None
    path: tuple[Path, ...] = ()

    def fields(self) -> dict[str, Any]:
        """What `json` can encode."""
        return {
            "name": self.name,
            "argv": list(self.argv),
            "env": dict(self.env),
            "cwd": str(self.cwd),
            "entry": self.entry,
            "path": [str(folder) for folder in self.path],
        }

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> "Launch":
        """The reverse of `fields`, of a parsed line; it trusts the supervisor."""
        return cls(
            name=data["name"],
            argv=tuple(data["argv"]),
            env=data["env"],
            cwd=Path(data["cwd"]),
            entry=data["entry"],
            path=tuple(Path(p) for p in data["path"]),
        )


def moorage(name: str, *args: str, env: Mapping[str, str], cwd: Path, path: tuple[Path, ...] = ()) -> Launch:
    """The command ``moorage *args`` as a fork of the zygote, which has it imported already."""
    return Launch(name=name, argv=("moorage", *args), env=env, cwd=cwd, entry=ENTRY, path=path)


def base_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The developer's environment without the names that the platform gives to modules.

    A ``DATABASE_DSN`` or ``PORT`` that lingers in a shell must not reach every module at once; what else is
    set (proxies, certificates, cloud credentials) is what the developer wants modules to see.
    """
    source = os.environ if environ is None else environ
    return {
        name: value
        for name, value in source.items()
        if name not in PLATFORM_NAMES and not name.startswith(PLATFORM_PREFIXES)
    }


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` as the kubelet does: unknown names stay, ``$$`` is one ``$``."""
    out: list[str] = []
    position = 0
    while (start := text.find("$", position)) >= 0:
        out.append(text[position:start])
        following = text[start + 1 : start + 2]
        end = text.find(")", start) if following == "(" else -1
        if following == "$":
            out.append("$")
            position = start + 2
        elif end > 0:
            out.append(env.get(text[start + 2 : end], text[start : end + 1]))
            position = end + 1
        else:
            out.append("$")
            position = start + 1
    out.append(text[position:])
    return "".join(out)
