"""One request through a proxy: a span where it comes in, one where it is passed on, and the app is told which."""

import asyncio

import pytest
from aiohttp import web

from moorage import trace as traces
from moorage.guard.policy import Rule
from moorage_gateway.sidecar.serving import load_settings, running
from rigs import otlp

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    import os

    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")


async def app(request):
    if request.path == "/posts/slow":
        await asyncio.sleep(5)
    if request.path == "/posts/broken":
        return web.Response(status=503)
    return web.json_response({name.lower(): value for name, value in request.headers.items()})


@pytest.fixture
async def sidecar(net, policies):
    """A function that starts a sidecar that traces to *url*, and gives its own."""
    policies.write(
        Rule(name="read", methods=["GET"], path="/posts/{id}", auth="none", timeout_ms=300),
        Rule(name="write", methods=["PUT"], path="/posts/{id}"),
    )
    port = await net.serve(app)

    async def start(url, **more):
        environ = {
            "SERVER_HOST": "127.0.0.1",
            "SERVER_PORT": "0",
            "ADMIN_HOST": "127.0.0.1",
            "ADMIN_PORT": "0",
            "SERVER_SHUTDOWN_GRACE": "0",
            "MOORAGE_MODULE": "blog",
            "MOORAGE_POLICY_DIR": str(policies.folder),
            "UPSTREAM_PORT": str(port),
            **({"TRACING_OTLP_ENDPOINT": url} if url else {}),
            **more,
        }
        started = await net.start(running(load_settings(environ)))
        return f"http://127.0.0.1:{started.port}", port

    return start


@pytest.fixture
async def collector():
    async with otlp.collecting() as collector:
        yield collector


async def test_a_request_has_a_span_at_both_sides_of_the_sidecar(collector, sidecar, net):
    url, port = await sidecar(collector.url)
    client = await net.client()
    sent = {"traceparent": PARENT, "tracestate": "a=1"}
    async with client.get(url + "/posts/7?token=hunter2", headers=sent) as response:
        told = await response.json()
    onward, inward = await collector.wait(2)
    assert (inward.name, inward.kind, inward.service) == ("GET /posts/{id}", "server", "blog-sidecar")
    assert (onward.name, onward.kind) == ("GET", "client")
    assert inward.trace_id == onward.trace_id == PARENT.split("-")[1]
    assert (inward.parent_id, onward.parent_id) == (PARENT.split("-")[2], inward.span_id)
    assert told["traceparent"] == f"00-{inward.trace_id}-{onward.span_id}-01"
    assert told["tracestate"] == inward.state == "a=1"
    assert (
        inward.attributes.items()
        >= {
            "http.request.method": "GET",
            "http.route": "/posts/{id}",
            "http.response.status_code": 200,
            "url.path": "/posts/7",
            "url.scheme": "http",
        }.items()
    )
    assert onward.attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "server.address": "127.0.0.1",
        "server.port": port,
        "peer.service": "default/blog",
    }
    assert "hunter2" not in repr(collector.spans)


async def test_a_refusal_is_no_failure_and_a_timeout_is(collector, sidecar, net):
    url, _ = await sidecar(collector.url)
    client = await net.client()
    async with client.put(url + "/posts/7") as response:
        assert response.status == 401
    async with client.get(url + "/posts/slow") as response:
        assert response.status == 504
    async with client.get(url + "/nowhere") as response:
        assert response.status == 404
    await collector.wait(4)
    found = {
        span.name: (span.failed, span.attributes["error.type"], span.attributes["http.response.status_code"])
        for span in collector.spans
        if span.kind == "server"
    }
    assert found == {
        "PUT /posts/{id}": (False, "unauthenticated", 401),
        "GET /posts/{id}": (True, "timeout", 504),
        "GET": (False, "not_found", 404),
    }
    [onward] = [span for span in collector.spans if span.kind == "client"]
    assert onward.failed


async def test_an_upstreams_failure_is_one_at_both_sides(collector, sidecar, net):
    url, _ = await sidecar(collector.url)
    client = await net.client()
    async with client.get(url + "/posts/broken") as response:
        assert response.status == 503
    await collector.wait(2)
    assert {(span.kind, span.failed, span.attributes["error.type"]) for span in collector.spans} == {
        ("client", True, "503"),
        ("server", True, "503"),
    }


async def test_without_a_collector_traces_still_pass(sidecar, net):
    url, _ = await sidecar(None)
    client = await net.client()
    async with client.get(url + "/posts/7", headers={"traceparent": PARENT}) as response:
        told = traces.parse((await response.json())["traceparent"])
    assert (told.trace_id, told.flags) == (PARENT.split("-")[1], "01")
    async with client.get(url + "/posts/7", headers={"traceparent": "nonsense"}) as response:
        told = traces.parse((await response.json())["traceparent"])
    assert told is not None
    assert not told.sampled
