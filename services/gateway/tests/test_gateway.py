"""The edge of local mode: which module gets a request, and what happens when its file changes."""

import asyncio
import json

import pytest
import structlog
import yaml
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from key_server import KeyServer

from moorage import errors
from moorage.config import load as load_settings
from moorage.guard.policy import Rule
from moorage_gateway.gateway.config import ConfigError, load
from moorage_gateway.gateway.modules import Modules
from moorage_gateway.gateway.serving import running
from moorage_gateway.gateway.table import Table, TableError

# --- the table

CLAIMS = (
    ("a/root", (), ("/",), "root"),
    ("a/blog", (), ("/api/v1/blog",), "blog"),
    ("a/admin", (), ("/api/v1/blog/admin",), "admin"),
    ("a/shop", ("shop.example.com",), ("/",), "shop"),
    ("a/wild", ("*.example.com",), ("/x",), "wild"),
)


@pytest.mark.parametrize(
    ("host", "path", "found"),
    [
        ("h", "/", "root"),
        ("h", "/other", "root"),
        ("h", "/api/v1/blog", "blog"),
        ("h", "/api/v1/blog/", "blog"),
        ("h", "/api/v1/blog/posts/1", "blog"),
        ("h", "/api/v1/blogs", "root"),
        ("h", "/api/v1/blog/admin", "admin"),
        ("h", "/api/v1/blog/admin/x", "admin"),
        ("h", "/api/v1/blog/administration", "blog"),
        ("shop.example.com", "/api/v1/blog", "shop"),
        ("SHOP.example.com:8080", "/x", "shop"),
        ("shop.example.com.", "/x", "shop"),
        ("a.example.com", "/x/y", "wild"),
        ("a.b.example.com", "/x", "wild"),
        ("a.example.com", "/api/v1/blog", "blog"),
        ("example.com", "/x", "root"),
        ("", "/x", "root"),
    ],
)
def test_the_most_specific_host_wins_then_the_longest_prefix(host, path, found):
    assert Table(CLAIMS).find(host, path) == found


def test_what_nobody_claims_is_404():
    with pytest.raises(errors.NotFound):
        Table(CLAIMS[1:3]).find("h", "/api/v2")


def test_one_host_and_prefix_belongs_to_one_module():
    with pytest.raises(TableError, match="a/one and a/two both claim every host /x"):
        Table([("a/one", (), ("/x",), 1), ("a/two", (), ("/x",), 2)])


@given(st.lists(st.sampled_from(["a", "b", "ab", ""]), max_size=8))
def test_a_prefix_matches_whole_segments_only(parts):
    path = "/" + "/".join(parts)
    table = Table([("m/all", (), ("/",), "all"), ("m/ab", (), ("/a/b",), "a/b"), ("m/a", (), ("/a",), "a")])
    expected = "a/b" if parts[:2] == ["a", "b"] else "a" if parts[:1] == ["a"] else "all"
    assert table.find("h", path) == expected


# --- the file

ENTRY = {"namespace": "default", "module": "blog", "prefixes": ["/blog"], "guarded": True}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("a: [", "not YAML"),
        ("[]", "the file: Input should be a valid dictionary"),
        ("unknown: 1", "unknown: Extra inputs"),
        ({"modules": [{**ENTRY, "typo": 1}]}, "modules.0.typo: Extra inputs"),
        ({"modules": [{**ENTRY, "upstream": "127.0.0.1:80"}]}, "modules.0.upstream"),
        ({"modules": [{**ENTRY, "upstream": "http://h:80/path"}]}, "is not of the form http://HOST:PORT"),
        ({"modules": [{**ENTRY, "upstream": "http://u:p@h"}]}, "is not of the form http://HOST:PORT"),
        ({"modules": [{**ENTRY, "prefixes": ["blog"]}]}, "modules.0.prefixes.0"),
        ({"modules": [{**ENTRY, "prefixes": ["/blog/"]}]}, "without a slash at its end"),
        ({"modules": [{**ENTRY, "prefixes": []}]}, "modules.0.prefixes"),
        ({"modules": [{**ENTRY, "guarded": False}]}, "set policy_dir, or guarded: true"),
        ({"listen": {"port": 70000}}, "listen.port"),
        ({"trusted_proxies": ["everyone"]}, "trusted_proxies.0"),
    ],
)
def test_a_bad_file_is_refused_naming_the_field(tmp_path, content, complaint):
    file = tmp_path / "gateway.yaml"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError) as failure:
        load(file)
    assert complaint in str(failure.value)
    assert str(failure.value).startswith(str(file))


@pytest.mark.parametrize("modules", [[ENTRY, ENTRY], [ENTRY, {**ENTRY, "module": "other"}]])
def test_two_claims_of_one_thing_are_refused(tmp_path, modules):
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps({"modules": modules}))
    with pytest.raises(ConfigError, match=r"modules: default/(blog appears twice|blog and default/other)"):
        Modules(file)


# --- the whole


