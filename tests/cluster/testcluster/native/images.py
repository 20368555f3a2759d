"""Builds images without a container engine or registry: buildah, on a base made by debootstrap."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testcluster import oci, paths
from testcluster.handle import CommandError
from testcluster.native.node import ctr
from testcluster.progress import say, step

_SUITE = "bookworm"
_INCLUDE = "python3,python3-venv,ca-certificates"
_MIRROR = "http://deb.debian.org/debian"
_REGISTRY = "localhost"
_KEPT_BUILDS = 20
_KEPT_SECONDS = 3 * 3600
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_BASE_FILE = """FROM scratch
ADD rootfs.tar /
ENV LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["python3"]
"""


class BuildahImages:
    """Image builder of the native cluster. Layers and base stay in the cache between runs."""

    def __init__(self, run: Path) -> None:
        """`run` is the run directory of the cluster that images are loaded into."""
        self._run = run
        self._home = paths.cache_dir() / "images"
        self._home.mkdir(exist_ok=True, mode=0o700)

    @property
    def base(self) -> str:
        """The base image: a minimal Debian with Python, built on first use."""
        mirror = os.environ.get("MOORAGE_TEST_DEBIAN_MIRROR", _MIRROR)
        recipe = f"{_SUITE} {_INCLUDE} {mirror} {_BASE_FILE}".encode()
        reference = f"{_REGISTRY}/moorage-test/base:{_SUITE}-{hashlib.sha256(recipe).hexdigest()[:12]}"
        with self._locked("base"):
            if not self._exists(reference):
                with step(f"base image {reference}"):
                    self._build_base(reference, mirror)
        return reference

    def build(
        self, context: Path, containerfile: Path, tag: str, build_args: Mapping[str, str], base_arg: str
    ) -> str:
        """Build `localhost/<tag>`; raises CommandError with the end of the build's output.

        Commands in the Containerfile reach package registries as this machine does: its
        certificates, pip's and uv's settings are mounted for the time of the build and stay
        out of the image.
        """
        reference = f"{_REGISTRY}/{tag}"
        arguments = {**({} if base_arg in build_args else {base_arg: self.base}), **build_args}
        with tempfile.TemporaryDirectory() as scratch, step(f"image {reference}"):
            self._buildah(
                "bud",
                "--isolation=chroot",
                "--layers",
                "--pull=false",
                *(f"--volume={v}" for v in _registry_volumes(Path(scratch))),
                *(f"--build-arg={name}={value}" for name, value in arguments.items()),
                f"--file={containerfile}",
                f"--tag={reference}",
                str(context),
            )
            self._forget_old_builds()
        return reference

    def load(self, image: str | Path) -> str:
        """Import an image into the node's containerd; a path is an OCI archive that names its image."""
        if isinstance(image, Path):
            with step(f"loading {image}"):
                ctr(self._run, "images", "import", image)
            return oci.image_name(image)
        with self._locked("load"), step(f"loading {image}"):
            layout = self._run / "oci"
            # Uncompressed: it stays on this machine, and gzip is what would take the time.
            self._buildah("push", "--quiet", "--disable-compression", image, f"oci:{layout}:{image}")
            with tempfile.TemporaryDirectory(dir=self._run) as scratch:
                archive = Path(scratch) / "image.tar"
                # What the node has of it already (the base, mostly) is left out.
                oci.pack(layout, image, archive, without=set(ctr(self._run, "content", "ls", "-q").split()))
                ctr(self._run, "images", "import", archive)
        return image

    def clean(self) -> None:
        """Remove every image and layer of the cache."""
        with self._locked("base"):
            # It keeps its layers' folder mounted on itself.
            subprocess.run(
                ["umount", "--recursive", str(self._home / "storage/overlay")], capture_output=True
            )
            for name in ("storage", "storage-run"):
                shutil.rmtree(self._home / name, ignore_errors=True)

    def _forget_old_builds(self) -> None:
        """Remove results of earlier builds that lost their name, with the layers only they had."""
        found = self._buildah("images", "--json", "--filter=dangling=true")
        for identity in outdated(json.loads(found or "[]") or [], time.time()):
            with contextlib.suppress(CommandError):  # somebody's working container stands on it
                self._buildah("rmi", identity)

    def _build_base(self, reference: str, mirror: str) -> None:
        with tempfile.TemporaryDirectory(dir=self._home) as scratch:
            root, context = Path(scratch) / "rootfs", Path(scratch) / "context"
            context.mkdir()
            _run(["debootstrap", "--variant=minbase", f"--include={_INCLUDE}", _SUITE, str(root), mirror])
            for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
                _run(["find", str(root / waste), "-mindepth", "1", "-delete"])
            _run(
                [
                    "tar",
                    "--create",
                    "--one-file-system",
                    f"--file={context / 'rootfs.tar'}",
                    "-C",
                    str(root),
                    ".",
                ]
            )
            _run(["rm", "-rf", "--one-file-system", str(root)])
            (context / "Containerfile").write_text(_BASE_FILE)
            self._buildah("bud", "--isolation=chroot", f"--tag={reference}", str(context))

    def _exists(self, reference: str) -> bool:
        try:
            self._buildah("inspect", "--type=image", "--format={{.FromImageID}}", reference)
        except CommandError:
            return False
        return True

    def _buildah(self, *args: str) -> str:
        storage, policy = self._home / "storage.conf", self._home / "policy.json"
        registries = self._home / "registries.conf"
        # Policy and registries: Debian's package only recommends the one that has these files.
        _write(policy, '{"default": [{"type": "insecureAcceptAnything"}]}')
        _write(registries, "unqualified-search-registries = []\n")
        _write(
            storage,
            f'[storage]\ndriver = "{self._driver()}"\n'
            f'graphroot = "{self._home / "storage"}"\nrunroot = "{self._home / "storage-run"}"\n',
        )
        command, *rest = args
        signature = [f"--signature-policy={policy}"] if command in ("bud", "push") else []
        environment = {
            "CONTAINERS_STORAGE_CONF": str(storage),
            "CONTAINERS_REGISTRIES_CONF": str(registries),
        }
        return _run(["buildah", command, *signature, *rest], environment)

    def _driver(self) -> str:
        """Return `overlay` where the kernel lets us stack folders, else `vfs`, which copies each layer."""
        decided = self._home / "driver"
        if not decided.exists():
            with tempfile.TemporaryDirectory(dir=self._home) as scratch:
                driver = "overlay" if _overlay_works(Path(scratch)) else "vfs"
            say(f"image layers are kept with the {driver} driver")
            _write(decided, driver)
        return decided.read_text()

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self._home / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def outdated(images: Sequence[Mapping[str, Any]], now: float) -> list[str]:
    """Return the ids of nameless images not worth keeping as a cache: neither new nor among the newest.

    `images` is what `buildah images --json` prints, `now` in seconds since the epoch. New ones
    are kept whatever their number, because a build that runs at this moment may be using them.
    """
    newest_first = sorted(images, key=lambda image: image["created"], reverse=True)
    return [i["id"] for i in newest_first[_KEPT_BUILDS:] if now - i["created"] > _KEPT_SECONDS]


