"""docs/ports/cache.md and docs/ports/http-client.md are run as they are written, and list what there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moorage import Module
from moorage.assembly import Assembly
from moorage.client import errors
from moorage.client.headers import IDEMPOTENCY_HEADER, TIMEOUT_HEADER
from moorage.config import load

CACHE, CLIENT = "docs/ports/cache.md", "docs/ports/http-client.md"


@pytest.mark.postgres
@pytest.mark.parametrize("name", [CACHE, CLIENT])
def test_the_example_works(page, name: str, tmp_path: Path) -> None:
    for block in page(name).blocks:
        if block.title:
            file = tmp_path / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("name", [CACHE, CLIENT])
def test_the_metrics_are_those_of_the_page(page, name: str, tmp_path: Path) -> None:
    assembly = Assembly.of(Module("m"), load(environ={}, folder=tmp_path))
    part = "cache_" if name == CACHE else "client_"
    made = {}
    for family in assembly.metrics.registry.collect():
        if family.name.startswith(part):
            made[family.name + ("_total" if family.type == "counter" else "")] = family.type
    shown = {
        metric: row[1] for row in page(name).table("Metrics") for metric in re.findall(r"`([a-z_]+)`", row[0])
    }
    assert shown == made


def test_the_headers_of_a_call_are_those_of_the_page(page) -> None:
    named = {row[0].strip("`") for row in page(CLIENT).table("What a call carries")}
    assert {TIMEOUT_HEADER, IDEMPOTENCY_HEADER, "Authorization", "X-Request-ID", "traceparent"} == named


def test_the_errors_of_a_call_are_those_of_the_page(page) -> None:
    shown = {row[0].strip("`"): (int(row[1]), row[2].strip("`")) for row in page(CLIENT).table("Errors")}
    kinds = [errors.UpstreamError, *errors.UpstreamError.__subclasses__()]
    assert shown == {kind.__name__: (kind.status, kind.code) for kind in kinds}
