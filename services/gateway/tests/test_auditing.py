"""The audit record of an app that knows nothing of it: sidecar, and gateway of local mode."""

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
import yaml
from aiohttp import web

from moorage.config import load as load_settings
from moorage.guard.limits.document import Limit, Limits
from moorage.guard.policy import Rule
from moorage_gateway.gateway.modules import Modules
from moorage_gateway.gateway.serving import running as gateway
from moorage_gateway.sidecar.serving import load_settings as load_sidecar
from moorage_gateway.sidecar.serving import running as sidecar

USER = "3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11"
ONCE = Limits(rule=Limit(count=1, seconds=3600, scope="rule/once"))
RULES = [
    Rule.model_validate(
        {
            "path": f"/{mode}/{name}/{{id}}",
            "name": f"{name}-{mode}",
            "audit": mode if mode != "none" else None,
            **part,
        }
    )
    for mode in ("none", "failures", "all")
    for name, part in {
        "app": {},
        "denied": {"permission": "blog.post.read"},
        "small": {"max_body": 4},
        "slow": {"timeout_ms": 100},
        "wait": {},
        "gone": {},
        "once": {"auth": "none", "limits": ONCE},
        "stream": {"auth": "none"},
        "ws": {"auth": "none", "methods": ["GET"]},
        "cors": {"auth": "none", "methods": ["GET"], "cors": {"origins": ["https://app.example.com"]}},
    }.items()
]


class App:
    """What stands behind, and which paths it was asked for."""

    def __init__(self):
        self.asked = []
        self.go_on = asyncio.Event()

    async def __call__(self, request):
        self.asked.append(request.path)
        _, _, name, last = request.path.split("/")
        if name == "ws" and last == "open":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.receive()
            return socket
        if name in ("slow", "wait"):
            await self.go_on.wait()
        if name == "gone":
            request.transport.abort()
        if last == "malformed":
            request.transport.write(b"HTTP/1.1 200 OK\r\nX-A: a\x01b\r\nContent-Length: 0\r\n\r\n")
            await self.go_on.wait()
        if name == "stream":
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"first")
            await self.go_on.wait()
            return response
        return web.Response(status=int(last) if last.isdecimal() else 200, text="fine")


@pytest.fixture
def app():
    return App()


@pytest.fixture(params=["sidecar", "gateway"])
async def edge(request, net, policies, tmp_path, app):
    """``await edge(record)``: either host of the proxy, in front of the app."""
    policies.write(*RULES, grants={"author": ["blog.post.read"]})
    port = await net.serve(app)
    environ = {"ENVIRONMENT": "development", "SERVER_HOST": "127.0.0.1", "ADMIN_HOST": "127.0.0.1"}

    async def start(record=tmp_path / "audit.jsonl"):
        there = {**environ, "GUARD_AUDIT_FILE": str(record)}
        if request.param == "sidecar":
            place = {"MOORAGE_MODULE": "blog", "MOORAGE_POLICY_DIR": str(policies.folder)}
            ports = {"SERVER_PORT": "0", "ADMIN_PORT": "0", "UPSTREAM_PORT": str(port)}
            started = sidecar(load_sidecar(there | place | ports))
        else:
            module = {
                **{"namespace": "default", "module": "blog", "prefixes": ["/"], "guarded": False},
                **{"upstream": f"http://127.0.0.1:{port}", "policy_dir": str(policies.folder)},
            }
            listen = {"host": "127.0.0.1", "port": 0}
            file = tmp_path / "gateway.yaml"
            file.write_text(yaml.safe_dump({"listen": listen, "admin": listen, "modules": [module]}))
            started = gateway(Modules(file), load_settings(environ=there))
        serving = await net.start(started)
        client = await net.client()
        base = f"http://127.0.0.1:{serving.port}"

        async def ask(method, path, **more):
            async with client.request(method, base + path, **more) as answer:
                body = await answer.read()
                entries = told(record)
                code = json.loads(body)["error"]["code"] if body.startswith(b'{"error"') else None
                return SimpleNamespace(
                    status=answer.status, code=code, headers=answer.headers, entries=entries
                )

        async def metric(name):
            async with client.get(f"http://127.0.0.1:{serving.admin_port}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

        return SimpleNamespace(ask=ask, url=base, client=client, record=record, metric=metric)

    return start


def told(record):
    if not Path(record).is_file():
        return []
    return [json.loads(line) for line in Path(record).read_text().splitlines()]


async def eventually(holds):
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("path", "status", "outcome", "code"),
    [
        ("app/7", 7, "success", None),
        ("app/404", 404, "failed", None),
        ("app/403", 403, "denied", None),
        ("app/429", 429, "failed", None),
        ("app/500", 500, "failed", None),
        ("denied/7", 403, "denied", "forbidden"),
        ("small/7", 413, "failed", "too_large"),
        ("slow/7", 504, "failed", "timeout"),
        ("gone/7", 502, "failed", "bad_gateway"),
        ("app/malformed", 502, "failed", "bad_gateway"),
    ],
)
@pytest.mark.parametrize("mode", ["none", "failures", "all"])
async def test_the_entry_is_there_when_the_answer_is(edge, policies, mode, path, status, outcome, code):
    host = await edge()
    if path == "app/7":
        path, status = "app/x", 200
    headers = {**policies.bearer("reader", tenant="acme"), "Cookie": "a=s3cret"}
    answer = await host.ask("POST", f"/{mode}/{path}?q=s3cret", data=b"12345", headers=headers)
    assert answer.status == status
    if mode == "none" or (mode == "failures" and outcome == "success"):
        assert answer.entries == []
        return
    (entry,) = answer.entries
    name, _, last = path.partition("/")
    assert entry["user_id"] == USER
    assert entry["action"] == ("blog.post.read" if name == "denied" else f"blog.{name}-{mode}")
    assert (entry["resource"], entry["resource_id"]) == (f"default/blog/{mode}/{name}/{{id}}", last)
    assert entry["request_id"] == answer.headers["X-Request-ID"]
    assert entry["metadata"] == {
        "method": "POST",
        "path": f"/{mode}/{path}",
        "rule": f"{name}-{mode}",
        "status": str(status),
        "outcome": outcome,
        **({"code": code} if code else {}),
        "tenant": "acme",
    }
    assert "s3cret" not in json.dumps(entry)


