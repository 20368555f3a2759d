"""Being asked to stop."""

import asyncio
import os
import signal
import subprocess
import sys
import time

from moorage.lifecycle import Stop


async def _until_handled(stop: Stop, number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    await asyncio.wait_for(stop.asked.wait(), 5)


async def test_the_first_signal_asks_and_the_grace_period_runs_its_time() -> None:
    stop = Stop()
    assert not stop.asked.is_set()
    await _until_handled(stop, signal.SIGTERM)
    began = time.monotonic()
    await stop.grace(0.2)
    assert time.monotonic() - began >= 0.19


async def test_a_second_signal_ends_the_grace_period() -> None:
    stop = Stop()
    await _until_handled(stop, signal.SIGINT)
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
    began = time.monotonic()
    await stop.grace(20)
    assert time.monotonic() - began < 10


async def test_no_grace_period_is_no_wait() -> None:
    stop = Stop()
    await asyncio.wait_for(stop.grace(0), 0.05)


def test_a_started_process_leaves_what_it_holds_to_no_collector() -> None:
    """In a process of its own: a collection here would find what other tests have left."""
    code = "import gc; from moorage.lifecycle import settle; settle(); print(gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10_000
