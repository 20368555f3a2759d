"""The guard before an app that does not know Moorage: what it enforces, tells the app, and reports."""

import asyncio
import socket

import aiohttp
import jwt
import pytest
from aiohttp import web
from key_server import KeyServer

from moorage.config import ConfigError
from moorage.guard.policy import Rule
from moorage.guard.tokens import LEEWAY
from moorage.testing import PolicyStream
from moorage_gateway.sidecar.serving import load_settings, running

USER = "3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11"
RULES = (
    Rule(name="list", methods=["GET"], path="/posts", auth="none"),
    Rule(name="maybe", methods=["GET"], path="/maybe", auth="optional"),
    Rule(name="me", methods=["GET"], path="/me"),
    Rule(name="create", methods=["POST"], path="/posts", permission="blog.post.create", max_body=10),
    Rule(name="edit", methods=["PUT"], path="/posts/{id}", permission="blog.post.edit"),
    Rule(name="mine", methods=["GET"], path="/users/{id}", permission="blog.user.read"),
    Rule(name="slow", methods=["GET"], path="/slow", auth="none", timeout_ms=200),
    Rule(name="socket", methods=["GET"], path="/ws"),
)
GRANTS = {"author": ["blog.post.create", "blog.post.edit", "blog.user.read"]}
CONDITIONS = {
    "blog_post_edit": "resource.author_id == user.id",
    "blog_user_read": "request.params['id'] == user.id",
}


async def app(request):
    if request.path == "/slow":
        await asyncio.sleep(5)
    if request.path == "/unready":
        return web.Response(status=503)
    return web.json_response(
        {
            "path": request.raw_path,
            "body": (await request.read()).decode(),
            "headers": {name.lower(): value for name, value in request.headers.items()},
        }
    )


def environment(policies, port, **more):
    return {
        "ENVIRONMENT": "development",
        "SERVER_HOST": "127.0.0.1",
        "SERVER_PORT": "0",
        "ADMIN_HOST": "127.0.0.1",
        "ADMIN_PORT": "0",
        "MOORAGE_NAMESPACE": "default",
        "MOORAGE_MODULE": "blog",
        "MOORAGE_REVISION": "r7",
        "MOORAGE_POLICY_DIR": str(policies.folder),
        "UPSTREAM_PORT": str(port),
        **more,
    }


class Sidecar:
    def __init__(self, running, client):
        self.url = f"http://127.0.0.1:{running.port}"
        self.admin = f"http://127.0.0.1:{running.admin_port}"
        self.client = client

    async def __call__(self, method, path, **request):
        async with self.client.request(method, self.url + path, **request) as response:
            return response.status, await response.json(), response.headers

    async def ask(self, path):
        async with self.client.get(self.admin + path) as response:
            text = await response.text()
            return response.status, (await response.json()) if text.startswith("{") else text


@pytest.fixture
async def sidecar(net, policies):
    policies.write(*RULES, grants=GRANTS, **CONDITIONS)
    settings = load_settings(environment(policies, await net.serve(app)))
    return Sidecar(await net.start(running(settings)), await net.client())


