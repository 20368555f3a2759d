"""The commands as they are run: environment, signals, drain, memory."""

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest
from aiohttp import WSMsgType, web

from moorage.guard.policy import Rule
from rigs.waiting import until

IDLE_BUDGET_MIB = 43
"""Memory of the sidecar's own, before the first request. Of its resident 62 MiB about 24 are pages of libraries,
which all sidecars of a node share; see docs/sidecar-and-gateway.md."""

MEASURED = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE")}


class Process:
    def __init__(self, process):
        self.process = process
        self.lines = []
        self.ports = asyncio.get_running_loop().create_future()
        self.reading = asyncio.create_task(self._read())

    async def _read(self):
        async for line in self.process.stdout:
            self.lines.append(line.decode())
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if said.get("message") == "serving":
                self.ports.set_result((said["port"], said["admin_port"]))

    def access(self):
        """The lines of its access log."""
        lines = [json.loads(line) for line in self.lines]
        return [line for line in lines if line["logger"] == "moorage.access"]

    async def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 20)


@asynccontextmanager
async def started(*arguments, measured=MEASURED, **environ):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "moorage_gateway",
        *arguments,
        env={**measured, "PATH": "/usr/bin", "LOGGING_FORMAT": "json", **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Process(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await running.reading


def sidecar(policies, port, **more):
    return started(
        "sidecar",
        SERVER_HOST="127.0.0.1",
        SERVER_PORT="0",
        ADMIN_HOST="127.0.0.1",
        ADMIN_PORT="0",
        MOORAGE_MODULE="blog",
        MOORAGE_POLICY_DIR=str(policies.folder),
        UPSTREAM_PORT=str(port),
        **more,
    )


@pytest.fixture
def open_policy(policies):
    policies.write(Rule(name="all", path="/**", auth="none", max_body=1 << 30))
    return policies


async def test_a_drain_keeps_order(net, open_policy):
    """Not ready first, still serving; what is under way is finished; WebSockets take leave with 1001."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def app(request):
        if request.path == "/ws":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for _ in socket:
                pass
            return socket
        if request.path == "/slow":
            begun.set()
            await go_on.wait()
        return web.Response(text="done")

    port = await net.serve(app)
    client = await net.client()
    async with sidecar(
        open_policy, port, SERVER_SHUTDOWN_GRACE="60s", SERVER_SHUTDOWN_TIMEOUT="70s"
    ) as process:
        at, admin = await asyncio.wait_for(process.ports, 20)
        async with client.get(f"http://127.0.0.1:{admin}/ready") as response:
            assert response.status == 200, await response.text()
        socket = await client.ws_connect(f"http://127.0.0.1:{at}/ws")
        slow = asyncio.create_task(client.get(f"http://127.0.0.1:{at}/slow"))
        await begun.wait()
        process.process.send_signal(signal.SIGTERM)

        async def draining():
            async with client.get(f"http://127.0.0.1:{admin}/ready") as response:
                return (response.status, (await response.json())["status"]) == (503, "draining")

        await until(draining)
        async with client.get(f"http://127.0.0.1:{at}/other") as response:
            assert response.status == 200, "requests still come until the edge has noticed"
        process.process.send_signal(signal.SIGTERM)  # enough of the grace period

        async def refused():
            try:
                async with client.get(f"http://127.0.0.1:{at}/late", headers={"Connection": "close"}):
                    return False
            except aiohttp.ClientConnectorError:
                return True

        await until(refused)
        assert not slow.done()
        go_on.set()
        assert await (await slow).text() == "done"
        message = await asyncio.wait_for(socket.receive(), 30)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
        await socket.close()
        assert await asyncio.wait_for(process.process.wait(), 20) == 0, "".join(process.lines)


async def test_large_bodies_pass_both_ways_in_flat_memory_and_idle_is_small(net, open_policy):
    size, piece = 128 << 20, b"x" * (1 << 16)

    async def app(request):
        seen = 0
        async for data in request.content.iter_any():
            seen += len(data)
        assert seen == (size if request.method == "POST" else 0)
        response = web.StreamResponse(headers={"Content-Length": str(size)})
        await response.prepare(request)
        for _ in range(size // len(piece)):
            await response.write(piece)
        return response

    async def body():
        for _ in range(size // len(piece)):
            yield piece

    client = await net.client()
    # Without what measures the tests, which holds another 5 MiB.
    async with sidecar(open_policy, await net.serve(app), measured={}, ENVIRONMENT="development") as process:
        at, _ = await asyncio.wait_for(process.ports, 20)
        memory = psutil.Process(process.process.pid).memory_full_info
        idle = memory().uss
        assert idle < IDLE_BUDGET_MIB << 20, f"{idle >> 20} MiB"
        async with client.post(f"http://127.0.0.1:{at}/", data=body()) as response:
            assert response.status == 200
            received = peak = 0
            async for data in response.content.iter_any():
                received += len(data)
                if received % (8 << 20) < len(data):
                    peak = max(peak, memory().uss)
        assert received == size
        assert peak - idle < 24 << 20, f"{(peak - idle) >> 20} MiB more than idle"
        assert await process.stop() == 0


async def test_what_the_path_captures_as_a_secret_is_not_in_the_log(net, policies):
    async def app(request):
        return web.Response(text=request.path)

    policies.write(Rule(name="reset", path="/reset/{reset_token}", auth="none"))
    client = await net.client()
    async with sidecar(policies, await net.serve(app)) as process:
        at, _ = await asyncio.wait_for(process.ports, 20)
        async with client.get(f"http://127.0.0.1:{at}/reset/hunter2?a=hunter2") as response:
            assert await response.text() == "/reset/hunter2"
        assert await process.stop() == 0
    (access,) = process.access()
    assert (access["path"], access["status"]) == ("/reset/{reset_token}", 200)
    assert "hunter2" not in "".join(process.lines)


async def test_the_gateway_serves_its_file(net, tmp_path):
    async def app(request):
        return web.Response(text="blog")

    file = Path(tmp_path / "gateway.json")
    entry = {"namespace": "default", "module": "blog", "prefixes": ["/blog"], "guarded": True}
    entry["upstream"] = f"http://127.0.0.1:{await net.serve(app)}"
    file.write_text(json.dumps({"listen": {"port": 0}, "admin": {"port": 0}, "modules": [entry]}))
    client = await net.client()
    async with started("gateway", "--config", str(file), ENVIRONMENT="development") as process:
        at, _ = await asyncio.wait_for(process.ports, 20)
        async with client.get(f"http://127.0.0.1:{at}/blog?token=secret") as response:
            assert await response.text() == "blog"
        assert await process.stop() == 0
    (access,) = process.access()
    assert (access["path"], access["status"], access["module"]) == ("/blog", 200, "default/blog")
    assert "secret" not in "".join(process.lines)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("gateway",), "--config"),
        (("gateway", "--config", "/nowhere"), "Error: /nowhere: No such file or directory"),
        (("sidecar",), "Error: MOORAGE_MODULE is not set"),
    ],
)
async def test_what_is_missing_is_said_and_ends_the_process(arguments, complaint):
    async with started(*arguments) as process:
        assert await asyncio.wait_for(process.process.wait(), 20) != 0
        await process.reading
        assert complaint in "".join(process.lines)
        assert "Traceback" not in "".join(process.lines)


async def test_a_port_in_use_is_said(net, open_policy):
    async def app(request):
        return web.Response()

    taken = await net.serve(app)
    async with started(
        "sidecar",
        SERVER_PORT=str(taken),
        SERVER_HOST="127.0.0.1",
        ADMIN_HOST="127.0.0.1",
        ADMIN_PORT="0",
        MOORAGE_MODULE="blog",
        MOORAGE_POLICY_DIR=str(open_policy.folder),
    ) as process:
        assert await asyncio.wait_for(process.process.wait(), 20) == 1
        await process.reading
        assert f"cannot listen on 127.0.0.1:{taken}" in "".join(process.lines)
