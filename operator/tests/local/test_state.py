"""The state folder: private, locked, cleaned of what a killed run left, removed only when it is one."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from moorage_operator.local.shutdown import down
from moorage_operator.local.state import AlreadyRunningError, State, StateError, alive, write_private


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / ".moorage")
    made.create()
    return made


def test_folders_are_private_and_git_ignores_them(state: State) -> None:
    for folder in (state.root, state.keys, state.logs, state.policy, state.run, state.secrets):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (state.root / ".gitignore").read_text() == "*\n"
    write_private(state.policy_key, b"secret")
    assert state.policy_key.stat().st_mode & 0o777 == 0o600


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(StateError, match="not a state folder"):
        State(tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_links_in_the_folder_lead_nowhere(state: State, tmp_path: Path) -> None:
    """A state folder may have come with a repository."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    (elsewhere / "precious.txt").write_text("mine")
    (state.run / "up.lock").symlink_to(elsewhere / "precious.txt")
    with pytest.raises(StateError, match=r"up\.lock"), state.locked():
        pass
    assert (elsewhere / "precious.txt").read_text() == "mine"
    state.logs.rmdir()
    state.logs.symlink_to(elsewhere)
    with pytest.raises(StateError, match="symbolic link"):
        state.create()
    assert elsewhere.stat().st_mode & 0o777 == 0o755


def test_a_second_up_is_refused_and_told_of_the_first(state: State) -> None:
    holder = f"""
import sys
from pathlib import Path
from moorage_operator.local.state import State
state = State(Path({str(state.root)!r}))
with state.locked():
    state.announce(url="http://127.0.0.1:8080")
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert state.is_locked()
        with (
            pytest.raises(AlreadyRunningError, match=rf"pid {other.pid}, http://127.0.0.1:8080"),
            state.locked(),
        ):
            pass
        other.kill()
    assert not state.is_locked()
    with state.locked():
        assert state.running() is None


def test_leftovers_are_ended_and_a_reused_pid_is_left_alone(state: State) -> None:
    with (
        subprocess.Popen(["sleep", "600"], start_new_session=True) as left,
        subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger,
    ):
        state.record([("blog", left.pid), ("gateway", stranger.pid)])
        entries = json.loads((state.run / "processes.json").read_bytes())
        entries[1]["started"] -= 1000  # so it was another process that had this id
        write_private(state.run / "processes.json", json.dumps(entries).encode())
        assert state.clean_leftovers() == ["blog"]
        assert left.wait(5) != 0
        assert stranger.poll() is None
        stranger.kill()
    assert state.clean_leftovers() == []


def test_a_process_counts_as_alive_only_with_its_own_start_time() -> None:
    me = psutil.Process()
    assert alive(me.pid, me.create_time())
    assert not alive(me.pid, me.create_time() - 60)
    assert not alive(2**22 + 1, me.create_time())
    assert not alive(None, None)


def test_purge_shows_and_removes_the_state(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    (state.logs / "blog.log").write_text("x" * 2048)
    assert down(state.root, purge=True) == 0
    out = capsys.readouterr().out
    assert "logs  2 KiB" in out
    assert "Removed." in out
    assert not state.root.exists()


def test_purge_touches_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert down(tmp_path, purge=True) == 1
    assert "not a state folder" in capsys.readouterr().out
    assert (tmp_path / "precious.txt").exists()


def test_down_without_a_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert down(tmp_path / ".moorage", purge=False) == 0
    assert "Nothing runs here" in capsys.readouterr().out


def test_down_stops_a_run_by_sigterm(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    holder = f"""
import signal, sys, time
from pathlib import Path
from moorage_operator.local.state import State
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
state = State(Path({str(state.root)!r}))
with state.locked():
    state.announce(url=None)
    print("locked", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert down(state.root, purge=False) == 0
        assert other.wait(5) == 0
    assert f"pid {other.pid}" in capsys.readouterr().out
    assert state.root.exists()
