"""The guard: what it costs in a module's own process and as a sidecar, against a bare app, Envoy and nginx.

Each round measures, one after the other: the bare app, the module; and before the bare app Envoy, the sidecar, Envoy
without its memory for tokens, nginx. All servers run all the time; who is not asked uses no processor.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.guard_sides import Side, Starter
from bench.guard_trust import ROLE, URL_PATH, Trust, check_answer, check_guard, check_observed
from bench.item import BODY
from bench.load import CONNECTIONS, Load, load
from bench.options import Options
from bench.report import Ratio, Report, say
from bench.server import Memory
from rigs import packages

_SECONDS: Final = 8
_WARM_SECONDS: Final = 3


@dataclass(frozen=True)
class Sample:
    """One round of one side."""

    load: Load
    cpu_us: float
    """Of the side's own servers, for each request."""
    app_cpu_us: float
    """Of the bare app behind it, for each request."""
    memory: Memory
    """Of the side's own servers, after the load."""

    def document(self) -> dict[str, Any]:
        """For the raw part of the results."""
        return {
            "per_second": round(self.load.per_second),
            "requests": self.load.requests,
            "p50_ms": round(self.load.p50_ms, 3),
            "p90_ms": round(self.load.p90_ms, 3),
            "p99_ms": round(self.load.p99_ms, 3),
            "cpu_us": round(self.cpu_us, 1),
            "app_cpu_us": round(self.app_cpu_us, 1),
            "rss_mb": round(self.memory.resident, 1),
            "private_mb": round(self.memory.private, 1),
        }


async def measure(options: Options) -> Report:
    """Run it."""
    packages.ensure("nginx", "wrk")
    trust = Trust()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        sides = Starter(stack, folder, trust).all()
        for side in sides:
            for server in side.servers:
                await server.listening()
        await check(sides, trust)
        if not options.short:  # caches, pools and allocators are warm in what counts
            for side in sides:
                await sample(side, trust, _WARM_SECONDS)
        samples: dict[str, list[Sample]] = {side.name: [] for side in sides}
        for turn in range(options.rounds):
            for side in sides:
                found = await sample(side, trust, 1 if options.short else _SECONDS)
                samples[side.name].append(found)
                say(f"round {turn + 1} of {options.rounds}, {side.name}: {found.document()}")
        await check(sides, trust)
    return _report(options, samples)


async def check(sides: list[Side], trust: Trust) -> None:
    """Every side gives the right answers, and those that guard refuse the wrong ones; before and after the load."""
    async with aiohttp.ClientSession() as session:
        for side in sides:
            if not side.guards:
                await check_answer(session, side.url, trust)
                continue
            await check_guard(session, side.url, trust)
            if side.admin_port is not None:
                await check_observed(session, side.url, side.admin, side.servers[0].log, trust)


async def sample(side: Side, trust: Trust, seconds: int) -> Sample:
    """Load *side* for so long, and say what it took."""
    for log in side.logs:
        log.open("wb").close()  # a line for each of millions of requests would fill a disk
    before, app_before = side.cpu(), side.app.cpu() if side.app is not None else 0.0
    found = await load(side.url + URL_PATH, trust.header(ROLE), seconds=seconds, least=len(BODY))
    cpu, app_cpu = side.cpu(), side.app.cpu() if side.app is not None else 0.0
    memory = [server.memory() for server in side.servers]
    return Sample(
        found,
        (cpu - before) / found.requests * 1e6,
        (app_cpu - app_before) / found.requests * 1e6,
        Memory(sum(one.resident for one in memory), sum(one.private for one in memory)),
    )


def against(ours: list[Sample], peer: list[Sample], figure: Callable[[Sample], float]) -> list[float]:
    """*ours* divided by *peer* round by round: what else the machine did then, both have felt."""
    return [figure(a) / figure(b) for a, b in zip(ours, peer, strict=True)]


def rate(sample: Sample) -> float:
    """Requests per second."""
    return sample.load.per_second


def p99(sample: Sample) -> float:
    """Milliseconds in which 99 of 100 requests were answered."""
    return sample.load.p99_ms


def cpu(sample: Sample) -> float:
    """Microseconds of the side's processor time for a request."""
    return sample.cpu_us


def _report(options: Options, samples: dict[str, list[Sample]]) -> Report:
    def divided(ours: str, peer: str, figure: Callable[[Sample], float]) -> list[float]:
        return against(samples[ours], samples[peer], figure)

    sidecar = [sample.memory for sample in samples["sidecar"]]
    ratios = {
        "in_process_vs_bare": Ratio(divided("in_process", "bare", rate), 0.6, "higher"),
        "in_process_vs_envoy": Ratio(divided("in_process", "envoy", rate), 2.0, "higher"),
        "in_process_p99_vs_envoy": Ratio(divided("in_process", "envoy", p99), 1.0, "lower"),
        "in_process_vs_envoy_uncached": Ratio(divided("in_process", "envoy_uncached", rate), None, "higher"),
        "in_process_vs_nginx": Ratio(divided("in_process", "nginx", rate), None, "higher"),
        "sidecar_vs_envoy": Ratio(divided("sidecar", "envoy", rate), 1.0, "higher"),
        "sidecar_p99_vs_envoy": Ratio(divided("sidecar", "envoy", p99), 1.0, "lower"),
        "sidecar_cpu_vs_envoy": Ratio(divided("sidecar", "envoy", cpu), 1.2, "lower"),
        "sidecar_vs_envoy_uncached": Ratio(divided("sidecar", "envoy_uncached", rate), None, "higher"),
        "sidecar_cpu_vs_envoy_uncached": Ratio(divided("sidecar", "envoy_uncached", cpu), None, "lower"),
        "sidecar_vs_nginx": Ratio(divided("sidecar", "nginx", rate), None, "higher"),
        "sidecar_rss_mb": Ratio([memory.resident for memory in sidecar], 60.0, "lower"),
        "sidecar_private_mb": Ratio([memory.private for memory in sidecar], None, "lower"),
    }
    work = {
        "request": f"GET {URL_PATH}, answered with {len(BODY)} bytes of JSON",
        "token": "ES256, one user with one role that holds the rule's permission",
        "load": f"wrk, one thread, {CONNECTIONS} connections that are kept, {1 if options.short else _SECONDS} s",
        "rounds": options.rounds,
    }
    raw = {name: [sample.document() for sample in some] for name, some in samples.items()}
    return Report("guard", work, ratios, raw)
