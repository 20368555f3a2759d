"""docs/ports/tracing.md and docs/ports/metrics.md: their worked example runs, their tables are the code's."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from moorage.config import load
from moorage.metrics import MAX_VALUES, Metrics
from moorage.testing import ModuleHarness
from moorage.tracing.otlp import FLUSH_S
from rigs import otlp


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")


@pytest.fixture
def shelf(page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder of the page's module, on the import path."""
    for block in page("docs/ports/tracing.md").blocks:
        if "." in block.title:
            file = tmp_path / block.title
            file.parent.mkdir(exist_ok=True)
            file.write_text(block.text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("shelf", None)


async def test_the_example_is_traced_and_counted_as_the_pages_say(page, shelf: Path) -> None:
    async with otlp.collecting() as collector:
        async with ModuleHarness(shelf, environ={"TRACING_OTLP_ENDPOINT": collector.url}) as harness:
            answer = await harness.anonymous().post("/boxes/7/move")
            assert answer.status == 200, answer
            text = (await harness.admin.get("/metrics")).content.decode()
        found = {span.name: span for span in collector.spans}
    [block] = page("docs/ports/tracing.md").titled("trace")
    above = None
    for line in block.text.splitlines():
        name, kind, said = re.split(r"\s{2,}", line.strip())
        span = found.pop(name)
        assert span.kind == kind
        for pair in said.split():
            key, _, value = pair.partition("=")
            assert str(span.attributes[key]) == value
        assert span.parent_id == ("" if above is None else above.span_id)
        above = span
    assert not found, "there are other spans than those of the page"
    [counting] = page("docs/ports/metrics.md").titled("counting")
    [exposition] = page("docs/ports/metrics.md").titled("exposition")
    assert counting.text.strip() in (shelf / "shelf.py").read_text()
    assert exposition.text.strip() in text


def test_the_table_of_the_ports_metrics_is_that_of_the_code(page, repository: Path) -> None:
    made = runpy.run_path(str(repository / "tests/docs/metrics_table.py"))
    text = page("docs/ports/metrics.md").text
    assert text == made["replaced"](text), "run: python tests/docs/metrics_table.py"


def test_figures_of_the_pages_are_those_of_the_code(page, tmp_path: Path) -> None:
    tracing = page("docs/ports/tracing.md").text
    settings = load(environ={}, folder=tmp_path).tracing
    assert f"`tracing.max_followed` traces a second ({settings.max_followed:g})" in tracing
    assert f"for {FLUSH_S:g} seconds at most" in tracing
    metrics = page("docs/ports/metrics.md").text
    assert f"its first {MAX_VALUES}\nvalues" in metrics
    for method in ("counter", "histogram", "gauge", "gauge_function"):
        assert f"| `{method}(" in metrics
        assert callable(getattr(Metrics, method))
