"""Images by a Docker engine, for the providers that have one."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from testcluster.handle import CommandError
from testcluster.progress import step

_BASE = "python:3.12-slim"


def unavailable() -> str | None:
    """Return why no Docker engine can be used, or None if one answers. A client alone is none."""
    try:
        done = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"], capture_output=True, text=True, timeout=20
        )
    except FileNotFoundError:
        return "there is no `docker` on the PATH"
    except subprocess.TimeoutExpired:
        return "`docker info` did not answer within 20 s"
    # Some versions print an error and succeed, with an empty version.
    if done.returncode or not done.stdout.strip():
        return "no Docker daemon answers `docker info`"
    return None


def run(*args: str) -> str:
    """Run the docker client; raises CommandError with its output."""
    done = subprocess.run(["docker", *args], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise CommandError(
            f"`docker {args[0]}` failed ({done.returncode}):\n{(done.stdout + done.stderr)[-6000:]}"
        )
    return done.stdout


def load_archive(archive: Path) -> str:
    """Load an image archive into the engine; returns the image's reference."""
    # "Loaded image: name:tag", or "Loaded image ID: sha256:…" for one without a name.
    output = run("load", "--input", str(archive)).strip()
    reference = output.rpartition("Loaded image: ")[2].strip()
    if not reference or reference == output:
        raise CommandError(f"{archive} does not name its image: {output}")
    return reference


class DockerImages:
    """Builds with the engine. Subclasses bring the result to the cluster's nodes."""

    @property
    def base(self) -> str:
        """The base image: `MOORAGE_TEST_BASE_IMAGE`, or the one that users get."""
        return os.environ.get("MOORAGE_TEST_BASE_IMAGE", _BASE)

    def build(
        self, context: Path, containerfile: Path, tag: str, build_args: Mapping[str, str], base_arg: str
    ) -> str:
        """Build `localhost/<tag>`; raises CommandError with the end of the build's output."""
        return self._build(context, containerfile, f"localhost/{tag}", build_args, base_arg)

    def _build(
        self, context: Path, containerfile: Path, reference: str, build_args: Mapping[str, str], base_arg: str
    ) -> str:
        arguments = {base_arg: self.base, **build_args}
        with step(f"image {reference}"):
            run(
                "build",
                *(f"--build-arg={name}={value}" for name, value in arguments.items()),
                f"--file={containerfile}",
                f"--tag={reference}",
                str(context),
            )
        return reference
