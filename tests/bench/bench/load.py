"""Load by wrk: one thread, keep-alive connections, each sends its next request when the last answer has come."""

import asyncio
import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CONNECTIONS: Final = 16
_TIMEOUT_S: Final = 10
_MARK: Final = "bench:"
# wrk writes for people, in units that change with the value; its hook `done` has the numbers. A script with hooks for
# each request would cost time for each, this one costs none.
_SCRIPT: Final = (
    """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n"""
    + _MARK
    + """{"requests": %.0f, "duration_us": %.0f, "bytes": %.0f, "p50_us": %.0f, "p90_us": %.0f, "p99_us": %.0f, ' ..
    '"errors": {"connect": %.0f, "read": %.0f, "write": %.0f, "status": %.0f, "timeout": %.0f}}\\n',
    summary.requests, summary.duration, summary.bytes,
    latency:percentile(50), latency:percentile(90), latency:percentile(99),
    e.connect, e.read, e.write, e.status, e.timeout))
end
"""
)


class LoadError(RuntimeError):
    """wrk did not run, or not every answer was a good one: such a round counts for nothing."""


@dataclass(frozen=True)
class Load:
    """What one run of wrk has seen; all answers were good."""

    requests: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        """Requests answered in a second."""
        return self.requests / self.seconds


async def load(url: str, headers: Mapping[str, str], *, seconds: int, least: int) -> Load:
    """GET *url* for some seconds.

    Args:
        headers: of every request.
        least: bytes that a good answer has at least; wrk itself counts redirects and empty answers as good.

    Raises:
        LoadError: wrk failed, or an answer was not a good one.
    """
    with tempfile.TemporaryDirectory(prefix="bench-wrk-") as folder:
        script = Path(folder) / "done.lua"
        script.write_text(_SCRIPT)
        arguments = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"--timeout={_TIMEOUT_S}s"]
        arguments += ["--script", str(script)]
        for name, value in headers.items():
            arguments += ["--header", f"{name}: {value}"]
        process = await asyncio.create_subprocess_exec(
            *("wrk", *arguments, url),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the benchmark, which ends it
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
    return read(output.decode(errors="replace"), least=least)


def read(output: str, *, least: int) -> Load:
    """What wrk printed; raises `LoadError` as `load` does."""
    lines = [line for line in output.splitlines() if line.startswith(_MARK)]
    try:
        found: dict[str, Any] = json.loads(lines[-1].removeprefix(_MARK))
    except (IndexError, ValueError):
        raise LoadError(f"wrk has no result:\n{output[-2000:]}") from None
    wrong = {kind: count for kind, count in found["errors"].items() if count}
    if wrong:
        raise LoadError(f"of {found['requests']} requests some failed: {wrong}")
    if not found["requests"] or found["bytes"] < found["requests"] * least:
        raise LoadError(f"{found['requests']} answers had {found['bytes']} bytes, not {least} each")
    latencies = {f"{name}_ms": found[f"{name}_us"] / 1000 for name in ("p50", "p90", "p99")}
    return Load(found["requests"], found["duration_us"] / 1e6, **latencies)
