"""What limits cost a module's own process: none, the same ones in its memory, and in Redis.

The limits are so wide that none refuses: each request is counted for its user, its address and its rule.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import aiohttp
from redis.asyncio import Redis

from bench.guard import Sample, against, check, cpu, rate, sample
from bench.guard_sides import Side, Starter
from bench.guard_trust import ROLE, URL_PATH, Trust, UnguardedError, counted
from bench.load import CONNECTIONS
from bench.options import Options
from bench.report import Ratio, Report, say
from moorage.guard.limits.document import Limit, Limits
from rigs import packages, redis

_SECONDS: Final = 8
_WARM_SECONDS: Final = 3
_WIDE: Final = Limit(count=500_000_000, seconds=60)
_LIMITS: Final = Limits(user=_WIDE, address=_WIDE, rule=_WIDE)


async def measure(options: Options) -> Report:
    """Run it."""
    packages.ensure("wrk")
    trust = Trust()
    with ExitStack() as stack:
        server = stack.enter_context(redis.running())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        starter = Starter(stack, folder, trust)
        sides = [
            starter.in_process("unlimited"),
            starter.in_process("memory", _LIMITS),
            starter.in_process("redis", _LIMITS, {"REDIS_URL": server.url}),
        ]
        for side in sides:
            for process in side.servers:
                await process.listening()
        await check(sides, trust)
        await _check_limits(sides, trust)
        async with Redis.from_url(server.url) as client:
            samples, calls, reads = await _rounds(options, sides, trust, client)
        await check(sides, trust)
    return _report(options, samples, calls, reads)


async def _rounds(
    options: Options, sides: list[Side], trust: Trust, client: Redis
) -> tuple[dict[str, list[Sample]], list[float], list[float]]:
    """Every side's samples, and how many calls and reads Redis had for each request of its side."""
    if not options.short:
        for side in sides:
            await sample(side, trust, _WARM_SECONDS)
    samples: dict[str, list[Sample]] = {side.name: [] for side in sides}
    calls, reads = [], []
    for turn in range(options.rounds):
        for side in sides:
            before = await _counted(client, side)
            found = await sample(side, trust, 1 if options.short else _SECONDS)
            # Those that wrk has left unanswered were counted as well: of all there were, not of those that it has seen.
            scripts, read, requests = (
                b - a for a, b in zip(before, await _counted(client, side), strict=True)
            )
            samples[side.name].append(found)
            say(f"round {turn + 1} of {options.rounds}, {side.name}: {found.document()}")
            if side.name == "redis":
                calls.append(round(scripts / requests, 2))
                reads.append(round(read / requests, 2))
    return samples, calls, reads


async def _counted(client: Redis, side: Side) -> tuple[float, float, float]:
    """Scripts that Redis has run, times that it has read from a connection, and requests that *side* has answered."""
    commands = await client.info("commandstats")
    scripts = sum(int(commands.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("evalsha", "eval"))
    reads = int((await client.info("stats"))["total_reads_processed"])
    async with aiohttp.ClientSession() as session:
        return scripts, reads, await counted(session, side.admin)


async def _check_limits(sides: list[Side], trust: Trust) -> None:
    """Raise `UnguardedError` unless the sides with limits, and they alone, tell of all three."""
    async with aiohttp.ClientSession() as session:
        for side in sides:
            async with session.get(side.url + URL_PATH, headers=trust.header(ROLE)) as answer:
                told = answer.headers.get("RateLimit", "")
            names = [part.strip().partition(";")[0] for part in told.split(",") if part]
            wanted = [] if side.name == "unlimited" else ['"user"', '"address"', '"rule"']
            if names != wanted:
                raise UnguardedError(f"{side.name} tells of the limits {told!r}, not of {wanted}")


def _report(
    options: Options, samples: dict[str, list[Sample]], calls: list[float], reads: list[float]
) -> Report:
    unlimited = samples["unlimited"]

    def dearer(name: str) -> list[float]:
        """Microseconds of processor time that limits add to a request."""
        return [cpu(a) - cpu(b) for a, b in zip(samples[name], unlimited, strict=True)]

    ratios = {
        "memory_vs_unlimited": Ratio(against(samples["memory"], unlimited, rate), None, "higher"),
        "redis_vs_unlimited": Ratio(against(samples["redis"], unlimited, rate), None, "higher"),
        "memory_cpu_us": Ratio(dearer("memory"), None, "lower"),
        "redis_cpu_us": Ratio(dearer("redis"), None, "lower"),
        "redis_calls": Ratio(calls, 1.0, "lower"),
        "redis_reads": Ratio(reads, None, "lower"),
    }
    work = {
        "request": f"GET {URL_PATH}, with a user's token, counted for user, address and rule",
        "load": f"wrk, one thread, {CONNECTIONS} connections that are kept, {1 if options.short else _SECONDS} s",
        "rounds": options.rounds,
    }
    raw = {name: [one.document() for one in some] for name, some in samples.items()}
    return Report("guard-limits", work, ratios, raw)
