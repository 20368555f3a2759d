"""Every benchmark works; what it measures is none of a test's business."""

import json
from pathlib import Path

import aiohttp
import jwt
import pytest
from pytest_aiohttp.plugin import AiohttpServer

from bench import guard, guard_limits, load, up
from bench.events import measure
from bench.guard_trust import ROLE, Trust, UnguardedError, check_guard
from bench.options import Options
from bench.plain import app
from bench.report import Ratio, Report
from rigs.plugin import available


@pytest.mark.timeout(600)
async def test_events_in_its_short_form(tmp_path: Path) -> None:
    """It gives every figure that docs/benchmarks.md promises, and nothing is lost."""
    with available():
        report = await measure(Options(short=True, rounds=1))
    document = json.loads(report.write(tmp_path).read_text())
    assert set(document) == {"name", "when", "machine", "work", "ratios", "raw"}
    names = {"throughput_vs_bare", "p99_ms", "lost"}
    assert set(document["ratios"]) == names | {f"postgres_{name}" for name in names}
    for ratio in document["ratios"].values():
        assert set(ratio) == {"median", "min", "max", "goal", "better"}
    assert document["ratios"]["lost"]["max"] == 0
    assert document["ratios"]["postgres_lost"]["max"] == 0
    assert "missed" in report.table() or all(ratio.reached for ratio in report.ratios.values())


@pytest.mark.timeout(300)
async def test_guard_in_its_short_form(tmp_path: Path) -> None:
    """It gives every figure; every side gave the right answers and refused the wrong ones, or it would have failed."""
    with available():
        report = await guard.measure(Options(short=True, rounds=1))
    document = json.loads(report.write(tmp_path).read_text())
    goals = {name: (ratio["better"], ratio["goal"]) for name, ratio in document["ratios"].items()}
    assert goals == {
        "in_process_vs_bare": ("higher", 0.6),
        "in_process_vs_envoy": ("higher", 2),
        "in_process_p99_vs_envoy": ("lower", 1),
        "in_process_vs_envoy_uncached": ("higher", None),
        "in_process_vs_nginx": ("higher", None),
        "sidecar_vs_envoy": ("higher", 1),
        "sidecar_p99_vs_envoy": ("lower", 1),
        "sidecar_cpu_vs_envoy": ("lower", 1.2),
        "sidecar_vs_envoy_uncached": ("higher", None),
        "sidecar_cpu_vs_envoy_uncached": ("lower", None),
        "sidecar_vs_nginx": ("higher", None),
        "sidecar_rss_mb": ("lower", 60),
        "sidecar_private_mb": ("lower", None),
    }
    assert set(document["raw"]) == {"bare", "in_process", "envoy", "sidecar", "envoy_uncached", "nginx"}
    for (sample,) in document["raw"].values():
        assert sample["requests"] > 0
        assert sample["rss_mb"] >= sample["private_mb"] > 0


@pytest.mark.timeout(300)
async def test_guard_limits_in_its_short_form(tmp_path: Path) -> None:
    """Limits in Redis are one call for each request, and clients are told of them."""
    with available():
        report = await guard_limits.measure(Options(short=True, rounds=1))
    document = json.loads(report.write(tmp_path).read_text())
    assert report.name == "guard-limits"
    assert set(document["ratios"]) == {
        "memory_vs_unlimited",
        "redis_vs_unlimited",
        "memory_cpu_us",
        "redis_cpu_us",
        "redis_calls",
        "redis_reads",
    }
    calls = document["ratios"]["redis_calls"]
    assert calls["goal"] == 1
    assert 0.9 < calls["min"] <= calls["max"] < 1.1
    assert set(document["raw"]) == {"unlimited", "memory", "redis"}


async def test_what_lets_everybody_in_is_no_side_of_the_guard_benchmark(
    aiohttp_server: AiohttpServer,
) -> None:
    server = await aiohttp_server(app())
    async with aiohttp.ClientSession() as session:
        with pytest.raises(UnguardedError, match="answers 200 without a token, not 401"):
            await check_guard(session, str(server.make_url("")).rstrip("/"), Trust())


def test_a_forged_token_differs_in_its_signature_alone() -> None:
    trust = Trust()
    forged = trust.header(ROLE, forged=True)["Authorization"].removeprefix("Bearer ")
    key = jwt.PyJWK(dict(trust.jwk))
    assert jwt.get_unverified_header(forged)["kid"] == trust.jwk["kid"]
    assert jwt.decode(forged, options={"verify_signature": False})["roles"] == [ROLE]
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(forged, key, algorithms=["ES256"], audience="bench")


def _printed(errors: str = '"connect": 0, "read": 0, "write": 0, "status": 0, "timeout": 0') -> str:
    numbers = '"requests": 200, "duration_us": 2000000, "bytes": 240000, "p50_us": 90, "p90_us": 120, "p99_us": 1500'
    return f'Running 2s test\n  Latency   90.00us\nbench:{{{numbers}, "errors": {{{errors}}}}}\n'


def test_what_wrk_prints_is_read() -> None:
    found = load.read(_printed(), least=1024)
    assert found == load.Load(200, 2.0, 0.09, 0.12, 1.5)
    assert found.per_second == 100


@pytest.mark.parametrize(
    ("output", "least", "complaint"),
    [
        ("unable to connect to 127.0.0.1:1 Connection refused\n", 0, "no result"),
        ("bench:{nan}\n", 0, "no result"),
        (_printed('"connect": 0, "status": 3'), 0, "some failed: {'status': 3}"),
        (_printed('"timeout": 1'), 0, "some failed: {'timeout': 1}"),
        (_printed(), 1201, "not 1201 each"),
    ],
)
def test_a_round_in_which_something_failed_counts_for_nothing(
    output: str, least: int, complaint: str
) -> None:
    with pytest.raises(load.LoadError, match=complaint):
        load.read(output, least=least)


@pytest.mark.timeout(300)
async def test_up_in_its_short_form(tmp_path: Path) -> None:
    report = await up.measure(Options(short=True, rounds=1))
    document = json.loads(report.write(tmp_path).read_text())
    assert set(document["ratios"]) == {"warm_s", "cold_s"}
    assert document["ratios"]["warm_s"]["goal"] == 10


def test_a_missed_goal_shows() -> None:
    """Higher or lower, whichever is better."""
    slow, late = Ratio([0.1, 0.4, 0.9], 0.5, "higher"), Ratio([60.0], 50.0, "lower")
    assert (slow.median, slow.reached, late.reached) == (0.4, False, False)
    table = Report("x", {}, {"slow": slow, "late": late, "fine": Ratio([49.0], 50.0, "lower")}).table()
    assert [line.endswith("missed") for line in table.splitlines()[1:]] == [True, True, False]
