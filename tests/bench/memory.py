"""How much memory an idle module takes, and what each port adds: `.venv/bin/python tests/bench/memory.py [--write]`.

Each row is a process of its own that serves a module with one handler, measured two seconds after its start: what is
resident (RSS), and of that what is its own and in no file (heap and the like), which no other process shares. Backends
need not be there: what is measured is the code that a port brings along and the objects that it makes, not the buffers
of its connections, which depend on the load.
"""

import argparse
import asyncio
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/ports/lifecycle.md"
BEGIN = "<!-- Made by `python tests/bench/memory.py --write`. Do not edit. -->"
END = "<!-- End of what is made. -->"
SETTLE_S = 2.0
NOBODY = "127.0.0.1:9"

BARE = {
    "SERVER_HOST": "127.0.0.1",
    "SERVER_PORT": "0",
    "ADMIN_HOST": "127.0.0.1",
    "ADMIN_PORT": "0",
    "MOORAGE_POLICY_DIR": "/nonexistent",
    "CACHE_ENABLED": "false",
    "LOGGING_FORMAT": "json",
    "LOGGING_LEVEL": "error",
}
DATABASE = {"DATABASE_DSN": f"postgresql://nobody:nothing@{NOBODY}/nowhere"}
EVENTS = {**DATABASE, "EVENTS_PUBLISHES": '["notes.note.created"]'}
ROWS: tuple[tuple[str, Mapping[str, str], tuple[str, ...]], ...] = (
    ("a module without ports", {}, ()),
    ("+ database", DATABASE, ("sqlalchemy.dialects.postgresql.asyncpg", "asyncpg")),
    ("+ cache in memory", {"CACHE_ENABLED": "true", "CACHE_BACKEND": "memory"}, ("moorage.cache.memory",)),
    (
        "+ cache in Redis",
        {"CACHE_ENABLED": "true", "CACHE_BACKEND": "redis", "REDIS_URL": f"redis://{NOBODY}/0"},
        ("moorage.cache.redis",),
    ),
    ("+ client of other modules", {}, ("aiohttp.client", "moorage.client.client")),
    ("+ database and events, Postgres bus", EVENTS, ("moorage.events.postgres",)),
    (
        "+ database and events, Kafka bus",
        {**EVENTS, "KAFKA_BROKERS": NOBODY},
        ("moorage.events.kafka", "aiokafka"),
    ),
    ("+ traces by OTLP", {"TRACING_OTLP_ENDPOINT": f"http://{NOBODY}"}, ("moorage.tracing.otlp",)),
    ("+ errors to Sentry", {"ERRORS_SENTRY_DSN": f"http://key@{NOBODY}/1"}, ("moorage.errorbus.sentry",)),
)
"""What is said of a row, its settings, and modules that the port imports once it is used."""


def measure(environ: Mapping[str, str], used: tuple[str, ...]) -> dict[str, Any]:
    """Serve in a process of its own and say what it took."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(used)],
        env={"PATH": os.environ["PATH"], **BARE, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{environ}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


async def child(used: tuple[str, ...]) -> None:
    """Put a module together with the ports of the environment, serve one, and print what this process takes."""
    from moorage import Module
    from moorage.assembly import Assembly
    from moorage.config import load
    from moorage.serve import running

    module = Module("notes")

    @module.handle("index")
    async def index() -> str:
        return "hello"

    with tempfile.TemporaryDirectory() as folder:
        settings = load(folder=Path(folder))
        bare = load(environ=BARE, folder=Path(folder))
    # Not opened: it would wait for backends. What it imports and makes is there all the same.
    assembly = Assembly.of(module, settings)
    for name in used:
        importlib.import_module(name)
    async with running(module, bare):
        await asyncio.sleep(SETTLE_S)
    print(json.dumps(_taken()))
    assert assembly.name == "notes"


def _taken() -> dict[str, float]:
    """In MiB."""
    sizes: dict[str, int] = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0])
    return {"rss": sizes["Rss"] / 1024, "own": sizes["Anonymous"] / 1024}


def table() -> str:
    """A row for each combination."""
    lines = ["| process | resident, MiB | its own, MiB | adds, MiB |", "| --- | --- | --- | --- |"]
    base: dict[str, float] = {}
    for name, environ, used in ROWS:
        taken = measure(environ, used)
        base = base or taken
        adds = f"{max(0.0, taken['rss'] - base['rss']):.0f}" if taken is not base else ""
        lines.append(f"| {name} | {taken['rss']:.0f} | {taken['own']:.0f} | {adds} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"put it into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        import uvloop

        uvloop.run(child(tuple(json.loads(arguments.child))))
        return
    made = table()
    print(made)
    if arguments.write:
        text = PAGE.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}")


if __name__ == "__main__":
    main()
