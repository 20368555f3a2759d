"""Builds the programs of a cluster from pinned Go modules, once per pin, into the cache.

Every folder of `tests/cluster/tools` is a Go module that requires one family of programs and
records their checksums in `go.sum`. A family's results live under a key made of all that
decides them, so a changed pin is built beside the old one and never over it.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from testcluster import paths
from testcluster.progress import say, step

_KUBERNETES = "v1.36.3"
_STAMP = " ".join(
    f"-X {package}.git{name}={value}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for name, value in (("Version", _KUBERNETES), ("Major", "1"), ("Minor", "36"))
)
"""Without these a server calls itself v0.0.0-master and clients refuse to negotiate features."""


class BuildError(RuntimeError):
    """A program could not be built; the message ends with what the Go tool said."""


@dataclass(frozen=True)
class Family:
    """Programs built from one Go module of `tests/cluster/tools`.

    `binaries` maps a program's name to its main package; `files` maps a name to (Go module,
    path inside it) of a file that is taken along, such as CRDs.
    """

    name: str
    binaries: Mapping[str, str]
    ldflags: str = ""
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        """The folder with the family's go.mod and go.sum."""
        return paths.TOOLS / self.name

    def key(self, go_version: str) -> str:
        """Return 12 hex digits that change with anything that changes the family's results."""
        digest = hashlib.sha256()
        for part in (
            # The sources: go.mod and go.sum, and the program itself where it is one of ours.
            *(p.read_bytes() for p in sorted(self.source.iterdir()) if p.suffix in (".mod", ".sum", ".go")),
            repr((sorted(self.binaries.items()), self.ldflags, sorted(self.files.items()))).encode(),
            f"{go_version} {platform.system()} {platform.machine()}".encode(),
        ):
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()[:12]

    def folder(self) -> Path:
        """Return (and create) the folder of the cache that holds this family's results."""
        path = paths.cache_dir() / f"{self.name}-{self.key(go_version())}"
        path.mkdir(parents=True, exist_ok=True)
        return path


_KUBERNETES_COMMANDS = (
    "kube-apiserver",
    "kubectl",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
)

FAMILIES: tuple[Family, ...] = (
    Family("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Family("helm", {"helm": "helm.sh/helm/v3/cmd/helm"}),
    Family("kubernetes", {c: f"k8s.io/kubernetes/cmd/{c}" for c in _KUBERNETES_COMMANDS}, _STAMP),
    Family("pause", {"pause": "."}),
    Family("coredns", {"coredns": "github.com/coredns/coredns"}),
    Family(
        "contour",
        {"contour": "github.com/projectcontour/contour/cmd/contour"},
        files={
            "contour-deployment": ("github.com/projectcontour/contour", "examples/contour"),
            "gateway-api-crds": ("sigs.k8s.io/gateway-api", "config/crd/experimental"),
        },
    ),
    Family("kind", {"kind": "sigs.k8s.io/kind"}),
    Family("kubeconform", {"kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform"}),
)
"""In the order of building: what lets somebody start early comes first."""


def families_with(names: Iterable[str]) -> Iterator[tuple[Family, str]]:
    """Yield (family, program or file) for each name, in building order; KeyError for an unknown one."""
    wanted = set(names)
    for family in FAMILIES:
        for name in (*family.binaries, *family.files):
            if name in wanted:
                wanted.discard(name)
                yield family, name
    if wanted:
        raise KeyError(f"nothing is known about building {', '.join(sorted(wanted))}")


ALL: tuple[str, ...] = tuple(n for f in FAMILIES for n in (*f.binaries, *f.files) if n != "kind")
"""Every program and file that tests may need, wherever they run. kind is built where Docker is."""


@cache
def go_version() -> str:
    """Return the Go toolchain's version such as `go1.26.8`; BuildError if there is no `go`."""
    go = shutil.which("go")
    if go is None:
        raise BuildError("the Go toolchain is missing: install Go 1.26 or later and put `go` on the PATH")
    # Asked inside a tools module, because GOTOOLCHAIN may answer with another version there.
    return subprocess.run(
        [go, "env", "GOVERSION"], cwd=FAMILIES[0].source, check=True, capture_output=True, text=True
    ).stdout.strip()


def remove_outdated() -> list[Path]:
    """Remove what other pins or compilers left in the cache; returns the folders."""
    current = {family.folder() for family in FAMILIES}
    names = tuple(f"{family.name}-" for family in FAMILIES)
    outdated = [p for p in paths.cache_dir().iterdir() if p.name.startswith(names) and p not in current]
    for folder in outdated:
        shutil.rmtree(folder)
    return outdated


def tool(name: str) -> Path:
    """Return a client such as kubectl: our build of it, or without a Go toolchain the one on the PATH."""
    if shutil.which("go") is None and (found := shutil.which(name)):
        return Path(found)
    return ensure(name)[name]


def ensure(*names: str) -> dict[str, Path]:
    """Build what is missing of `names` (default: everything) and return where each lies.

    Safe to call from several processes at once: each program has a lock, and appears in the
    cache only when it is complete. Raises BuildError.
    """
    todo = list(families_with(names or ALL))
    result: dict[str, Path] = {}
    for number, (family, name) in enumerate(todo, 1):
        target = family.folder() / name
        if not target.exists():
            with _locked(target):
                if not target.exists():  # another process may have built it while we waited
                    with step(f"[{number}/{len(todo)}] building {name}"):
                        _produce(family, name, target)
        result[name] = target
    return result


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process builds {target.name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _produce(family: Family, name: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as scratch:
        unfinished = Path(scratch) / name
        if name in family.binaries:
            _go_build(family, family.binaries[name], unfinished)
        else:
            _copy_from_module(family, *family.files[name], unfinished)
        unfinished.rename(target)


def _go_build(family: Family, package: str, target: Path) -> None:
    flags = f"-s -w {family.ldflags}".strip()
    _go(family, "build", "-trimpath", "-ldflags", flags, "-o", str(target), package)


def _copy_from_module(family: Family, module: str, path: str, target: Path) -> None:
    _go(family, "mod", "download", module)
    folder = Path(_go(family, "list", "-m", "-f", "{{.Dir}}", module).strip())
    if (folder / path).is_dir():
        shutil.copytree(folder / path, target)
        # The module cache is read-only, and a read-only folder could be neither renamed nor removed.
        for copied in (target, *target.rglob("*")):
            copied.chmod(0o755 if copied.is_dir() else 0o644)
    else:
        shutil.copyfile(folder / path, target)


def _go(family: Family, *arguments: str) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    # readonly: a go.mod that needs changes is an error here, not something to mend silently.
    environment["GOFLAGS"] = f"{environment.get('GOFLAGS', '')} -mod=readonly -buildvcs=false".strip()
    done = subprocess.run(
        ["go", *arguments], cwd=family.source, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise BuildError(
            f"`go {arguments[0]}` in {family.source} failed ({done.returncode}):\n{done.stderr[-4000:]}"
        )
    return done.stdout
