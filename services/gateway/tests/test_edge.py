"""`cors`, changed headers and rewritten paths before an app that knows nothing of them: sidecar and gateway."""

import asyncio
import json
from types import SimpleNamespace

import pytest
import yaml
from aiohttp import web
from yarl import URL

from moorage.config import load as load_settings
from moorage.guard.policy import Rule
from moorage_gateway.gateway.modules import Modules
from moorage_gateway.gateway.serving import running as gateway
from moorage_gateway.sidecar.serving import load_settings as load_sidecar
from moorage_gateway.sidecar.serving import running as sidecar

USER = "3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11"
APP = "https://app.example.com"
CORS = {"origins": [APP], "credentials": True}
RULES = [
    Rule.model_validate({"methods": ["GET"], "auth": "none", **rule})
    for rule in (
        {"name": "list", "path": "/posts", "cors": CORS},
        {
            "name": "create",
            "path": "/posts",
            "methods": ["POST"],
            "auth": "required",
            "max_body": 4,
            "cors": CORS,
        },
        {"name": "own", "path": "/own"},
        {"name": "own-options", "path": "/own", "methods": ["OPTIONS"]},
        {
            "name": "changed",
            "path": "/changed",
            "auth": "required",
            "request": {"set": {"X-Source": "edge"}, "remove": ["X-Debug"]},
            "response": {"set": {"X-Note": "hi"}, "remove": ["Server", "X-Powered-By"]},
        },
        {"name": "moved", "path": "/articles/{id}", "rewrite": "/v2/posts/{id}", "cors": CORS},
        {"name": "files", "path": "/files/**", "rewrite": "/data/**"},
        {"name": "slow", "path": "/slow", "timeout_ms": 1, "cors": CORS},
        {"name": "socket", "path": "/live/{room}", "rewrite": "/ws/{room}", "cors": CORS},
    )
]


@pytest.fixture
def seen():
    return []


@pytest.fixture(params=["sidecar", "gateway"])
async def edge(request, net, policies, tmp_path, seen):
    """Either host of the proxy, in front of an app that notes what it was asked."""

    async def app(asked):
        seen.append(asked)
        if asked.raw_path.startswith("/ws/"):
            socket = web.WebSocketResponse()
            await socket.prepare(asked)
            await socket.send_str(asked.raw_path)
            await socket.close()
            return socket
        if asked.raw_path.startswith("/slow"):
            await asyncio.Event().wait()
        headers = {
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Allow-Methods": "BREW",
            "Vary": "Accept",
            "Server": "app/1",
            "X-Powered-By": "app",
        }
        status = 404 if "missing" in asked.query_string else 200
        told = {name.lower(): value for name, value in asked.headers.items()}
        body = json.dumps({"path": asked.raw_path, "method": asked.method, "headers": told})
        return web.Response(status=status, text=body, content_type="application/json", headers=headers)

    policies.write(*RULES)
    port = await net.serve(app)
    if request.param == "sidecar":
        environ = {
            "SERVER_PORT": "0",
            "ADMIN_PORT": "0",
            "MOORAGE_MODULE": "blog",
            "MOORAGE_POLICY_DIR": str(policies.folder),
            "UPSTREAM_PORT": str(port),
        }
        started = sidecar(load_sidecar(_environment(environ)))
    else:
        file = tmp_path / "gateway.yaml"
        module = {
            "namespace": "default",
            "module": "blog",
            "prefixes": ["/"],
            "upstream": f"http://127.0.0.1:{port}",
            "guarded": False,
            "policy_dir": str(policies.folder),
        }
        listen = {"host": "127.0.0.1", "port": 0}
        config = {"listen": listen, "admin": listen, "trusted_proxies": ["127.0.0.1"], "modules": [module]}
        file.write_text(yaml.safe_dump(config))
        started = gateway(Modules(file), load_settings(environ=_environment({})))
    serving = await net.start(started)
    client = await net.client()

    async def ask(method, path, **more):
        async with client.request(method, f"http://127.0.0.1:{serving.port}{path}", **more) as answer:
            return SimpleNamespace(status=answer.status, headers=answer.headers, content=await answer.read())

    ask.url, ask.client = f"http://127.0.0.1:{serving.port}", client
    return ask


def _environment(more):
    return {
        "ENVIRONMENT": "development",
        "SERVER_HOST": "127.0.0.1",
        "ADMIN_HOST": "127.0.0.1",
        "SERVER_TRUSTED_PROXIES": "127.0.0.1",
        **more,
    }


def asking(method, origin=APP):
    return {"Origin": origin, "Access-Control-Request-Method": method}


async def test_a_preflight_never_reaches_the_app(edge, seen):
    answer = await edge("OPTIONS", "/posts", headers=asking("POST"))
    assert (answer.status, answer.content, seen) == (204, b"", [])
    assert answer.headers["Access-Control-Allow-Origin"] == APP
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert answer.headers["Access-Control-Allow-Headers"] == "Authorization, Content-Type"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize(
    "origin", ["null", "https://app.example.com.evil.test", "https://app.example.com:443"]
)
async def test_a_preflight_of_another_origin_is_refused(edge, seen, origin):
    answer = await edge("OPTIONS", "/posts", headers=asking("GET", origin))
    assert (answer.status, json.loads(answer.content)["error"]["code"], seen) == (403, "cors_refused", [])
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_rule_for_options_without_cors_leaves_preflights_to_the_app(edge):
    answer = await edge("OPTIONS", "/own", headers=asking("GET"))
    assert (answer.status, answer.headers["Access-Control-Allow-Methods"]) == (200, "BREW")