async def test_a_request_without_a_token_and_what_a_limit_refuses(edge):
    host = await edge()
    assert [entry["metadata"]["code"] for entry in (await host.ask("GET", "/all/app/x")).entries] == [
        "unauthenticated"
    ]
    assert [(await host.ask("GET", "/all/once/x")).status for _ in range(3)] == [200, 429, 429]
    preflight = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "GET"}
    assert (await host.ask("OPTIONS", "/all/cors/x", headers=preflight)).status == 204
    assert (await host.ask("GET", "/all/unknown")).status == 404
    assert [entry["metadata"]["status"] for entry in told(host.record)] == ["401", "200"]


@pytest.mark.parametrize("mode", ["failures", "all"])
async def test_a_client_that_does_not_wait_is_499(edge, policies, app, mode):
    host = await edge()
    asking = asyncio.create_task(host.ask("GET", f"/{mode}/wait/7", headers=policies.bearer("reader")))
    await eventually(lambda: app.asked)
    asking.cancel()
    await eventually(lambda: told(host.record))
    (entry,) = told(host.record)
    assert (entry["user_id"], entry["metadata"]["status"], entry["metadata"]["outcome"]) == (
        USER,
        "499",
        "failed",
    )


async def test_a_stream_is_recorded_before_its_first_byte(edge, app):
    host = await edge()
    async with host.client.get(f"{host.url}/all/stream/x") as answer:
        assert await answer.content.readany() == b"first"
        (entry,) = told(host.record)
        app.go_on.set()
    assert entry["metadata"]["status"] == "200"
    assert len(told(host.record)) == 1


async def test_a_websocket_is_recorded_with_the_status_of_its_handshake(edge):
    host = await edge()
    async with host.client.ws_connect(f"{host.url}/all/ws/open") as socket:
        assert [entry["metadata"]["status"] for entry in told(host.record)] == ["101"]
        await socket.close()
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await host.client.ws_connect(f"{host.url}/failures/ws/418")
    assert [entry["metadata"]["status"] for entry in told(host.record)] == ["101", "418"]


