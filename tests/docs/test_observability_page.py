"""docs/observability.md asks for nothing that does not exist."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from moorage.errors import Unavailable
from moorage_operator.local.launch import base_environment

PAGE = "docs/observability.md"
_KEYWORDS = re.compile(r"\b(sum|max|min_over_time|by|rate|increase|topk|histogram_quantile|or)\b")


@pytest.fixture(scope="module")
def known(repository: Path) -> dict[str, set[str]]:
    """Every metric of a module with its labels."""
    made = runpy.run_path(str(repository / "tests/docs/metrics_table.py"))
    return {name: set(labels) for name, (_, labels, _) in made["everything"]().items()}


def check(expression: str, known: dict[str, set[str]]) -> set[str]:
    """What *expression* asks for; fails if there is no such metric or label."""
    asked = set()
    for name in re.findall(r"\b([a-z]\w+)(?=[\[{)]|\s*$|\s+[>=])", re.sub(r"by \(.*?\)", "", expression)):
        plain = re.sub(r"_(bucket|count|sum)$", "", name)
        if "_" in name and not _KEYWORDS.fullmatch(name):
            assert plain in known, f"{name} in {expression}"
            asked.add(plain)
    assert asked, expression
    for labels in re.findall(r"by \((.*?)\)", expression):
        for label in labels.split(", "):
            assert label in {"job", "le"} | set().union(*(known[name] for name in asked)), expression
    for label in re.findall(r"\{(\w+)=", expression):
        assert any(label in known[name] for name in asked), expression
    return asked


def test_questions_are_about_metrics_that_there_are(page, known: dict[str, set[str]]) -> None:
    [block] = page(PAGE).titled("questions")
    lines = [line for line in block.text.splitlines() if line and not line.startswith("#")]
    assert len(lines) > 8
    for line in lines:
        check(line, known)


def test_alerts_are_about_metrics_that_there_are(page, known: dict[str, set[str]]) -> None:
    [block] = page(PAGE).titled("alerts.yaml")
    [group] = yaml.safe_load(block.text)["groups"]
    for rule in group["rules"]:
        assert set(rule) >= {"alert", "expr", "labels", "annotations"}
        check(rule["expr"], known)
    assert f'code="{Unavailable.code}"' in block.text


def test_the_check_of_this_test_finds_what_is_not_there(known: dict[str, set[str]]) -> None:
    with pytest.raises(AssertionError):
        check("sum by (job) (rate(http_requests[5m]))", known)
    with pytest.raises(AssertionError):
        check("sum by (jobs) (rate(http_requests_total[5m]))", known)
    with pytest.raises(AssertionError):
        check('rate(http_requests_total{code="x"}[5m])', known)


def test_local_mode_passes_the_variables_on() -> None:
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "TRACING_SAMPLE": "1", "PORT": "1"}
    assert base_environment(given).keys() >= {"OTEL_EXPORTER_OTLP_ENDPOINT"}