def _write(path: Path, content: str) -> None:
    """Write a file whole, and only if it differs: another process may be reading it."""
    if path.exists() and path.read_text() == content:
        return
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as unfinished:
        unfinished.write(content)
    Path(unfinished.name).rename(path)


def _overlay_works(scratch: Path) -> bool:
    for name in ("lower", "upper", "work", "merged"):
        (scratch / name).mkdir()
    options = f"lowerdir={scratch / 'lower'},upperdir={scratch / 'upper'},workdir={scratch / 'work'}"
    merged = scratch / "merged"
    done = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], capture_output=True)
    if done.returncode == 0:
        subprocess.run(["umount", merged], check=True)
    return done.returncode == 0


def _registry_volumes(scratch: Path) -> list[str]:
    """Return what is mounted while an image is built, so that pip, uv and apt work as on this machine."""
    volumes = []
    bundle = next(
        (
            Path(os.environ[name])
            for name in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
            if os.environ.get(name) and Path(os.environ[name]).is_file()
        ),
        _CERTIFICATES,
    )
    pip, uv = ["[global]"], []
    if bundle.is_file():
        volumes.append(f"{bundle.resolve()}:{_CERTIFICATES}:ro")
        pip.append(f"cert = {_CERTIFICATES}")
        uv.append("native-tls = true")
    if index := os.environ.get("PIP_INDEX_URL") or os.environ.get("UV_INDEX_URL"):
        pip.append(f"index-url = {index}")
        uv.append(f'index-url = "{index}"')
    pip.append(f"timeout = {os.environ.get('PIP_DEFAULT_TIMEOUT', '60')}")
    (scratch / "pip.conf").write_text("\n".join(pip) + "\n")
    (scratch / "uv.toml").write_text("\n".join(uv) + "\n")
    return [
        *volumes,
        f"{scratch / 'pip.conf'}:/etc/pip.conf:ro",
        f"{scratch / 'uv.toml'}:/etc/uv/uv.toml:ro",
    ]


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        output = (done.stdout + done.stderr)[-6000:]
        raise CommandError(f"`{' '.join(command[:2])}` failed ({done.returncode}):\n{output}")
    return done.stdout
