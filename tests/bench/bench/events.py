"""Events: from a transaction's outbox over the bus to a handler in another process, against aiokafka alone.

Each round measures, one after the other: ours on Kafka, aiokafka alone, ours on Postgres. A unit of work is an HTTP
request that emits its events in one transaction (ours), or sends them and waits for their acknowledgement (bare).
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.options import Options
from bench.report import Ratio, Report, percentile, say
from moorage.config.settings import Kafka
from moorage.events.kafka_link import ensure_topics
from rigs.world import Part, World

CODE: Final = Path(__file__).resolve().parent.parent / "modules"
_TYPE: Final = "shop.order.placed"
_SHOP: Final = Part("shop", "bench_events:shop", publishes=(_TYPE,), routes={"emit": "POST /emit"})
_LEDGER: Final = Part(
    "ledger",
    "bench_events:ledger",
    subscribes=(_TYPE,),
    routes={"counted": "GET /counted", "take": "POST /take"},
)
_CLIENTS: Final = 8
_RATE: Final = 1000.0
_PATIENCE: Final = 120.0


@dataclass(frozen=True)
class Work:
    """How much is done in one round."""

    flood: int = 20_000
    """Events as fast as they go…"""
    flood_unit: int = 100
    """…so many in a unit of work."""
    drip_seconds: float = 10.0
    """How long events come at a steady rate of a thousand a second…"""
    drip_unit: int = 10
    """…so many in a unit of work."""

    @property
    def drip(self) -> int:
        """Events of the steady part."""
        return int(self.drip_seconds * _RATE)


@dataclass
class Sample:
    """One round of one side."""

    per_second: float
    latencies: list[float]
    lost: int
    cpu: dict[str, float]
    """Process → seconds of processor time for each thousand events, over the flood."""

    def document(self) -> dict[str, Any]:
        """For the raw part of the results."""
        milliseconds = {
            f"p{share:g}_ms": round(percentile(self.latencies, share / 100) * 1000, 2)
            for share in (50, 95, 99)
        }
        cpu = {name: round(value, 3) for name, value in self.cpu.items()}
        return {
            "per_second": round(self.per_second),
            **milliseconds,
            "lost": self.lost,
            "cpu_s_per_1000": cpu,
        }


class Ours:
    """The modules on one backend."""

    def __init__(self, world: World, session: aiohttp.ClientSession) -> None:
        self._world, self._session = world, session
        self._shop, self._ledger = world.servers["shop"], world.servers["ledger"]

    async def sample(self, work: Work) -> Sample:
        """One round."""
        before = {name: server.cpu() for name, server in self._world.servers.items()}
        seconds, flooded = await self._flood(work)
        cpu = {name: (s.cpu() - before[name]) / work.flood * 1000 for name, s in self._world.servers.items()}
        latencies = await self._drip(work)
        lost = work.flood - flooded + work.drip - len(latencies)
        return Sample(work.flood / seconds, latencies, lost, cpu)

    async def _flood(self, work: Work) -> tuple[float, int]:
        firsts = iter(range(0, work.flood, work.flood_unit))

        async def client() -> None:
            for first in firsts:
                await self._emit(first, work.flood_unit)

        began = time.monotonic()
        await asyncio.gather(*(client() for _ in range(_CLIENTS)))
        await self._until(work.flood)
        seconds = time.monotonic() - began
        return seconds, len(await self._take())

    async def _drip(self, work: Work) -> list[float]:
        began, requests = time.monotonic(), []
        for first in range(0, work.drip, work.drip_unit):
            await asyncio.sleep(max(0.0, began + first / _RATE - time.monotonic()))
            requests.append(asyncio.create_task(self._emit(first, work.drip_unit)))
        await asyncio.gather(*requests)
        await self._until(work.drip)
        return await self._take()

    async def _emit(self, first: int, events: int) -> None:
        where = f"{self._shop.url}/emit?first={first}&events={events}"
        async with self._session.post(where) as answer:
            assert answer.status == 200, await answer.text()

    async def _until(self, number: int) -> None:
        """Until *number* were handled, or none came for long; then they are lost."""
        last, since = -1, time.monotonic()
        while last < number and time.monotonic() - since < _PATIENCE:
            async with self._session.get(f"{self._ledger.url}/counted") as answer:
                count = int(await answer.text())
            if count != last:
                last, since = count, time.monotonic()
            await asyncio.sleep(0.02)

    async def _take(self) -> list[float]:
        async with self._session.post(f"{self._ledger.url}/take") as answer:
            return [float(one) for one in await answer.json()]


class Bare:
    """aiokafka alone, in two processes as ours."""

    def __init__(self, producer: "subprocess.Popen[str]", consumer: "subprocess.Popen[str]") -> None:
        self._producer, self._consumer = producer, consumer

    async def sample(self, work: Work) -> Sample:
        """One round."""
        before = self._cpu()
        began = time.monotonic()
        flooded = await self._both(work.flood, work.flood_unit, 0.0)
        seconds = time.monotonic() - began
        cpu = {name: (now - before[name]) / work.flood * 1000 for name, now in self._cpu().items()}
        latencies = await self._both(work.drip, work.drip_unit, _RATE)
        lost = work.flood - len(flooded) + work.drip - len(latencies)
        return Sample(work.flood / seconds, latencies, lost, cpu)

    async def _both(self, total: int, unit: int, rate: float) -> list[float]:
        sides = (self._producer, self._consumer)
        told = f"{total} {unit} {rate}"
        answers = await asyncio.gather(*(asyncio.to_thread(_ask, side, told) for side in sides))
        return [float(one) for one in answers[1]["latencies"]]

    def _cpu(self) -> dict[str, float]:
        return {"producer": _cpu(self._producer.pid), "consumer": _cpu(self._consumer.pid)}


def _piped(command: list[str], environ: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)


def _ask(process: "subprocess.Popen[str]", line: str) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return dict(json.loads(process.stdout.readline()))


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def _ours(
    folder: Path, backend: str, session: aiohttp.ClientSession
) -> AsyncIterator[tuple[World, Ours]]:
    # PostgreSQL as it comes, with fsync: what it costs to be durable belongs to the outbox.
    # Where a machine is too slow for the steady rate, requests wait; that shows in the figures, not as an error.
    environ = {"DATABASE_ACQUIRE_TIMEOUT": "60s", "SERVER_WRITE_TIMEOUT": "60s"}
    world = World(folder, backend, code=CODE, parts=(_SHOP, _LEDGER), postgres={}, environ=environ)
    async with world.running():
        for name in ("shop", "ledger"):
            await world.spawn(name, name).ready()
        yield world, Ours(world, session)


@asynccontextmanager
async def _bare(bootstrap: str) -> AsyncIterator[Bare]:
    topic = "bare"
    await ensure_topics(Kafka(brokers=bootstrap), [topic], client_id="bench")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with contextlib.ExitStack() as stack:
        processes = []
        for role in ("produce", "consume"):
            command = [sys.executable, "-m", "bench.bare", role, bootstrap, topic]
            process = await asyncio.to_thread(_piped, command, environ)
            stack.enter_context(process)  # waits, and closes the pipes
            stack.callback(process.kill)
            processes.append(process)
        producer, consumer = processes
        assert consumer.stdout is not None
        await asyncio.to_thread(consumer.stdout.readline)
        yield Bare(producer, consumer)


async def measure(options: Options) -> Report:
    """Run it."""
    work = Work(1_000, 100, 1.0, 10) if options.short else Work()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))) for _ in range(2)]
        world, kafka = await stack.enter_async_context(_ours(folders[0], "kafka", session))
        assert world.broker is not None
        bare = await stack.enter_async_context(_bare(world.broker.bootstrap))
        _, postgres = await stack.enter_async_context(_ours(folders[1], "postgres", session))
        sides: dict[str, Callable[[Work], Awaitable[Sample]]] = {
            "kafka": kafka.sample,
            "bare": bare.sample,
            "postgres": postgres.sample,
        }
        if not options.short:  # caches, compilers and pools are warm in what counts
            for sample in sides.values():
                await sample(Work(2_000, 100, 1.0, 10))
        samples: dict[str, list[Sample]] = {name: [] for name in sides}
        for turn in range(options.rounds):
            for name, sample in sides.items():
                samples[name].append(await sample(work))
                say(f"round {turn + 1} of {options.rounds}, {name}: {samples[name][-1].document()}")
    return _report(work, options, samples)


def _report(work: Work, options: Options, samples: dict[str, list[Sample]]) -> Report:
    ratios: dict[str, Ratio] = {}
    for prefix, name in (("", "kafka"), ("postgres_", "postgres")):
        pairs = list(zip(samples[name], samples["bare"], strict=True))
        ratios |= {
            f"{prefix}throughput_vs_bare": Ratio(
                [a.per_second / b.per_second for a, b in pairs], 0.5, "higher"
            ),
            f"{prefix}p99_ms": Ratio(
                [percentile(s.latencies, 0.99) * 1000 for s in samples[name]], 50.0, "lower"
            ),
            f"{prefix}lost": Ratio([s.lost for s in samples[name]], 0, "lower"),
        }
    told = {
        "flood": f"{work.flood} events, {work.flood_unit} in a transaction, {_CLIENTS} at once",
        "steady": f"{_RATE:g}/s for {work.drip_seconds:g} s, {work.drip_unit} in a transaction",
        "event": "CloudEvent with 200 bytes of text, 1000 keys, 8 partitions",
        "rounds": options.rounds,
    }
    return Report(
        "events", told, ratios, {name: [s.document() for s in some] for name, some in samples.items()}
    )
