"""Results of a benchmark: ratios of medians, with the raw numbers beside them."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).resolve().parents[3] / "bench" / "results"


@dataclass(frozen=True)
class Ratio:
    """One figure of a benchmark, measured several times.

    Args:
        values: one for each round; ours divided by the peer's of the same round, or a figure in a unit that the name
            says (``p99_ms``).
        goal: what `docs/benchmarks.md` wants to reach; None: only watched.
    """

    values: Sequence[float]
    goal: float | None
    better: Literal["higher", "lower"]

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.values)

    @property
    def reached(self) -> bool:
        """Whether the median is as good as the goal."""
        if self.goal is None:
            return True
        return self.median >= self.goal if self.better == "higher" else self.median <= self.goal

    def document(self) -> dict[str, Any]:
        """As in the results file."""
        return {
            "median": _round(self.median),
            "min": _round(min(self.values)),
            "max": _round(max(self.values)),
            "goal": self.goal,
            "better": self.better,
        }


@dataclass(frozen=True)
class Report:
    """What a benchmark found out."""

    name: str
    work: Mapping[str, Any]
    ratios: Mapping[str, Ratio]
    raw: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=lambda: machine())
    """As it was before the benchmark, where whoever runs it has looked (`bench.__main__`)."""

    def document(self) -> dict[str, Any]:
        """The results file."""
        return {
            "name": self.name,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": dict(self.machine),
            "work": dict(self.work),
            "ratios": {name: ratio.document() for name, ratio in self.ratios.items()},
            "raw": dict(self.raw),
        }

    def write(self, folder: Path = RESULTS) -> Path:
        """Write the results file; returns where."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self.document(), indent=2) + "\n")
        return path

    def table(self) -> str:
        """For people."""
        lines = [f"{self.name:<30}{'median':>10}{'min':>10}{'max':>10}{'goal':>12}"]
        for name, ratio in self.ratios.items():
            sign = "≥" if ratio.better == "higher" else "≤"
            goal = "–" if ratio.goal is None else f"{sign} {ratio.goal:g}"
            missed = "" if ratio.reached else "  missed"
            numbers = "".join(
                f"{_round(n):>10g}" for n in (ratio.median, min(ratio.values), max(ratio.values))
            )
            lines.append(f"{name:<30}{numbers}{goal:>12}{missed}")
        return "\n".join(lines)


def say(line: str) -> None:
    """Tell whoever waits how far it is."""
    print(f"[bench] {line}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpus": os.cpu_count(),
        "cpu": _processor(),
        "memory_mb": memory // 2**20,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": _round(os.getloadavg()[0]),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which *share* (0…1) of *values* lie."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _round(number: float) -> float:
    return float(f"{number:.4g}")
