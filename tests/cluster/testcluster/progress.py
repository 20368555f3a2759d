"""Progress lines with times: what is being done, and how long each step took."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_HEARTBEAT = 30.0
"""Seconds between lines of a step that takes long, so that a silent CI log is never mistaken for a hang."""


def say(message: str) -> None:
    """Write one line to standard error, where neither pytest's report nor a pipe loses it."""
    print(f"[testcluster] {message}", file=sys.stderr, flush=True)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Announce a step when it takes long, and say at its end how many seconds it took."""
    began = time.monotonic()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_HEARTBEAT):
            say(f"{name}: still at it after {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        say(f"{name}: failed after {time.monotonic() - began:.1f} s")
        raise
    finally:
        done.set()
        thread.join()
    say(f"{name}: {time.monotonic() - began:.1f} s")
