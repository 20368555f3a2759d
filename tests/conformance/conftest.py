"""A table of what was held to what: port × backend × cases, printed after the run (`make conformance`)."""

from collections import Counter
from collections.abc import Generator

import pytest

_results: dict[tuple[str, str], Counter[str]] = {}
_OUTCOMES = ("passed", "failed", "skipped")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count the case by its file's port and the parameter `backend`."""
    report = yield
    counts = report.when == "call" or report.outcome != "passed"
    if counts and report.when != "teardown":
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        port = item.path.stem.removeprefix("test_").replace("_", " ")
        backend = str(parameters.get("backend", "(both)"))
        _results.setdefault((port, backend), Counter())[report.outcome] += 1
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not _results:
        return
    terminalreporter.section("conformance")
    width = max(len(port) for port, _ in _results) + 2
    terminalreporter.write_line(
        f"{'port':<{width}}{'backend':<28}" + "".join(f"{one:>9}" for one in _OUTCOMES)
    )
    for (port, backend), counted in sorted(_results.items()):
        numbers = "".join(f"{counted[one]:>9}" for one in _OUTCOMES)
        terminalreporter.write_line(f"{port:<{width}}{backend:<28}{numbers}")