async def test_what_the_app_says_of_origins_is_replaced_where_the_rule_has_cors(edge):
    answer = await edge("GET", "/posts", headers={"Origin": APP})
    assert answer.headers.getall("Access-Control-Allow-Origin") == [APP]
    assert "Access-Control-Allow-Methods" not in answer.headers
    assert answer.headers.getall("Vary") == ["Accept, Origin"]
    for sent in ({}, {"Origin": "null"}, {"Origin": "https://evil.test"}):
        answer = await edge("GET", "/posts", headers=sent)
        assert (answer.status, "Access-Control-Allow-Origin" in answer.headers) == (200, False)
        assert answer.headers.getall("Vary") == ["Accept, Origin"]


async def test_it_passes_as_it_is_where_the_rule_has_none(edge):
    answer = await edge("GET", "/own", headers={"Origin": "https://evil.test"})
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers.getall("Vary") == ["Accept"]


async def test_pages_may_read_errors_of_guard_and_app(edge, policies):
    sent = {"Origin": APP}
    answers = [
        (401, await edge("POST", "/posts", headers=sent)),
        (413, await edge("POST", "/posts", headers=sent | policies.bearer(), data=b"12345")),
        (504, await edge("GET", "/slow", headers=sent)),
        (404, await edge("GET", "/posts?missing", headers=sent)),
    ]
    for status, answer in answers:
        assert (answer.status, answer.headers.get("Access-Control-Allow-Origin")) == (status, APP)
        assert "Origin" in answer.headers["Vary"]


async def test_headers_are_changed_both_ways_and_identity_stays_the_guards(edge, policies):
    sent = {"X-Source": "client", "X-Debug": "1", "X-Moorage-User": "root"} | policies.bearer("author")
    answer = await edge("GET", "/changed", headers=sent)
    told = json.loads(answer.content)["headers"]
    assert (told["x-source"], told["x-moorage-user"]) == ("edge", USER)
    assert not {"x-debug", "authorization"} & told.keys()
    assert answer.headers["X-Note"] == "hi"
    assert not {"Server", "X-Powered-By"} & set(answer.headers)


async def test_errors_lose_fields_and_get_none(edge, policies):
    answer = await edge("GET", "/changed?missing", headers=policies.bearer())
    assert (answer.status, "X-Note" in answer.headers, "X-Powered-By" in answer.headers) == (
        404,
        False,
        False,
    )
    answer = await edge("GET", "/changed")
    assert (answer.status, "X-Note" in answer.headers) == (401, False)


@pytest.mark.parametrize(
    ("asked", "arrives"),
    [
        ("/articles/7?a=%2F&b", "/v2/posts/7?a=%2F&b"),
        ("/articles/a%3Fadmin=1%23?q=1", "/v2/posts/a%3Fadmin=1%23?q=1"),
        ("/articles/x%0d%0aInjected:1", None),
        ("/articles/..", None),
        ("/articles/%2e%2e", None),
        ("/articles/a%2fb", None),
        ("/files/a/b%20c", "/data/a/b%20c"),
        ("/files", "/data"),
        ("/posts?as=it&is", "/posts?as=it&is"),
    ],
)
async def test_the_app_sees_the_rewritten_path(edge, asked, arrives):
    async with edge.client.get(URL(edge.url + asked, encoded=True)) as answer:
        found = (await answer.json())["path"] if answer.status == 200 else None
    assert found == arrives


async def test_a_websocket_is_rewritten_too_and_its_handshake_left_alone(edge):
    async with edge.client.ws_connect(f"{edge.url}/live/red%3F", headers={"Origin": APP}) as socket:
        assert (await socket.receive()).data == "/ws/red%3F"
        assert "Access-Control-Allow-Origin" not in socket._response.headers


async def test_errors_of_the_proxy_have_every_security_header(edge):
    names = {
        "Content-Security-Policy",
        "X-Content-Type-Options",
        "X-Frame-Options",
        "Referrer-Policy",
        "Cache-Control",
    }
    answer = await edge("GET", "/nothing")
    assert answer.status == 404
    assert names <= set(answer.headers)
    assert "Strict-Transport-Security" not in answer.headers
    answer = await edge(
        "GET", "/nothing", headers={"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}
    )
    assert names | {"Strict-Transport-Security"} <= set(answer.headers)


async def test_a_module_with_its_own_guard_gets_the_preflight_as_it_came(net, seen):
    async def module(asked):
        seen.append(asked)
        return web.Response(status=204, headers={"Access-Control-Allow-Origin": APP})

    edge = await net.proxy(await net.serve(module))
    client = await net.client()
    async with client.options(f"{edge.url}/posts", headers=asking("POST")) as answer:
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, APP)
    (asked,) = seen
    assert (asked.method, asked.headers["Access-Control-Request-Method"]) == ("OPTIONS", "POST")