class Gateway:
    def __init__(self, net, file):
        self._net = net
        self.file = file

    def write(self, *modules, **more):
        text = yaml.safe_dump(
            {
                "listen": {"host": "127.0.0.1", "port": 0},
                "admin": {"host": "127.0.0.1", "port": 0},
                "modules": list(modules),
                **more,
            }
        )
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)

    async def start(self):
        settings = load_settings(environ={"ENVIRONMENT": "development"})
        at = await self._net.start(running(Modules(self.file), settings))
        self.url, self.admin = f"http://127.0.0.1:{at.port}", f"http://127.0.0.1:{at.admin_port}"
        self.client = await self._net.client()

    async def get(self, path, **request):
        async with self.client.get(self.url + path, **request) as response:
            body = await response.text()
            return response.status, json.loads(body) if body.startswith("{") else body, response.headers

    async def policy(self):
        async with self.client.get(self.admin + "/policy") as response:
            return await response.json()

    async def until(self, path, status):
        """Ask for *path* until the answer is *status*; the file is looked at four times a second."""
        for _ in range(60):
            answer = await self.get(path)
            if answer[0] == status:
                return answer
            await asyncio.sleep(0.05)
        return pytest.fail(f"{path} answers {answer[0]} and not {status} after 3 s")


@pytest.fixture
def gateway(net, tmp_path):
    return Gateway(net, tmp_path / "gateway.yaml")


def named(name):
    async def handler(request):
        headers = {key.lower(): value for key, value in request.headers.items()}
        return web.json_response({"name": name, "path": request.raw_path, "headers": headers})

    return handler


def entry(module, port, prefix, **more):
    upstream = f"http://127.0.0.1:{port}" if port else None
    base = {"namespace": "default", "module": module, "prefixes": [prefix], "guarded": True}
    return {**base, "upstream": upstream, **more}


async def test_requests_go_to_their_modules_and_nowhere_else(net, gateway):
    gateway.write(
        entry("blog", await net.serve(named("blog")), "/api/v1/blog"),
        entry("shop", await net.serve(named("shop")), "/", hosts=["shop.example"]),
    )
    await gateway.start()
    assert (await gateway.get("/api/v1/blog/posts?x=1"))[1]["path"] == "/api/v1/blog/posts?x=1"
    assert (await gateway.get("/", headers={"Host": "shop.example"}))[1]["name"] == "shop"
    status, body, headers = await gateway.get("/api/v2")
    assert (status, body["error"]["code"]) == (404, "not_found")
    assert body["error"]["request_id"] == headers["X-Request-ID"]


async def test_a_module_with_its_own_guard_gets_the_token_and_no_claimed_identity(net, gateway):
    gateway.write(entry("blog", await net.serve(named("blog")), "/blog"))
    await gateway.start()
    sent = {"Authorization": "Bearer abc", "X-Moorage-User": "root", "X_Moorage_Roles": "admin"}
    _, seen, _ = await gateway.get("/blog", headers=sent)
    assert seen["headers"]["authorization"] == "Bearer abc"
    assert not any("moorage" in name for name in seen["headers"])


async def test_a_module_without_a_guard_is_guarded_here(net, gateway, policies):
    policies.write(
        Rule(name="me", methods=["GET"], path="/blog/me"),
        Rule(name="list", methods=["GET"], path="/blog", auth="none"),
    )
    gateway.write(
        entry(
            "blog",
            await net.serve(named("blog")),
            "/blog",
            guarded=False,
            policy_dir=str(policies.folder),
        )
    )
    await gateway.start()
    assert (await gateway.get("/blog"))[0] == 200
    assert (await gateway.get("/blog/me"))[0] == 401
    assert (await gateway.get("/blog/undeclared"))[0] == 404
    status, seen, _ = await gateway.get("/blog/me", headers=policies.bearer("author"))
    assert status == 200
    assert seen["headers"]["x-moorage-roles"] == "author"
    assert "authorization" not in seen["headers"]
    policies.write(Rule(name="new", path="/blog/new", auth="none"))
    assert (await gateway.until("/blog/new", 200))[0] == 200


async def test_a_guard_of_the_gateway_fetches_the_keys_that_the_issuer_publishes(net, gateway, policies):
    async with KeyServer(policies._token_key) as server:
        policies.jwks_uri = server.address
        policies.write(Rule(name="me", methods=["GET"], path="/blog/me"))
        guarded = {"guarded": False, "policy_dir": str(policies.folder)}
        port = await net.serve(named("blog"))
        gateway.write(entry("blog", port, "/blog", **guarded))
        await gateway.start()
        assert (await gateway.get("/blog/me", headers=policies.bearer()))[0] == 200
        # An entry that changes keeps its guard, and what that has.
        gateway.write(entry("blog", port, "/blog", timeout_s=7, **guarded), entry("shop", port, "/shop"))
        await gateway.until("/shop", 200)
        await server.stop()
        assert (await gateway.get("/blog/me", headers=policies.bearer()))[0] == 200
        modules = {module["module"]: module for module in (await gateway.policy())["modules"]}
        assert len(modules["blog"]["keys"][0]["kids"]) == 1


