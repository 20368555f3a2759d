"""requirements/*.lock: complete, hash-checked, and free of addresses and paths."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = sorted(
    (Path(__file__).resolve().parents[2] / "requirements").glob("*.lock"), key=lambda path: path.stem
)


def pins(lock: Path) -> dict[str, str]:
    """Name and version of every pin; several versions of one name (for different Pythons) are joined."""
    found: dict[str, str] = {}
    for name, version in re.findall(
        r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", lock.read_text(), re.M
    ):
        found[name] = f"{found[name]} {version}" if name in found else version
    return found


def test_there_is_one_for_each_image_one_for_building_and_one_for_everything(root: Path) -> None:
    services = {p.parent.name for p in (root / "services").glob("*/pyproject.toml")} - {"kernel"}
    assert {lock.stem for lock in LOCKS} == {"dev", "build", "operator", *services}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_pin_has_hashes(lock: Path) -> None:
    entries = re.split(r"\n(?=\S)", lock.read_text().split("\n", 1)[1])
    for entry in entries:
        if entry.strip():
            assert re.match(r"^[A-Za-z0-9._-]+(\[[^\]]*\])?==", entry), entry
            assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_names_no_index_no_address_and_no_path(lock: Path) -> None:
    assert not re.search(
        r"://|--index|--extra-index|--find-links|--trusted-host|(?:^|\s)[./~]*/\w|file:", lock.read_text()
    )


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_images_ship_the_versions_that_were_tested(lock: Path, root: Path) -> None:
    assert pins(lock).items() <= pins(root / "requirements/dev.lock").items()


def test_our_own_distributions_are_in_no_lock(root: Path) -> None:
    projects = [
        root / "crds",
        root / "operator",
        *(p.parent for p in (root / "services").glob("*/pyproject.toml")),
    ]
    own = {
        canonicalize_name(tomllib.loads((p / "pyproject.toml").read_text())["project"]["name"])
        for p in projects
    }
    for lock in LOCKS:
        assert not own & {canonicalize_name(name) for name in pins(lock)}


def test_a_lock_holds_what_its_distribution_declares(root: Path) -> None:
    """Without the network: every requirement is met by a pin."""
    for folder, lock in (
        (root / "services/blog", "blog"),
        (root / "operator", "operator"),
        (root / "crds", "dev"),
    ):
        held = pins(root / f"requirements/{lock}.lock")
        for text in tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]:
            requirement = Requirement(text)
            if not requirement.name.startswith("moorage"):
                assert all(
                    version in requirement.specifier
                    for version in held[canonicalize_name(requirement.name)].split()
                )


def test_check_tells_a_stale_lock_and_leaves_it(root: Path, tmp_path: Path) -> None:
    """A copy of the repository's project files, where a dependency was taken away from the lock."""
    for path in ("pyproject.toml", "crds/pyproject.toml", "operator/pyproject.toml", "scripts/lock.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((root / path).read_bytes())
    for path in [*(root / "services").glob("*/pyproject.toml"), *LOCKS]:
        copy = tmp_path / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    stale = tmp_path / "requirements/blog.lock"
    stale.write_text(re.sub(r"(?m)^structlog==.*\n(?:    .*\n)+", "", stale.read_text()))
    before = stale.read_bytes()
    done = subprocess.run(
        [sys.executable, "scripts/lock.py", "--check"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.search(r"out of date in requirements/:.*\bblog\b", done.stderr)
    assert "make lock" in done.stderr
    assert stale.read_bytes() == before
