"""Background processes are found again by identity, and never confused with a stranger."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from testcluster.native import teardown
from testcluster.process import MARK, Identity, ProcessError, Supervisor, end, start_time
from testcluster.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path)
    yield supervisor
    for name in supervisor.running():
        supervisor.stop(name)


def test_a_process_is_found_by_another_supervisor_and_ended(supervisor: Supervisor) -> None:
    started = supervisor.spawn("sleeper", ["sleep", "60"])
    elsewhere = Supervisor(supervisor.run)
    assert elsewhere.running() == {"sleeper": started}
    elsewhere.stop("sleeper")
    assert not started.alive()
    assert elsewhere.running() == {}


def test_a_pid_file_of_a_process_that_ended_is_forgotten(supervisor: Supervisor) -> None:
    identity = supervisor.spawn("short", ["sleep", "0.05"])
    while identity.alive():
        time.sleep(0.01)
    assert supervisor.find("short") is None
    assert not (supervisor.pids / "short").exists()


@pytest.mark.parametrize("change", [{"start": 1}, {"boot": "another boot"}])
def test_a_reused_process_id_is_never_signalled(supervisor: Supervisor, change: dict[str, object]) -> None:
    """The pid file names a living process, but not the one that it was written for."""
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        identity = Identity.of(stranger.pid)
        assert identity is not None
        supervisor.pids.mkdir()
        (supervisor.pids / "old").write_text(json.dumps(asdict(replace(identity, **change))))  # type: ignore[arg-type]
        supervisor.stop("old")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_pid_file_names_nobody(supervisor: Supervisor, content: str) -> None:
    supervisor.pids.mkdir()
    (supervisor.pids / "damaged").write_text(content)
    assert supervisor.running() == {}


def test_ending_a_process_ends_its_children(supervisor: Supervisor, tmp_path: Path) -> None:
    note = tmp_path / "child"
    identity = supervisor.spawn("parent", ["sh", "-c", f"sleep 60 & echo $! > {note}; wait"])
    while not (note.exists() and note.read_text().strip()):
        time.sleep(0.01)
    child = int(note.read_text())
    end(identity)
    deadline = time.monotonic() + 5
    while start_time(child) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert start_time(child) is None


def test_a_process_that_ignores_the_polite_signal_is_killed(supervisor: Supervisor) -> None:
    identity = supervisor.spawn("stubborn", ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    time.sleep(0.2)
    end(identity, grace=0.3)
    assert not identity.alive()


def test_a_process_whose_pid_file_was_lost_is_found_by_its_mark(supervisor: Supervisor) -> None:
    identity = supervisor.spawn("orphan", ["sleep", "60"])
    (supervisor.pids / "orphan").unlink()
    assert supervisor.running() == {}
    # The kernel shows a new program's environment a moment after the program was started.
    assert until("it is found", lambda: list(supervisor.marked()), 5) == [identity]
    end(identity)
    assert list(supervisor.marked()) == []


def test_marks_of_other_run_directories_are_left_alone(supervisor: Supervisor, tmp_path: Path) -> None:
    environment = {**os.environ, MARK: str(tmp_path / "other")}
    other = subprocess.Popen(["sleep", "60"], env=environment)
    try:
        assert list(supervisor.marked()) == []
    finally:
        other.kill()
        other.wait()


def test_one_name_stands_for_one_process(supervisor: Supervisor) -> None:
    supervisor.spawn("one", ["sleep", "60"])
    with pytest.raises(ProcessError, match="one runs already"):
        supervisor.spawn("one", ["sleep", "60"])


def test_output_goes_to_a_log_whose_tail_can_be_shown(supervisor: Supervisor) -> None:
    identity = supervisor.spawn(
        "talker", ["sh", "-c", "for i in 1 2 3; do echo line $i >&2; done; sleep 0.1"]
    )
    while identity.alive():
        time.sleep(0.01)
    assert supervisor.tail("talker", lines=2) == "line 2\nline 3"


def test_a_second_run_directory_never_touches_the_cluster_of_the_first(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bridge and control groups have fixed names: ending one run would tear down the other's."""
    monkeypatch.setattr(teardown, "CLAIM", tmp_path / "claim")
    teardown.claim(supervisor.run)
    supervisor.spawn("etcd", ["sleep", "60"])
    for attempt in (teardown.sweep, teardown.claim):
        with pytest.raises(ProcessError, match=f"its state in {supervisor.run} runs on this machine"):
            attempt(tmp_path / "other")
    assert set(supervisor.running()) == {"etcd"}
    supervisor.stop("etcd")
    teardown.claim(tmp_path / "other")
    assert teardown.CLAIM.read_text() == f"{tmp_path / 'other'}\n"
