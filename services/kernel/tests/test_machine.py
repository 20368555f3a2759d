"""Readiness tells of a full disk and of memory that runs out; requests still come."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from moorage import machine
from moorage.health import Health, NotReady


def cgroup(root: Path, *, version: int, limit: str, used: int, idle: int) -> Path:
    folder = root if version == 2 else root / "memory"
    folder.mkdir(exist_ok=True)
    names = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    prefix = "" if version == 2 else "total_"
    (folder / "memory.stat").write_text(
        f"cache 1\ninactive_file {0 if prefix else idle}\n{prefix}inactive_file {idle}\n"
    )
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_counted_without_files_that_can_go(tmp_path: Path, version: int) -> None:
    assert machine.usage(cgroup(tmp_path, version=version, limit="1000", used=900, idle=300)) == (600, 1000)


@pytest.mark.parametrize(("version", "limit"), [(1, "9223372036854771712"), (2, "max")])
def test_without_a_limit_there_is_nothing_to_say(tmp_path: Path, version: int, limit: str) -> None:
    assert machine.usage(cgroup(tmp_path, version=version, limit=limit, used=900, idle=0)) is None


def test_what_cannot_be_read_is_no_limit(tmp_path: Path) -> None:
    assert machine.usage(tmp_path) is None
    (tmp_path / "memory.max").write_text("nonsense")
    assert machine.usage(tmp_path) is None


async def test_memory_that_runs_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usage", lambda _: (94 * 2**20, 100 * 2**20))
    await machine.memory()
    monkeypatch.setattr(machine, "usage", lambda _: (96 * 2**20, 100 * 2**20))
    with pytest.raises(NotReady, match="96 MiB of 100 MiB are used"):
        await machine.memory()


async def test_a_full_disk_degrades_and_requests_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SimpleNamespace(f_blocks=1000, f_bavail=29, f_frsize=2**20)
    monkeypatch.setattr(os, "statvfs", lambda _: space)
    health = Health(started=True)
    machine.register(health)
    ready, problems = await health.ready()
    assert ready
    assert problems["disk"].startswith("29 MiB are free in ")
    assert health.dependencies["disk"].state == "degraded"
