"""`moorage up services/blog`: from the command to the first authorised answer, as a developer waits for it.

Warm: the packages are compiled and in the page cache, the database and the keys of an earlier run are there. Cold: an
empty state folder, so that PostgreSQL is made and migrated first. There is no peer: the goal is in seconds.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import aiohttp

from bench.options import Options
from bench.report import Ratio, Report
from moorage.database.embedded import EmbeddedPostgres
from moorage.guard.tokens import issue_user_token
from moorage_operator.local.ports import Ports
from moorage_operator.local.runner import SETTINGS

BLOG: Final = Path(__file__).resolve().parents[3] / "services" / "blog"
_USER: Final = "6f9619ff-8b86-4d01-b42d-00c04fc964ff"
_PATIENCE: Final = 120.0
_POLL: Final = 0.02


async def measure(options: Options) -> Report:
    """Start the blog again and again, the first time with an empty state folder."""
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as folder:
        try:
            cold = await _once(Path(folder))
            warm = [await _once(Path(folder)) for _ in range(options.rounds)]
        finally:
            EmbeddedPostgres(Path(folder) / "postgres").purge()
    return Report(
        "up",
        {"module": "services/blog", "rounds": options.rounds, "to": "201 of a POST through the gateway"},
        {"warm_s": Ratio(warm, 10.0, "lower"), "cold_s": Ratio([cold], None, "lower")},
        {"warm_s": warm, "cold_s": [cold]},
    )


async def _once(state: Path) -> float:
    """Seconds from the start of the process to the first post that is stored; the process is stopped then."""
    port = Ports().take(0)
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("moorage")), "up", str(BLOG)),
        *("--port", str(port), "--state-dir", str(state), "-o", "json"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if not name.startswith("MOORAGE_")},
    )
    try:
        async with asyncio.timeout(_PATIENCE), aiohttp.ClientSession() as http:
            await _stored(http, f"http://127.0.0.1:{port}/api/v1/blog/posts", state / "keys/token.pem")
        return time.perf_counter() - began
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), 60)


async def _stored(http: aiohttp.ClientSession, url: str, key: Path) -> None:
    body = json.dumps({"title": "First", "content": "…"})
    while True:
        try:
            headers = {"Authorization": f"Bearer {_token(key)}", "Content-Type": "application/json"}
            async with http.post(url, data=body, headers=headers) as answer:
                if answer.status == 201:
                    return
        except (aiohttp.ClientError, OSError):
            pass  # not there yet
        await asyncio.sleep(_POLL)


def _token(key: Path) -> str:
    return issue_user_token(
        key.read_bytes(),
        issuer=SETTINGS.issuer,
        audience=SETTINGS.installation,
        user_id=_USER,
        roles=["author"],
    )
