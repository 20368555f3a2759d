"""Resolves requirements/*.lock: one for the development environment, one for each image, one for building.

Every lock is universal (all platforms, Python 3.11 and later) and carries hashes; none names an index, a download
address or a path. Our own distributions are in no lock: they are installed from this checkout with `--no-deps`.
Pins that still fit are kept; `--upgrade` lets them move. Image locks are constrained by `dev.lock`, so that what
was tested is what is shipped.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
BUILD_TOOLS = {"uv", "watchfiles"}
"""Of the development environment's tools, those in the builder stage of images; the second is for live updates."""
LOCKS = ROOT / "requirements"
HEADER = "# Resolved by `make lock` from the pyproject.toml files; do not edit.\n"
OLDEST_PYTHON = "3.11"
LIBRARIES = ("crds", "kernel")
"""Folders of distributions that no image is made of."""
EDITABLE_INSTALLS = "editables~=0.5"
"""What hatchling asks for besides its own requirements when a distribution is installed editable."""


class LockError(RuntimeError):
    """A lock cannot be resolved; the message says what the resolver said."""


@dataclass(frozen=True)
class Distribution:
    """One pyproject.toml of this repository."""

    folder: Path
    project: dict[str, Any]
    build_requires: tuple[str, ...]

    @property
    def name(self) -> str:
        """The normalised name, such as `moorage-blog`."""
        return canonicalize_name(self.project["name"])

    def requires(self, extras: Iterable[str] = ()) -> Iterator[Requirement]:
        """Yield the declared requirements, those of `extras` included."""
        optional = self.project.get("optional-dependencies", {})
        for text in (
            *self.project.get("dependencies", ()),
            *(t for extra in extras for t in optional[extra]),
        ):
            yield Requirement(text)


def read_distributions(root: Path = ROOT) -> dict[str, Distribution]:
    """Return every distribution of the repository by its normalised name."""
    found = {}
    for path in (root / "crds", root / "operator", *sorted((root / "services").iterdir())):
        if (path / "pyproject.toml").is_file():
            content = tomllib.loads((path / "pyproject.toml").read_text())
            one = Distribution(path, content["project"], tuple(content["build-system"]["requires"]))
            found[one.name] = one
    return found


def outside_requirements(start: Iterable[Requirement], own: dict[str, Distribution]) -> set[str]:
    """Return what `start` needs from outside the repository, through our own distributions, as requirement lines."""
    outside: set[str] = set()
    waiting, seen = list(start), set()
    while waiting:
        requirement = waiting.pop()
        ours = own.get(canonicalize_name(requirement.name))
        if ours is None:
            outside.add(str(requirement))
        elif (key := (ours.name, frozenset(requirement.extras))) not in seen:
            seen.add(key)
            waiting += ours.requires(requirement.extras)
    return outside


def lock_inputs(root: Path = ROOT) -> dict[str, set[str]]:
    """Return the requirement lines of every lock by the lock's name; `dev` comes first."""
    own = read_distributions(root)
    workspace = tomllib.loads((root / "pyproject.toml").read_text())
    build = {line for one in own.values() for line in one.build_requires}
    everything = [
        Requirement(f"{one.name}[{','.join(one.project.get('optional-dependencies', {}))}]")
        for one in own.values()
    ]
    development = [Requirement(line) for line in workspace["dependency-groups"]["dev"]]
    inputs = {"dev": outside_requirements([*everything, *development], own) | build | {EDITABLE_INSTALLS}}
    inputs["build"] = build | {str(r) for r in development if r.name in BUILD_TOOLS}
    for one in own.values():
        if one.folder.name not in LIBRARIES:
            inputs[one.folder.name] = outside_requirements([Requirement(one.name)], own)
    return inputs


def resolve(name: str, lines: Iterable[str], locks: Path, flags: Iterable[str]) -> str:
    """Return the text of one lock; the pins of the lock in `locks` are kept where they fit. Raises LockError."""
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)  # all names given to uv are relative to it, so that no path gets into the lock
        wanted = "".join(f"    {json.dumps(line)},\n" for line in sorted(lines))
        (here / "pyproject.toml").write_text(
            f'[project]\nname = "moorage-{name}"\nversion = "0"\nrequires-python = ">={OLDEST_PYTHON}"\n'
            f"dependencies = [\n{wanted}]\n"
        )
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "pyproject.toml",
            "--output-file",
            f"{name}.lock",
            "--quiet",
        ]
        command += ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes"]
        command += ["--no-header", "--no-emit-index-url", "--no-sources", *flags]
        if (locks / f"{name}.lock").exists():
            shutil.copy(locks / f"{name}.lock", here)
        if name != "dev":
            shutil.copy(locks / "dev.lock", here)
            command += ["--constraint", "dev.lock", "--no-build"]  # an image has no compiler
        done = subprocess.run(command, cwd=here, env=_environment(), capture_output=True, text=True)
        if done.returncode:
            raise LockError(f"requirements/{name}.lock cannot be resolved:\n{done.stderr.strip()}")
        return HEADER + "".join(
            line for line in (here / f"{name}.lock").read_text().splitlines(keepends=True) if line != HEADER
        )


def _environment() -> dict[str, str]:
    """Return the environment without folders of local wheels: a lock must resolve alike on every machine."""
    local = {"PIP_FIND_LINKS", "UV_FIND_LINKS", "PIP_NO_INDEX", "UV_NO_INDEX"}
    return {name: value for name, value in os.environ.items() if name not in local}


def main() -> int:
    """Write the locks, or compare them with `--check`; return the exit status."""
    parser = argparse.ArgumentParser(description="Resolve requirements/*.lock.", prog="scripts/lock")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="fail if a lock is out of date; change nothing")
    mode.add_argument(
        "--upgrade", action="store_true", help="take the newest versions instead of keeping pins"
    )
    mode.add_argument(
        "--upgrade-package", metavar="NAME", action="append", default=[], help="only of this package"
    )
    options = parser.parse_args()
    flags = (
        ["--upgrade"]
        if options.upgrade
        else [f"--upgrade-package={name}" for name in options.upgrade_package]
    )
    inputs = lock_inputs()
    LOCKS.mkdir(exist_ok=True)
    stale = [
        f"{path.stem} (nothing is made of it)" for path in LOCKS.glob("*.lock") if path.stem not in inputs
    ]
    try:
        for name, lines in inputs.items():
            path = LOCKS / f"{name}.lock"
            text = resolve(name, lines, LOCKS, flags)
            if not path.exists() or path.read_text() != text:
                stale.append(name)
                if not options.check:
                    path.write_text(text)
    except LockError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if options.check and stale:
        sys.stderr.write(
            f"error: out of date in requirements/: {', '.join(stale)}; mend it with: make lock\n"
        )
        return 1
    sys.stdout.write(f"requirements: {'changed ' + ', '.join(stale) if stale else 'up to date'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
