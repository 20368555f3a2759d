"""The preloaded parent: forks, isolation, signals, and that nothing outlives the supervisor."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from moorage_operator.local.launch import Launch
from moorage_operator.local.processes import Child, Zygote, ZygoteLostError, read_line


async def line_with(child: Child, text: str) -> str:
    """The next line of output that contains *text*."""
    async with asyncio.timeout(10):
        while (line := await read_line(child.output)) is not None:
            if text in line:
                return line
    raise AssertionError(f"the output ended without {text!r}")


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.02)
                continue
        return True
    return False


async def test_a_fork_runs_the_entry_with_its_own_environment_and_folder(
    zygote: Zygote, program: Callable[..., Launch]
) -> None:
    child = await zygote.spawn(program("run", WHO="blog"))
    line = await line_with(child, "hello")
    assert line.startswith("hello from blog in ")
    assert line.endswith("/program")
    assert os.getpgid(child.pid) == child.pid
    assert await child.stop(5) == -signal.SIGTERM


async def test_exit_codes_and_tracebacks_are_reported(zygote: Zygote, program: Callable[..., Launch]) -> None:
    leaving = await zygote.spawn(program("exit", "7"))
    assert await leaving.wait() == 7
    raising = await zygote.spawn(program("raise"))
    await line_with(raising, "RuntimeError: broken on purpose")
    assert await raising.wait() == 1


async def test_a_program_is_executed_with_its_arguments(zygote: Zygote, tmp_path: Path) -> None:
    child = await zygote.spawn(
        Launch(
            "sh", ("sh", "-c", 'echo "$PORT in $PWD"'), {"PATH": os.environ["PATH"], "PORT": "8099"}, tmp_path
        )
    )
    assert await line_with(child, "8099") == f"8099 in {tmp_path}"
    assert await child.wait() == 0


async def test_a_missing_program_ends_with_127_and_says_which(zygote: Zygote, tmp_path: Path) -> None:
    child = await zygote.spawn(Launch("none", ("no-such-program",), {"PATH": "/usr/bin"}, tmp_path))
    assert "'no-such-program'" in await line_with(child, "cannot start")
    assert await child.wait() == 127


async def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(
    zygote: Zygote, program: Callable[..., Launch]
) -> None:
    child = await zygote.spawn(program("stubborn"))
    await line_with(child, "running")
    assert await child.stop(0.2) == -signal.SIGKILL


async def test_what_a_process_started_ends_with_it(zygote: Zygote, program: Callable[..., Launch]) -> None:
    child = await zygote.spawn(program("spawn"))
    grandchild = int((await line_with(child, "grandchild")).split()[1])
    await line_with(child, "running")
    child.signal(signal.SIGKILL)
    await child.wait()
    assert gone(grandchild)


async def test_children_do_not_share_imports_or_module_names(zygote: Zygote, tmp_path: Path) -> None:
    """Two modules whose package is called `app` never meet: each is imported in its own process."""
    outputs = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "app.py").write_text(f"def main():\n    print('I am {name}')\n")
        outputs.append(await zygote.spawn(Launch(name, ("x",), {}, folder, "app:main", (folder,))))
    assert [await line_with(child, "I am") for child in outputs] == ["I am one", "I am two"]


async def test_the_preloaded_parent_has_one_thread_and_forks_fast(program: Callable[..., Launch]) -> None:
    """More threads would make a fork unsafe: whatever lock they hold stays held in the child."""
    zygote = Zygote()
    began = time.monotonic()
    await zygote.start()
    started = time.monotonic() - began
    assert zygote.pid is not None
    assert psutil.Process(zygote.pid).num_threads() == 1
    began = time.monotonic()
    children = [await zygote.spawn(program("run")) for _ in range(6)]
    assert time.monotonic() - began < 2.0 + started, "six of them, and still about as long as its own imports"
    assert len({child.pid for child in children}) == 6
    await zygote.close(kill=True)
    assert all(gone(child.pid) for child in children)


async def test_a_lost_zygote_ends_its_children_and_comes_back(
    zygote: Zygote, program: Callable[..., Launch]
) -> None:
    child = await zygote.spawn(program("run"))
    assert zygote.pid is not None
    os.kill(zygote.pid, signal.SIGKILL)
    assert await asyncio.wait_for(child.wait(), 5) == -signal.SIGKILL
    assert gone(child.pid)
    again = await zygote.spawn(program("run", WHO="second"))
    assert "second" in await line_with(again, "hello")


async def test_a_zygote_that_cannot_start_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    zygote = Zygote()
    with pytest.raises(ZygoteLostError):
        await zygote.start()
    await zygote.close()


SUPERVISOR = """
    import asyncio, subprocess, sys
    from pathlib import Path
    from moorage_operator.local.launch import Launch
    from moorage_operator.local.processes import Zygote

    async def main():
        zygote = Zygote()
        other = subprocess.Popen(["sleep", "600"])
        folder = Path(sys.argv[1])
        child = await zygote.spawn(Launch("t", ("t", "stubborn"), {}, folder, "tinymodule:main", (folder,)))
        zygote.adopt(other.pid)
        print(zygote.pid, child.pid, other.pid, flush=True)
        await asyncio.sleep(600)

    asyncio.run(main())
"""


def test_kill_9_of_the_supervisor_leaves_nothing(program: Callable[..., Launch]) -> None:
    """Children (even one that ignores SIGTERM) and adopted processes end with a supervisor that can say nothing."""
    folder = program("run").cwd
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SUPERVISOR), str(folder)], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(pid) for pid in supervisor.stdout.readline().split()]
        supervisor.kill()
        supervisor.wait()
    assert len(pids) == 3
    assert all(gone(pid, within_s=10) for pid in pids)
