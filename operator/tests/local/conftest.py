import asyncio
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from moorage_operator.local.launch import Launch
from moorage_operator.local.processes import Zygote

PROGRAM = """
    import os, signal, sys, time

    def main():
        '''A tiny module: says hello, then does what its first argument says.'''
        print("hello from", os.environ.get("WHO", "?"), "in", os.getcwd())
        verb = sys.argv[1]
        if verb == "exit":
            sys.exit(int(sys.argv[2]))
        if verb == "raise":
            raise RuntimeError("broken on purpose")
        if verb == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if verb == "spawn":
            import subprocess
            print("grandchild", subprocess.Popen(["sleep", "600"]).pid)
        if verb == "once":
            flag = sys.argv[2]
            if not os.path.exists(flag):
                open(flag, "w").close()
                sys.exit(3)
        print("running")
        while True:
            time.sleep(0.05)
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Launch]:
    """Makes a `Launch` of the tiny module above, in a folder of its own."""
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "tinymodule.py").write_text(textwrap.dedent(PROGRAM))

    def launch(*argv: str, **env: str) -> Launch:
        return Launch(
            name="tiny",
            argv=("tiny", *argv),
            env={"PATH": "/usr/bin:/bin", **env},
            cwd=folder,
            entry="tinymodule:main",
            path=(folder,),
        )

    return launch


@pytest.fixture
async def zygote() -> AsyncIterator[Zygote]:
    """A parent process without the platform in it: these tests' programs do not need it."""
    parent = Zygote(preload=False)
    yield parent
    await parent.close(kill=True)
    await asyncio.sleep(0)  # transports of pipes close in the next round of the loop