@pytest.mark.parametrize("path", ["app/x", "stream/x", "ws/open"])
async def test_what_cannot_be_recorded_is_not_passed_on_and_then_not_asked_for(edge, policies, app, path):
    host = await edge(Path("/dev/full"))
    for _ in range(2):
        if path.startswith("ws"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await host.client.ws_connect(f"{host.url}/all/{path}")
            assert refused.value.status == 503
        else:
            answer = await host.ask("GET", f"/all/{path}", headers=policies.bearer("reader"))
            assert (answer.status, answer.code) == (503, "audit_unavailable")
    assert app.asked == [f"/all/{path}"], "nobody knew before the first one"
    assert await host.metric("audit_failed_total") == 1


async def test_of_a_broken_trail_failures_lose_their_answers_and_refusals_stay(edge, policies):
    host = await edge(Path("/dev/full"))
    reader = policies.bearer("reader")
    assert (await host.ask("GET", "/failures/app/x", headers=reader)).status == 200
    assert (await host.ask("GET", "/failures/app/404", headers=reader)).code == "audit_unavailable"
    assert (await host.ask("GET", "/failures/app/403", headers=reader)).status == 403
    for mode in ("failures", "all"):
        assert (await host.ask("GET", f"/{mode}/denied/x", headers=reader)).code == "forbidden"
        assert (await host.ask("GET", f"/{mode}/app/x")).code == "unauthenticated"


async def test_a_sidecars_entries_are_lines_of_its_output_where_no_file_is_named(net, policies, app, capfd):
    policies.write(*RULES)
    environ = {
        **{"SERVER_HOST": "127.0.0.1", "SERVER_PORT": "0", "ADMIN_HOST": "127.0.0.1", "ADMIN_PORT": "0"},
        **{"MOORAGE_MODULE": "blog", "MOORAGE_POLICY_DIR": str(policies.folder), "LOGGING_FORMAT": "json"},
        "UPSTREAM_PORT": str(await net.serve(app)),
    }
    serving = await net.start(sidecar(load_sidecar(environ)))
    client = await net.client()
    async with client.get(f"http://127.0.0.1:{serving.port}/all/app/x") as answer:
        assert answer.status == 401
    (line,) = [json.loads(line) for line in capfd.readouterr().out.splitlines() if "moorage.audit" in line]
    assert (line["service"], line["entry"]["metadata"]["code"]) == ("blog", "unauthenticated")


# -- the process as it is run, with an output of its own


@asynccontextmanager
async def process(policies, port):
    """A sidecar's process: itself, its port, and the file descriptor at which its lines can be read."""
    reader, writer = os.pipe()
    environ = {
        **{"PATH": "/usr/bin", "LOGGING_FORMAT": "json", "SERVER_HOST": "127.0.0.1", "SERVER_PORT": "0"},
        **{
            "ADMIN_HOST": "127.0.0.1",
            "ADMIN_PORT": "0",
            "MOORAGE_MODULE": "blog",
            "UPSTREAM_PORT": str(port),
        },
        "MOORAGE_POLICY_DIR": str(policies.folder),
    }
    command = (sys.executable, "-m", "moorage_gateway", "sidecar")
    running = await asyncio.create_subprocess_exec(
        *command, env=environ, stdout=writer, stderr=asyncio.subprocess.DEVNULL
    )
    os.close(writer)
    try:
        said = {}
        while said.get("message") != "serving":
            said = json.loads(await asyncio.to_thread(line_of, reader))
        yield running, said["port"], reader
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


def line_of(descriptor):
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        assert byte, "the process has ended"
        line += byte
    return line


async def test_who_has_an_answer_is_on_record_though_the_process_is_killed_at_once(net, policies, app):
    policies.write(*RULES)
    client = await net.client()
    async with process(policies, await net.serve(app)) as (running, port, reader):
        async with client.get(f"http://127.0.0.1:{port}/all/cors/x") as answer:
            running.kill()
            assert answer.status == 200
        await running.wait()
        left = os.read(reader, 1 << 16).decode().splitlines()
        os.close(reader)
    (entry,) = [json.loads(line)["entry"] for line in left if "moorage.audit" in line]
    assert (entry["resource_id"], entry["metadata"]["outcome"]) == ("x", "success")


async def test_when_nobody_reads_its_lines_any_more_nothing_is_passed_on(net, policies, app):
    policies.write(*RULES)
    client = await net.client()
    async with process(policies, await net.serve(app)) as (_, port, reader):
        os.close(reader)
        for path, status in (("/all/cors/x", 503), ("/failures/cors/x", 200), ("/all/app/x", 401)):
            async with client.get(f"http://127.0.0.1:{port}{path}") as answer:
                assert answer.status == status, path
    assert app.asked == ["/failures/cors/x"]
