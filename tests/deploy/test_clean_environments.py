"""Each deployable runs on what its own lock holds: an undeclared dependency shows here, not in production."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

IMAGES = {
    "blog": ["crds", "services/kernel", "services/blog"],
    "gateway": ["crds", "services/kernel", "services/gateway"],
    "operator": ["crds", "services/kernel", "services/gateway", "operator"],
}
"""Image → the folders that its Containerfile installs besides the lock."""

IMPORT_ALL = """
import importlib, json, pkgutil, sys
failed, imported = {}, []
for package in json.loads(sys.argv[1]):
    names = [package]
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        names.append(found.name)
    for name in names:
        # A `__main__` runs; migrations are scripts of Alembic; the testing kit and Sentry bring their own requirements.
        own = name.startswith(("moorage.testing", "moorage.errorbus.sentry"))
        if not (name.endswith("__main__") or ".migrations." in name or own):
            try:
                importlib.import_module(name)
                imported.append(name)
            except ImportError as error:
                failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps([imported, failed]))
"""


@pytest.fixture(scope="module", params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def python(image: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment made as the image's is; uv's cache makes it quick."""
    venv = tmp_path_factory.mktemp(image) / "venv"
    python = venv / "bin/python"
    uv(root, "venv", "--python", sys.executable, str(venv))
    lock = root / f"requirements/{image}.lock"
    uv(root, "pip", "sync", "--python", str(python), "--require-hashes", "--no-build", str(lock))
    # Build tools come from the development environment, where their versions are pinned as well.
    wheels = venv / "wheels"
    for folder in IMAGES[image]:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
        done = subprocess.run(command, cwd=root / folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    uv(
        root,
        "pip",
        "install",
        "--python",
        str(python),
        "--no-deps",
        "--no-index",
        *map(str, wheels.glob("*.whl")),
    )
    return python


def uv(root: Path, *arguments: str) -> str:
    environment = {
        key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")
    }
    command = [sys.executable, "-m", "uv", "--quiet", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_declared_requirement_is_in_the_lock(python: Path, root: Path) -> None:
    uv(root, "pip", "check", "--python", str(python))


def test_every_module_imports(image: str, python: Path, root: Path) -> None:
    packages = sorted(
        found.name
        for folder in IMAGES[image]
        for found in (root / folder / "src").iterdir()
        if (found / "__init__.py").exists()
    )
    # Isolated, and elsewhere: nothing of the checkout or of the development environment can be found.
    command = [str(python), "-I", "-W", "error::ImportWarning", "-c", IMPORT_ALL, json.dumps(packages)]
    done = subprocess.run(command, cwd=python.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported, failed = json.loads(done.stdout)
    assert failed == {}
    assert set(packages) <= set(imported)
    assert len(imported) > 2 * len(packages)


def test_the_command_starts(python: Path) -> None:
    done = subprocess.run(
        [str(python.parent / "moorage"), "--help"], cwd=python.parent, env={}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout


def test_the_image_files_install_the_same_folders(image: str, root: Path) -> None:
    name = "operator" if image == "operator" else "service"
    text = (root / f"images/{name}.Containerfile").read_text().replace("${PACKAGE}", f"services/{image}")
    installed = text.split("RUN builder own ", 1)[1].splitlines()[0].replace('"', "").split()
    assert installed == IMAGES[image]
