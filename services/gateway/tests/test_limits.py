"""Rate limits where the guard is a proxy: the sidecar, and the gateway of local mode."""

from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml
from aiohttp import web
from redis.asyncio import Redis

from moorage.config import load as load_gateway_settings
from moorage.guard.limits.document import Limit, Limits
from moorage.guard.policy import Rule
from moorage_gateway.gateway import serving as gateway
from moorage_gateway.gateway.modules import Modules
from moorage_gateway.sidecar.serving import load_settings, running

HOUR = Limits(
    user=Limit(count=2, seconds=3600, scope="rule/r"), address=Limit(count=100, seconds=3600, scope="rule/r")
)
RULES = (
    Rule(name="two", path="/two", limits=HOUR),
    Rule(name="open", path="/open", auth="none", limits=Limits(address=Limit(count=2, seconds=3600))),
    Rule(name="socket", methods=["GET"], path="/ws", limits=HOUR),
    Rule(name="gone", path="/gone", limits=HOUR),
    Rule(name="free", path="/free", auth="none"),
)
APPS_OWN = {"RateLimit": '"app";r=1;t=1', "RateLimit-Policy": '"app";q=1;w=1', "Retry-After": "7"}


async def app(request):
    if request.path == "/ws":
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close()
        return socket
    if request.path == "/gone":
        request.transport.abort()
    return web.Response(text="fine", headers=APPS_OWN)


@pytest.fixture
async def sidecar(net, policies):
    policies.write(*RULES)
    environ = {
        **{"ENVIRONMENT": "development", "SERVER_HOST": "127.0.0.1", "SERVER_PORT": "0"},
        **{"ADMIN_HOST": "127.0.0.1", "ADMIN_PORT": "0", "MOORAGE_MODULE": "blog"},
        **{"MOORAGE_POLICY_DIR": str(policies.folder), "UPSTREAM_PORT": str(await net.serve(app))},
    }

    async def start(**more):
        return await net.start(running(load_settings(environ | more)))

    return start


async def answers(port, path, times, **request):
    found = []
    async with aiohttp.ClientSession() as session:
        for _ in range(times):
            async with session.get(f"http://127.0.0.1:{port}{path}", **request) as answer:
                body = (
                    await answer.json() if answer.content_type == "application/json" else await answer.text()
                )
                found.append((answer.status, answer.headers.copy(), body))
    return found


async def test_the_sidecar_counts_and_tells_in_place_of_the_app(sidecar, policies):
    port = (await sidecar()).port
    first, _, third = await answers(port, "/two", 3, headers=policies.bearer())
    status, headers, body = first
    assert (status, body) == (200, "fine")
    assert headers.getall("RateLimit-Policy") == ['"user";q=2;w=3600, "address";q=100;w=3600']
    assert headers.getall("RateLimit") == ['"user";r=1;t=1800, "address";r=99;t=36']
    assert headers["Retry-After"] == "7", "the app's own affair"
    status, headers, body = third
    assert (status, body["error"]["code"], body["error"]["details"]["limit"]) == (429, "rate_limited", "user")
    assert headers["Retry-After"] == str(body["error"]["details"]["retry_after"])


async def test_where_the_guard_has_no_limit_the_apps_own_fields_pass(sidecar):
    ((_, headers, _),) = await answers((await sidecar()).port, "/free", 1)
    assert {name: headers[name] for name in APPS_OWN} == APPS_OWN


async def test_what_fails_behind_the_guard_tells_as_well(sidecar, policies):
    ((status, headers, _),) = await answers((await sidecar()).port, "/gone", 1, headers=policies.bearer())
    assert status == 502
    assert headers["RateLimit"].startswith('"user";r=1;')


async def test_the_handshake_of_a_websocket_tells(sidecar, policies):
    port = (await sidecar()).port
    async with (
        aiohttp.ClientSession(headers=policies.bearer()) as session,
        session.ws_connect(f"http://127.0.0.1:{port}/ws") as socket,
    ):
        assert socket._response.headers["RateLimit"].startswith('"user";r=1;')


