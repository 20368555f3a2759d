"""Every benchmark works; what it measures is none of a test's business."""

import json
from pathlib import Path

import pytest

from bench import up
from bench.events import measure
from bench.options import Options
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
