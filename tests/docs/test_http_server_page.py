"""docs/ports/http-server.md is run as it is written, and its tables are those of the code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from calls import purge, token

from moorage.http import compression, idempotency, streams, websocket
from moorage.http.websocket import Sockets
from moorage.metrics import Metrics
from runup import Up

PAGE = "docs/ports/http-server.md"


def write(page, folder: Path) -> None:
    """The example's files."""
    for block in page(PAGE).blocks:
        if block.title:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)


@pytest.mark.postgres
def test_the_example_works(page, tmp_path: Path) -> None:
    write(page, tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.local
async def test_the_example_works_through_the_gateway_of_local_mode(page, tmp_path: Path) -> None:
    """Keys, tags, streams and WebSockets pass through, a page's own origin included."""
    write(page, tmp_path / "tickets")
    with Up("-o", "json", "tickets", cwd=tmp_path) as up:
        up.ready()
        headers = {"Authorization": f"Bearer {token(up, 'ada', 'author')}"}
        async with aiohttp.ClientSession(up.url, headers=headers) as session:
            for replayed in (None, "true"):
                given = {"Idempotency-Key": "a"}
                async with session.post("/tickets", json={"title": "A lamp"}, headers=given) as made:
                    assert (made.status, made.headers.get("Idempotency-Replayed")) == (201, replayed)
                    here = f"/tickets/{(await made.json())['id']}"
            async with session.get(here) as read:
                given = {"If-None-Match": read.headers["ETag"]}
            async with session.get(here, headers=given) as again:
                assert again.status == 304
            async with session.get("/tickets/export") as export:
                assert (await export.read()).count(b"\n") == 1
            async with session.ws_connect(f"{here}/talk", origin=up.url) as socket:
                await socket.send_json("hello")
                assert await socket.receive_json() == "A lamp: hello"
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await session.ws_connect(f"{here}/talk", origin="https://evil.example")
            async with session.get("/tickets/docs") as docs:
                assert "script-src 'sha256-" in docs.headers["Content-Security-Policy"]
        assert up.interrupt() == 0
    purge(tmp_path)


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
