"""A supervised process: readiness, restarts with backoff, reports of what went wrong, stopping."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from moorage_operator.local.launch import Launch
from moorage_operator.local.logs import Log
from moorage_operator.local.processes import Zygote
from moorage_operator.local.service import Phase, Service, StartError

Make = Callable[..., Service]


class Shown:
    """Collects what people would see."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.said: list[str] = []
        self.open = False

    def log(self, name: str, line: str) -> None:
        self.lines.append(f"{name}: {line}")


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
async def make(zygote: Zygote, tmp_path: Path, shown: Shown) -> AsyncIterator[Make]:
    """Builds services that count as ready once the program said so, and stops them after the test."""
    made: list[Service] = []

    def build(*launches: Launch) -> Service:
        """The first launch is started first; the last one stays."""
        left = list(launches)
        log = Log("tiny", tmp_path, shown)

        async def probe() -> str | None:
            return None if "running" in log.recent(30) else "it has not said that it runs"

        service = Service(
            "tiny",
            zygote,
            lambda: left.pop(0) if len(left) > 1 else left[0],
            probe,
            log,
            say=shown.said.append,
            backoff_s=0.05,
        )
        made.append(service)
        return service

    yield build
    for service in made:
        await service.stop(grace_s=1)
        service.log.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.02)


async def test_start_waits_until_the_process_is_ready(
    make: Make, program: Callable[..., Launch], shown: Shown
) -> None:
    service = make(program("run", WHO="me"))
    await service.start()
    assert service.phase is Phase.READY
    assert service.pid is not None
    assert any("hello from me" in line for line in shown.lines)


async def test_output_is_kept_in_a_file(make: Make, program: Callable[..., Launch], tmp_path: Path) -> None:
    service = make(program("run", WHO="me"))
    await service.start()
    assert "hello from me" in (tmp_path / "tiny.log").read_text()


async def test_a_process_that_ends_at_once_is_reported_with_its_last_lines(
    make: Make, program: Callable[..., Launch]
) -> None:
    service = make(program("raise"))
    with pytest.raises(StartError, match=r"(?s)tiny ended while starting \(exit code 1\).*broken on purpose"):
        await service.start()
    assert service.phase is Phase.FAILED
    assert service.pid is None


async def test_a_process_that_never_gets_ready_is_stopped_and_the_reason_is_told(
    make: Make, program: Callable[..., Launch], zygote: Zygote, tmp_path: Path, shown: Shown
) -> None:
    async def never() -> str | None:
        return "the database does not answer"

    log = Log("slow", tmp_path, shown)
    service = Service("slow", zygote, lambda: program("run"), never, log, say=shown.said.append)
    with pytest.raises(StartError, match="not ready after 0 s: the database does not answer"):
        await service.start(timeout_s=0.3)
    assert service.pid is None
    log.close()


async def test_a_crashed_process_is_restarted_and_said(
    make: Make, program: Callable[..., Launch], shown: Shown
) -> None:
    service = make(program("run"))
    await service.start()
    first = service.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: service.pid not in (None, first) and service.phase is Phase.READY)
    assert service.restarts == 1
    assert "tiny ended (signal 9); restart in 0.05 s" in shown.said[0]
    assert shown.said[-1] == "tiny is ready again"


async def test_a_process_that_keeps_failing_is_tried_less_and_less_often(
    make: Make, program: Callable[..., Launch], shown: Shown
) -> None:
    """Each attempt doubles the wait, so that a broken module does not keep the machine busy."""
    service = make(program("run"), program("exit", "3"))
    await service.start()
    assert service.pid is not None
    os.kill(service.pid, signal.SIGKILL)
    await until(lambda: len(shown.said) >= 4)
    waits = re.findall(r"(?:restart|next attempt) in ([0-9.]+) s", "\n".join(shown.said))
    assert waits[:4] == ["0.05", "0.1", "0.2", "0.4"]
    assert "ended while starting (exit code 3)" in shown.said[1]
    assert service.phase is not Phase.READY


async def test_stop_during_a_restart_leaves_nothing(
    make: Make, program: Callable[..., Launch], shown: Shown
) -> None:
    service = make(program("run"))
    await service.start()
    assert service.pid is not None
    os.kill(service.pid, signal.SIGKILL)
    await until(lambda: bool(shown.said))
    await service.stop()
    await asyncio.sleep(0.2)
    assert service.pid is None
    assert service.phase is Phase.STOPPED


async def test_logs_rotate_and_stay_bounded(
    tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage_operator.local.logs._MAX_BYTES", 1000)
    log = Log("much", tmp_path, shown)
    for number in range(500):
        log.line(f"line {number}")
    log.close()
    files = sorted(path.name for path in tmp_path.glob("much.log*"))
    assert files == ["much.log", "much.log.1", "much.log.2"]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in files)
    assert log.recent(1) == ["line 499"]
