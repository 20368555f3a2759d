"""Every trail stores whole entries, one a line, in order, and says so when it cannot."""

import asyncio
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from moorage.audit.entry import Entry
from moorage.audit.file import FileTrail
from moorage.audit.lines import LinesTrail, Writer, console_line, json_line
from moorage.audit.trail import Trail

HOSTILE = '\\n\n\r\x1b[31m\x9b\u2028"}{\x00😀'


def entry(**changes: Any) -> Entry:
    values: dict[str, Any] = {
        "id": uuid4(),
        "timestamp": "2027-01-15T08:00:00.000000Z",
        "user_id": "3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11",
        "action": "blog.post.publish",
        "resource": "default/blog/posts/{id}",
        "resource_id": "7",
        "ip_address": "192.0.2.1",
        "user_agent": "curl",
        "request_id": "r-1",
        "metadata": {"status": "200", "outcome": "success"},
    }
    return Entry(**values | changes)


@dataclass
class Record:
    """A trail, and what a reader finds in its place."""

    trail: Trail
    path: Path
    breaks: Callable[[], None]
    mends: Callable[[], None]
    whole: bool = True

    def lines(self) -> list[str]:
        text = self.path.read_bytes().decode("ascii") if self.path.exists() else ""
        return [line for line in text.split("\n") if line]

    def entries(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.lines()]
        return [one.get("entry", one) for one in found]


@pytest.fixture(params=["lines, json", "lines, console", "file"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def record(backend: str, tmp_path: Path) -> Any:
    path = tmp_path / "audit"
    if backend == "file":
        trail: Trail = FileTrail(path)
        yield Record(
            trail,
            path,
            breaks=lambda: (path.unlink(missing_ok=True), path.symlink_to("/dev/full"))[1],
            mends=path.unlink,
        )
        await trail.close()
        return
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    full = os.open("/dev/full", os.O_WRONLY)
    saved = os.dup(descriptor)
    render = json_line("blog", "1.2.3") if backend == "lines, json" else console_line
    yield Record(
        LinesTrail(render, descriptor),
        path,
        breaks=lambda: (os.dup2(full, descriptor), None)[1],
        mends=lambda: (os.dup2(saved, descriptor), None)[1],
        whole=backend == "lines, json",
    )
    for one in (descriptor, full, saved):
        os.close(one)


async def test_what_is_recorded_can_be_read_at_once(record: Record) -> None:
    await record.trail.ping()
    first, second = (
        entry(),
        entry(user_id="", metadata={"status": "403", "outcome": "denied", "code": "forbidden"}),
    )
    await record.trail.record(first)
    assert len(record.lines()) == 1
    await record.trail.record(second)
    assert len(record.lines()) == 2
    if record.whole:
        assert record.entries() == [first.as_dict(), second.as_dict()]


async def test_many_at_once_are_as_many_whole_lines(record: Record) -> None:
    many = [entry(user_agent="x" * 512, resource_id=str(number)) for number in range(50)]
    await asyncio.gather(*(record.trail.record(one) for one in many))
    assert len(record.lines()) == 50
    if record.whole:
        assert {one["resource_id"] for one in record.entries()} == {str(number) for number in range(50)}


async def test_no_value_writes_a_line_or_to_a_terminal(record: Record) -> None:
    """The guard has made values harmless before; a trail relies on nobody."""
    hostile = entry(user_agent=HOSTILE, resource_id=HOSTILE, metadata={"path": HOSTILE})
    await record.trail.record(hostile)
    (line,) = record.lines()
    assert line.isprintable()
    if record.whole:
        assert record.entries() == [hostile.as_dict()]


async def test_the_same_entry_again_is_told_by_its_id(record: Record) -> None:
    one = entry(id=UUID(int=7))
    await record.trail.record(one)
    await record.trail.record(one)
    assert {UUID(int=7).hex in line.replace("-", "") for line in record.lines()} == {True}


async def test_what_cannot_be_stored_is_an_error_until_it_can(record: Record) -> None:
    record.breaks()
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            await record.trail.record(entry())
    record.mends()
    await record.trail.ping()
    await record.trail.record(entry())
    assert len(record.lines()) == 1


# -- what is one backend's own


async def test_lines_that_nobody_reads_are_an_error() -> None:
    reader, writer = os.pipe()
    trail = LinesTrail(console_line, writer)
    await trail.ping()
    os.close(reader)
    with pytest.raises(OSError, match="not open for writing"):
        await trail.ping()
    with pytest.raises(BrokenPipeError):
        await trail.record(entry())
    os.close(writer)
    with pytest.raises(OSError, match="not open for writing"):
        await trail.ping()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await trail.record(entry())


@pytest.fixture
def narrow() -> Iterator[tuple[int, int]]:
    """A pipe that takes 4096 bytes and then nothing."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_line_that_was_broken_off_does_not_spoil_the_next(narrow: tuple[int, int]) -> None:
    reader, descriptor = narrow
    writer = Writer()
    with pytest.raises(BlockingIOError):
        writer.write(descriptor, b"a" * 5000)
    assert os.read(reader, 8192) == b"a" * 4096
    for _ in range(2):
        writer.write(descriptor, b"whole")
    assert os.read(reader, 8192) == b"\nwhole\nwhole\n"


async def test_a_file_is_for_its_owner_and_is_opened_anew_when_it_was_rotated(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = FileTrail(path)
    await trail.record(entry(resource_id="1"))
    assert path.stat().st_mode & 0o777 == 0o600
    await asyncio.to_thread(path.rename, tmp_path / "audit.jsonl.1")
    await trail.record(entry(resource_id="2"))
    await trail.record(entry(resource_id="3"))
    await trail.close()
    before = (tmp_path / "audit.jsonl.1").read_text().splitlines()
    after = path.read_text().splitlines()
    assert [json.loads(line)["resource_id"] for line in before] == ["1"]
    assert [json.loads(line)["resource_id"] for line in after] == ["2", "3"]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_file_is_appended_to() -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"before\n")
        file.flush()
        trail = FileTrail(Path(file.name))
        await trail.record(entry())
        await trail.close()
        first, second = Path(file.name).read_text().splitlines()
    assert first == "before"
    assert json.loads(second)["action"] == "blog.post.publish"


async def test_a_folder_that_is_missing_is_told_before_anything_is_recorded(tmp_path: Path) -> None:
    trail = FileTrail(tmp_path / "none" / "audit.jsonl")
    with pytest.raises(FileNotFoundError):
        await trail.ping()
    await trail.close()