async def test_a_forged_address_is_not_believed(sidecar):
    port = (await sidecar()).port
    found = [
        (await answers(port, "/open", 1, headers={"X-Forwarded-For": f"198.51.100.{turn}"}))[0][0]
        for turn in range(3)
    ]
    assert found == [200, 200, 429]


async def test_sidecars_of_one_module_count_together_in_redis(sidecar, policies, redis_server):
    ports = [(await sidecar(REDIS_URL=redis_server)).port for _ in range(2)]
    headers = policies.bearer()
    found = [(await answers(port, "/two", 1, headers=headers))[0][0] for port in (*ports, *ports)]
    assert found == [200, 200, 429, 429]


async def test_a_sidecar_shows_redis_the_password_of_its_secret(sidecar, policies, redis_server, tmp_path):
    """The installation's address has none; a Secret of the Module has (`secretRefs` with `guard: true`)."""
    rights = (
        "+@connection +@scripting +@string +time -@dangerous"  # as docs/ports/cache.md has them, and fewer
    )
    place = urlsplit(redis_server)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "redis_url").write_text(f"redis://counts:pw@{place.hostname}:{place.port}{place.path}")
    async with Redis.from_url(redis_server) as client:
        rule = ("on", ">pw", "~secret:default:blog:limit:*", *rights.split())
        await client.execute_command("ACL", "SETUSER", "counts", *rule)
        try:
            started = await sidecar(
                REDIS_URL=f"redis://{place.hostname}:1/0",
                MOORAGE_SECRETS_DIR=str(secrets),
                MOORAGE_INSTALLATION="secret",
            )
            ((_, headers, _),) = await answers(started.port, "/two", 1, headers=policies.bearer())
            assert headers["RateLimit"].startswith('"user";r=1;')
            assert [key async for key in client.scan_iter("secret:default:blog:limit:user:*")]
        finally:
            await client.execute_command("ACL", "DELUSER", "counts")


async def test_everything_that_an_address_sends_may_be_bounded(sidecar):
    port = (await sidecar(LIMITS_ADDRESS="2")).port
    found = [(await answers(port, path, 1))[0] for path in ("/nothing", "/two", "/nothing", "/two", "/free")]
    assert [status for status, _, _ in found] == [404, 401, 429, 429, 429]
    assert found[-1][2]["error"]["details"] == {"limit": "requests", "retry_after": 30}


async def test_bad_tokens_are_bounded_in_front_of_an_app(sidecar):
    port = (await sidecar(LIMITS_BAD_TOKENS="2")).port
    found = await answers(port, "/two", 4, headers={"Authorization": "Bearer a.b.c"})
    assert [status for status, _, _ in found] == [401, 401, 429, 429]
    assert found[-1][2]["error"]["details"]["limit"] == "bad_tokens"


async def test_the_gateway_counts_for_modules_without_a_guard_of_their_own(net, policies, tmp_path):
    policies.write(*RULES)
    entry = {
        **{"namespace": "default", "module": "blog", "prefixes": ["/"], "guarded": False},
        **{"upstream": f"http://127.0.0.1:{await net.serve(app)}", "policy_dir": str(policies.folder)},
    }
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({"listen": {"port": 0}, "admin": {"port": 0}, "modules": [entry]}))
    settings = load_gateway_settings(
        environ={"ENVIRONMENT": "development", "REDIS_URL": "redis://127.0.0.1:1"}
    )
    started = await net.start(gateway.running(Modules(path), settings))
    found = await answers(started.port, "/two", 3, headers=policies.bearer())
    assert [status for status, _, _ in found] == [200, 200, 429]
    assert found[0][1]["RateLimit"] == '"user";r=1;t=1800, "address";r=99;t=36'