async def test_a_policy_for_another_module_is_not_taken(net, gateway, policies):
    policies.write(Rule(name="list", path="/shop", auth="none"))
    gateway.write(
        entry("shop", await net.serve(named("shop")), "/shop", guarded=False, policy_dir=str(policies.folder))
    )
    await gateway.start()
    assert (await gateway.get("/shop"))[0] == 503
    (module,) = (await gateway.policy())["modules"]
    assert "the document is for default/blog" in module["error"]


async def test_a_module_that_is_not_up_is_503_and_named(net, gateway, unused_tcp_port):
    gateway.write(entry("blog", None, "/blog"), entry("shop", unused_tcp_port, "/shop"))
    await gateway.start()
    for name in ("blog", "shop"):
        status, body, headers = await gateway.get(f"/{name}")
        assert (status, headers["Retry-After"]) == (503, "1")
        assert body["error"]["message"] == f"Module default/{name} is not up yet."


async def test_a_changed_file_is_in_force_without_a_restart(net, gateway):
    gateway.write(entry("blog", await net.serve(named("one")), "/blog"))
    await gateway.start()
    assert (await gateway.get("/blog"))[1]["name"] == "one"
    gateway.write(entry("shop", await net.serve(named("two")), "/shop"))
    assert (await gateway.until("/shop", 200))[1]["name"] == "two"
    assert (await gateway.get("/blog"))[0] == 404


async def test_a_bad_file_leaves_the_last_good_one_in_force_and_says_so(net, gateway, caplog):
    gateway.write(entry("blog", await net.serve(named("one")), "/blog"))
    await gateway.start()
    gateway.file.write_text("modules: [{")
    for _ in range(60):
        if (error := (await gateway.policy())["error"]) is not None:
            break
        await asyncio.sleep(0.05)
    assert "not YAML" in error
    assert (await gateway.get("/blog"))[0] == 200
    gateway.file.unlink()
    await asyncio.sleep(0.4)
    assert (await gateway.get("/blog"))[0] == 200
    gateway.write(entry("blog", await net.serve(named("two")), "/posts"))
    assert (await gateway.until("/posts", 200))[1]["name"] == "two"
    assert (await gateway.policy())["error"] is None


async def test_a_changed_prefix_keeps_the_guard_and_a_removed_module_ends_it(net, gateway, policies):
    policies.write(Rule(name="list", path="/new/list", auth="none"))
    port = await net.serve(named("blog"))
    guarded = {"guarded": False, "policy_dir": str(policies.folder)}
    gateway.write(entry("blog", port, "/old", **guarded))
    await gateway.start()
    assert (await gateway.get("/old"))[0] == 404
    gateway.write(entry("blog", port, "/new", **guarded))
    await gateway.until("/new/list", 200)
    policies.write(Rule(name="more", path="/new/more", auth="none"))
    await gateway.until("/new/more", 200)
    (module,) = (await gateway.policy())["modules"]
    assert module["sequence"] == 2
    gateway.write()
    await gateway.until("/new/more", 404)
    assert (await gateway.policy())["modules"] == []


async def test_what_only_a_restart_can_change_is_said(net, gateway):
    gateway.write()
    await gateway.start()
    with structlog.testing.capture_logs() as lines:
        gateway.write(trusted_proxies=["10.0.0.0/8"], listen={"port": 8080})
        for _ in range(60):
            if any(line["event"] == "configuration in force" for line in lines):
                break
            await asyncio.sleep(0.05)
    warnings = [line["event"] for line in lines if line["log_level"] == "warning"]
    assert warnings == [
        "listen and admin take effect only when the gateway starts again",
        "trusted_proxies takes effect only when the gateway starts again",
    ]


async def test_a_request_under_way_is_finished_where_it_began(net, gateway):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request):
        begun.set()
        await go_on.wait()
        return web.Response(text="from the old one")

    gateway.write(entry("blog", await net.serve(slow), "/blog"))
    await gateway.start()
    asking = asyncio.create_task(gateway.get("/blog"))
    await begun.wait()
    gateway.write(entry("shop", await net.serve(named("two")), "/shop"))
    await gateway.until("/shop", 200)
    go_on.set()
    assert (await asking)[:2] == (200, "from the old one")


async def test_the_report_names_every_module(net, gateway, policies, unused_tcp_port):
    policies.write(Rule(name="list", path="/blog", auth="none"))
    gateway.write(
        entry("blog", unused_tcp_port, "/blog", guarded=False, policy_dir=str(policies.folder)),
        entry("shop", None, "/shop"),
    )
    await gateway.start()
    report = await gateway.policy()
    blog, shop = report["modules"]
    assert (blog["module"], blog["sequence"], blog["rules"]) == ("blog", 1, ["list"])
    assert (shop["module"], shop["guarded"], shop["upstream"]) == ("shop", True, None)
    async with gateway.client.get(gateway.admin + "/ready") as response:
        assert response.status == 200