async def test_an_undeclared_path_is_404_and_another_method_405(sidecar):
    status, body, headers = await sidecar("GET", "/admin")
    assert (status, body["error"]["code"]) == (404, "not_found")
    assert body["error"]["request_id"] == headers["X-Request-ID"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    status, _, headers = await sidecar("DELETE", "/posts")
    assert (status, headers["Allow"]) == (405, "GET, HEAD, POST")


async def test_without_a_token_401_and_without_the_permission_403(sidecar, policies):
    status, _, headers = await sidecar("GET", "/me")
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    status, body, _ = await sidecar("POST", "/posts", headers=policies.bearer("reader"))
    assert (status, body["error"]["details"]) == (403, {"permission": "blog.post.create"})


async def test_the_app_gets_the_identity_instead_of_the_token(sidecar, policies):
    forged = {"X-Moorage-User": "root", "x_moorage_roles": "admin", "X-User-Id": "root"}
    status, seen, _ = await sidecar(
        "GET", "/me", headers=policies.bearer("author", "a,b", tenant="acme") | forged
    )
    assert status == 200
    told = seen["headers"]
    assert told["x-moorage-user"] == USER
    assert told["x-moorage-roles"] == "author,a%2Cb"
    assert told["x-moorage-tenant"] == "acme"
    assert "authorization" not in told
    assert not any("root" in value or "admin" in value for value in told.values())


async def test_an_anonymous_request_has_no_identity_at_all(sidecar, policies):
    for path in ("/posts", "/maybe"):
        forged = {"X-Moorage-User": "root", "X-Moorage-Tenant": "acme", "X-Moorage-Roles": "admin"}
        status, seen, _ = await sidecar("GET", path, headers=forged)
        assert status == 200
        assert not any(name.startswith("x-moorage") for name in seen["headers"])
    _, seen, _ = await sidecar("GET", "/posts", headers=policies.bearer("author"))
    assert "authorization" not in seen["headers"], "`auth: none` ignores the token, the app does not get it"


async def test_a_condition_on_the_request_is_judged(sidecar, policies):
    assert (await sidecar("GET", f"/users/{USER}", headers=policies.bearer("author")))[0] == 200
    assert (await sidecar("GET", "/users/other", headers=policies.bearer("author")))[0] == 403


async def test_a_condition_on_the_resource_cannot_be_judged_here_and_denies(sidecar, policies):
    status, body, _ = await sidecar("PUT", "/posts/1", headers=policies.bearer("author"))
    assert (status, body["error"]["code"]) == (503, "missing_loader")
    _, policy = await sidecar.ask("/policy")
    assert policy["missing_loaders"] == ["edit"]
    assert policy["unbound_rules"] == []


async def test_the_rules_body_limit_holds_for_lengths_and_for_streams(sidecar, policies):
    bearer = policies.bearer("author")
    assert (await sidecar("POST", "/posts", headers=bearer, data=b"x" * 10))[0] == 200
    status, body, _ = await sidecar("POST", "/posts", headers=bearer, data=b"x" * 11)
    assert (status, body["error"]["details"]) == (413, {"limit": 10})

    async def stream():
        for _ in range(6):
            yield b"xx"
            await asyncio.sleep(0.01)

    status, body, headers = await sidecar("POST", "/posts", headers=bearer, data=stream())
    assert (status, body["error"]["code"]) == (413, "too_large")
    assert headers["Connection"] == "close"


async def test_the_rules_timeout_holds(sidecar):
    status, body, _ = await sidecar("GET", "/slow")
    assert (status, body["error"]["code"]) == (504, "timeout")


async def test_a_websocket_needs_the_token_like_any_request(net, policies):
    async def handler(request):
        socket_ = web.WebSocketResponse()
        await socket_.prepare(request)
        await socket_.send_str(request.headers["X-Moorage-User"])
        return socket_

    policies.write(*RULES, grants=GRANTS, **CONDITIONS)
    settings = load_settings(environment(policies, await net.serve(handler)))
    url = f"http://127.0.0.1:{(await net.start(running(settings))).port}/ws"
    client = await net.client()
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    async with client.get(url, headers=handshake) as response:
        assert response.status == 401
    async with client.ws_connect(url, headers=policies.bearer("author")) as opened:
        assert (await opened.receive()).data == USER


async def test_a_new_policy_is_in_force_within_a_second(sidecar, policies):
    assert (await sidecar("GET", "/new"))[0] == 404
    policies.write(Rule(name="new", path="/new", auth="none"))
    for _ in range(40):
        if (await sidecar("GET", "/new"))[0] == 200:
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("the new policy is not in force after 2 s")
    assert (await sidecar("GET", "/posts"))[0] == 404


async def test_without_a_policy_every_request_is_503_and_the_sidecar_is_not_ready(net, policies):
    settings = load_settings(environment(policies, await net.serve(app)))
    sidecar = Sidecar(await net.start(running(settings)), await net.client())
    status, body, _ = await sidecar("GET", "/posts")
    assert (status, body["error"]["code"]) == (503, "no_policy")
    assert (await sidecar.ask("/healthz"))[0] == 200
    status, ready = await sidecar.ask("/ready")
    assert status == 503
    assert ready["checks"]["policy"]["ok"] is False
    assert ready["checks"]["app"]["ok"] is True
    _, policy = await sidecar.ask("/policy")
    assert policy["sequence"] is None
    assert "cannot be read" in policy["error"]


async def test_the_policy_report_has_what_the_operator_reads(sidecar):
    _, policy = await sidecar.ask("/policy")
    assert (policy["namespace"], policy["module"], policy["revision"]) == ("default", "blog", "r7")
    assert (policy["sequence"], policy["error"]) == (1, None)
    assert policy["rules"] == sorted(rule.name for rule in RULES)
    assert isinstance(policy["bypassable"], list)


async def test_metrics_are_counted_by_the_rules_path(sidecar):
    await sidecar("GET", "/posts")
    await sidecar("GET", "/users/somebody-in-particular")
    _, text = await sidecar.ask("/metrics")
    assert 'http_requests_total{method="GET",route="/posts",status="200"} 1.0' in text
    assert "somebody" not in text  # digits could be in any number of the page


# --- the app's probes through the admin port


async def test_probes_of_the_app_ask_its_paths(net, policies):
    asked = []

    async def handler(request):
        asked.append(request.raw_path)
        return web.Response(status={"/live": 200, "/ready?deep=1": 503, "/up": 302}[request.raw_path])

    policies.write(*RULES, grants=GRANTS, **CONDITIONS)
    settings = load_settings(
        environment(
            policies,
            await net.serve(handler),
            UPSTREAM_HEALTH_PATH="/live",
            UPSTREAM_READY_PATH="/ready?deep=1",
            UPSTREAM_STARTUP_PATH="/up",
        )
    )
    sidecar = Sidecar(await net.start(running(settings)), await net.client())
    assert (await sidecar.ask("/app/healthz"))[0] == 200
    assert (await sidecar.ask("/app/startup"))[0] == 200, "kubelet takes 200 to 399"
    status, answer = await sidecar.ask("/app/ready")
    assert (status, answer["error"]) == (503, "the app answered 503 to /ready?deep=1")
    status, ready = await sidecar.ask("/ready")
    assert status == 503
    assert ready["checks"]["app"]["error"] == "the app answered 503 to /ready?deep=1"
    assert (await sidecar.ask("/healthz"))[0] == 200, "the sidecar lives, whatever the app does"
    assert set(asked) == {"/live", "/up", "/ready?deep=1"}


async def test_without_probe_paths_a_connection_is_enough(net, policies, unused_tcp_port):
    policies.write(*RULES, grants=GRANTS, **CONDITIONS)
    settings = load_settings(environment(policies, unused_tcp_port))
    sidecar = Sidecar(await net.start(running(settings)), await net.client())
    assert (await sidecar.ask("/app/healthz"))[0] == 503
    status, ready = await sidecar.ask("/ready")
    assert (status, ready["checks"]["app"]["ok"]) == (503, False)
    listening = socket.create_server(("127.0.0.1", unused_tcp_port))
    try:
        assert (await sidecar.ask("/app/healthz"))[0] == 200
        await asyncio.sleep(1.1)  # readiness is a second old at most
        assert (await sidecar.ask("/ready"))[0] == 200
    finally:
        listening.close()


async def test_an_app_that_hangs_is_not_alive(net, policies):
    async def handler(request):
        await asyncio.sleep(10)

    policies.write(*RULES, grants=GRANTS, **CONDITIONS)
    settings = load_settings(
        environment(
            policies, await net.serve(handler), UPSTREAM_HEALTH_PATH="/live", UPSTREAM_PROBE_TIMEOUT="100ms"
        )
    )
    sidecar = Sidecar(await net.start(running(settings)), await net.client())
    status, answer = await sidecar.ask("/app/healthz")
    assert (status, answer["error"]) == (503, "the app did not answer /live within 0.1 s")


async def test_without_the_modules_name_it_does_not_start(policies):
    settings = load_settings(environment(policies, 1, MOORAGE_MODULE=""))
    with pytest.raises(ConfigError, match="MOORAGE_MODULE"):
        async with running(settings):
            pass


async def synced(sidecar):
    """Wait until it has the overlay."""
    async with asyncio.timeout(30):
        while (await sidecar.ask("/policy"))[1]["overlay"]["sequence"] is None:  # noqa: ASYNC110 - the state is a server's
            await asyncio.sleep(0.02)


async def test_a_revoked_session_is_out_and_its_websocket_closed(net, policies):
    policies.write(*RULES, grants=GRANTS, **CONDITIONS)

    async def upstream(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            pass
        return socket

    async with PolicyStream(policy_key=policies._signing, heartbeat=1.0) as stream:
        port = await net.serve(upstream)
        settings = load_settings(environment(policies, port, **stream.environ))
        sidecar = Sidecar(await net.start(running(settings)), await net.client())
        await synced(sidecar)
        assert "guard_stream_connected 1.0" in (await sidecar.ask("/metrics"))[1]
        headers = policies.bearer("author")
        token = jwt.decode(headers["Authorization"].split()[1], options={"verify_signature": False})
        async with sidecar.client.ws_connect(f"{sidecar.url}/ws", headers=headers) as socket:
            stream.change(sessions=[token["sid"]])
            message = await socket.receive(timeout=30)
            assert (message.type, message.data, message.extra) == (
                aiohttp.WSMsgType.CLOSE,
                3000,
                "The access token was revoked.",
            )
        status, body, _ = await sidecar("GET", "/me", headers=headers)
        assert (status, body["error"]["code"]) == (401, "token_revoked")


@pytest.mark.parametrize("length", [None, 16000], ids=["chunked", "short"])
@pytest.mark.parametrize("revoked", [True, False], ids=["revoked", "expired"])
async def test_a_long_answer_ends_with_its_session(net, policies, revoked, length):
    policies.write(*RULES, grants=GRANTS, **CONDITIONS)
    gone = asyncio.Event()

    async def upstream(request):
        answer = web.StreamResponse()
        answer.content_length = length
        await answer.prepare(request)
        try:
            while True:
                await answer.write(b"more\n")
                await asyncio.sleep(0.05)
        except ConnectionError:
            return answer
        finally:
            gone.set()

    async with PolicyStream(policy_key=policies._signing, heartbeat=1.0) as stream:
        port = await net.serve(upstream)
        settings = load_settings(environment(policies, port, **stream.environ))
        sidecar = Sidecar(await net.start(running(settings)), await net.client())
        await synced(sidecar)
        headers = policies.bearer("author", **({} if revoked else {"lifetime_s": 3 - LEEWAY}))
        token = jwt.decode(headers["Authorization"].split()[1], options={"verify_signature": False})
        async with sidecar.client.get(f"{sidecar.url}/me", headers=headers) as answer:
            assert await answer.content.readline() == b"more\n"
            if revoked:
                stream.change(sessions=[token["sid"]])
            with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
                async with asyncio.timeout(30):
                    await answer.read()
        async with asyncio.timeout(30):
            await gone.wait()
            code = "token_revoked" if revoked else "token_expired"
            while f'errors_total{{code="{code}"}} 1.0' not in (await sidecar.ask("/metrics"))[1]:  # noqa: ASYNC110 - the state is a server's
                await asyncio.sleep(0.02)


async def test_without_a_first_sync_it_is_not_ready(net, policies):
    policies.write(*RULES, grants=GRANTS, **CONDITIONS)
    async with PolicyStream(policy_key=policies._signing) as stream:
        stream.refusing = 503
        settings = load_settings(environment(policies, await net.serve(app), **stream.environ))
        sidecar = Sidecar(await net.start(running(settings)), await net.client())
        async with asyncio.timeout(30):
            while "503" not in str((await sidecar.ask("/policy"))[1]["overlay"]["error"]):  # noqa: ASYNC110 - the state is a server's
                await asyncio.sleep(0.02)
        status, body = await sidecar.ask("/ready")
        assert status == 503
        assert "sync" in body["checks"]["policy"]["error"]
        stream.refusing = None
        async with asyncio.timeout(60):
            while (await sidecar.ask("/ready"))[0] != 200:  # noqa: ASYNC110 - the state is a server's
                await asyncio.sleep(0.1)


async def test_it_fetches_the_keys_that_the_issuer_publishes_and_waits_for_the_first(net, policies):
    async with KeyServer(policies._token_key) as server:
        good = server.keys
        server.keys = []
        policies.jwks_uri = server.address
        policies.write(*RULES, grants=GRANTS, **CONDITIONS)
        settings = load_settings(environment(policies, await net.serve(app), GUARD_KEYS_REFRESH="1s"))
        sidecar = Sidecar(await net.start(running(settings)), await net.client())
        async with asyncio.timeout(30):
            while "no key for ES256" not in str(await sidecar.ask("/ready")):  # noqa: ASYNC110 - the state is a server's
                await asyncio.sleep(0.02)
        status, body = await sidecar.ask("/ready")
        assert status == 503
        assert body["checks"]["policy"]["error"].startswith("no keys of https://moorage.test yet")
        assert (await sidecar("GET", "/posts"))[0] == 200, "what needs no token goes on"
        status, body, headers = await sidecar("GET", "/me", headers=policies.bearer("author"))
        assert (status, body["error"]["code"]) == (503, "no_keys")
        assert headers["Retry-After"]
        server.keys = good
        async with asyncio.timeout(60):
            while (await sidecar.ask("/ready"))[0] != 200:  # noqa: ASYNC110 - the state is a server's
                await asyncio.sleep(0.1)
        assert (await sidecar("GET", "/me", headers=policies.bearer("author")))[0] == 200
        assert (await sidecar.ask("/policy"))[1]["keys"][0]["error"] is None
