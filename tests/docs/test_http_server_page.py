"""docs/ports/http-server.md is run as it is written, and its tables are those of the code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moorage.http import compression, idempotency, streams, websocket
from moorage.http.websocket import Sockets
from moorage.metrics import Metrics

PAGE = "docs/ports/http-server.md"


@pytest.mark.postgres
def test_the_example_works(page, tmp_path: Path) -> None:
    for block in page(PAGE).blocks:
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


def test_the_metrics_are_those_of_the_page(page) -> None:
    metrics = Metrics(module="tickets", version="1", revision="r")
    Sockets(metrics)
    found = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in metrics.registry.collect()
        if family.name.startswith("websocket")
    }
    assert found == {row[0].strip("`"): row[1] for row in page(PAGE).table("Metrics")}


def test_the_codes_are_those_of_the_code(page) -> None:
    documented = re.findall(r"^\| ([\d+ a-z]+) \|", websocket.__doc__ or "", re.MULTILINE)
    shown = [row[0] for row in page(PAGE).table("WebSockets")]
    assert shown == [code for code in documented if code[0].isdigit()]


def test_the_bounds_are_those_of_the_code(page) -> None:
    shown = page(PAGE)
    assert f"{idempotency.MAX_BODY // 1024} KiB are not kept" in shown.section("Idempotency keys")
    assert f"from {compression.LEAST // 1024} KiB" in shown.section("Compression")
    assert f"a comment every {streams.HEARTBEAT_S:g} s" in shown.section("What goes out")
    sockets = shown.section("WebSockets")
    assert f"every {websocket.HEARTBEAT_S:g} s" in sockets
    assert f"waits up to {websocket.SLOW_S:g} s" in sockets
