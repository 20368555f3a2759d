"""The OpenAPI document: what it says of handlers and rules, and who can read it."""

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from click.testing import CliRunner
from openapi_spec_validator import validate
from pydantic import Field

from moorage import Content, CursorPage, Model, Module, Out, Page, Paging, Query, Request, User, WebSocket
from moorage.cli import main
from moorage.guard.limits.document import Limit, Limits
from moorage.guard.policy import Rule
from moorage.http.apidocs import render
from moorage.http.binding import bind
from moorage.http.openapi import About, describe
from moorage.module import DeclarationError
from moorage.testing import ModuleHarness

Serve = Callable[..., Awaitable[ModuleHarness]]


class ThingIn(Model):
    """A thing as it is sent."""

    name: Annotated[str, Field(max_length=20)]


class ThingOut(ThingIn):
    id: UUID


class Filter(Query):
    """Which things."""

    colours: list[str] = Field(default_factory=list, description="Any of these.")
    size: int


def described(module: Module, *rules: Rule, **about: Any) -> dict[str, Any]:
    """The document, which the validator has found to be one."""
    document = describe(About(module.name, "1.2.3", **about), bind(module, {}), rules)
    validate(document)
    return document


def test_an_operation_is_told_by_the_rule_and_the_handler() -> None:
    module = Module("shop")

    @module.handle("make", status=201)
    async def make(new: ThingIn, user: User) -> Out[ThingOut]:
        """Make a thing.

        It can be seen by everybody.

        Args:
            new: what only readers of the code need.

        Body example:
            {"name": "a lamp"}
        """
        return new

    rule = Rule(name="make", methods=["POST"], path="/api/v1/shop/things", permission="shop.thing.make")
    document = described(module, rule)
    assert document["info"] == {"title": "shop", "version": "1.2.3"}
    operation = document["paths"]["/api/v1/shop/things"]["post"]
    assert operation["operationId"] == "make"
    assert operation["summary"] == "Make a thing."
    assert operation["description"] == (
        "It can be seen by everybody.\n\nNeeds the permission `shop.thing.make`."
    )
    assert operation["security"] == [{"token": []}]
    body = operation["requestBody"]["content"]["application/json"]
    assert body == {"schema": {"$ref": "#/components/schemas/ThingIn"}, "example": {"name": "a lamp"}}
    answer = operation["responses"]["201"]["content"]["application/json"]
    assert answer["schema"] == {"$ref": "#/components/schemas/ThingOut"}
    assert {"400", "401", "403", "413", "415", "422", "default"} <= set(operation["responses"])
    assert document["components"]["schemas"]["ThingIn"]["properties"]["name"]["maxLength"] == 20
    assert operation["tags"] == [make.__module__.rpartition(".")[2]]


def test_parameters_are_those_of_loader_handler_and_query_models() -> None:
    module = Module("shop")

    async def load(id: UUID) -> ThingIn | None: ...

    @module.handle("read", resource=load)
    async def read(
        thing: ThingIn, part: int, wanted: Filter, paging: Paging, deep: bool = True
    ) -> Page[ThingOut]: ...

    path = "/things/{id}/parts/{part}"
    document = described(module, Rule(name="read", methods=["GET"], path=path, auth="optional"))
    operation = document["paths"][path]["get"]
    parameters = {(given["in"], given["name"]): given for given in operation["parameters"]}
    assert parameters["path", "id"]["schema"] == {"type": "string", "format": "uuid"}
    assert parameters["path", "part"]["schema"] == {"type": "integer"}
    assert parameters["query", "deep"]["schema"] == {"type": "boolean", "default": True}
    assert parameters["query", "colours"]["schema"]["type"] == "array"
    assert parameters["query", "size"]["required"] is True
    assert "required" not in parameters["query", "limit"]
    assert parameters["query", "limit"]["schema"]["maximum"] == 100
    assert operation["security"] == [{}, {"token": []}]
    assert "404" in operation["responses"]
    assert "Paging" not in document["components"]["schemas"], "nothing refers to it"


async def read_one() -> str:
    """Read."""
    return "x"


@pytest.mark.parametrize("outage", [None, "refuse"])
def test_a_rule_with_limits_tells_429_and_what_is_left(outage: Literal["refuse"] | None) -> None:
    module = Module("shop")
    module.handle("read", etag=True)(read_one)
    limits = Limits(user=Limit(count=5, seconds=60), outage=outage)
    document = described(module, Rule(name="read", methods=["GET"], path="/things", limits=limits))
    responses = document["paths"]["/things"]["get"]["responses"]
    refused = responses["429"]
    assert refused["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}
    named = {name: {"$ref": f"#/components/headers/{name}"} for name in ("RateLimit", "RateLimit-Policy")}
    retry = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    assert refused["headers"] == named | retry
    assert responses["200"]["headers"] == {**named, "ETag": {"schema": {"type": "string"}}}
    assert {"401", "403"} <= set(responses)
    assert ("503" in responses) == (outage == "refuse")
    if outage is not None:
        assert responses["503"]["headers"] == retry


def test_a_rule_without_limits_tells_nothing_of_them() -> None:
    module = Module("shop")
    module.handle("read")(read_one)
    document = described(module, Rule(name="read", methods=["GET"], path="/things", auth="none"))
    responses = document["paths"]["/things"]["get"]["responses"]
    assert "headers" not in responses["200"]
    assert not {"401", "403", "429", "503"} & set(responses)


async def test_what_is_told_of_limits_is_what_a_client_gets(serve: Serve) -> None:
    module = Module("shop")
    module.handle("read")(read_one)
    rule = {"name": "read", "path": "/things", "rateLimit": {"perUser": "2/minute", "perRule": "9/hour"}}
    shop = await serve(module, [rule])
    headers = (await shop.admin.get("/openapi.json")).body["components"]["headers"]
    client = shop.client()
    answers = [await client.get("/things") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    for answer in answers:
        for name in ("RateLimit", "RateLimit-Policy"):
            assert re.search(headers[name]["schema"]["pattern"], answer.headers[name])
    assert int(answers[-1].headers["Retry-After"]) >= headers["Retry-After"]["schema"]["minimum"]
    for name in ("RateLimit", "RateLimit-Policy"):
        assert re.search(headers[name]["schema"]["pattern"], headers[name]["example"])


def test_templates_that_differ_in_names_alone_are_one_path() -> None:
    module = Module("shop")

    @module.handle("read")
    async def read(id: UUID) -> None: ...

    @module.handle("drop")
    async def drop(thing: UUID) -> None: ...

    @module.handle("rest")
    async def rest(request: Request) -> Content: ...

    document = described(
        module,
        Rule(name="read", methods=["GET"], path="/things/{id}", auth="none"),
        Rule(name="drop", methods=["DELETE"], path="/things/{thing}"),
        Rule(name="rest", path="/files/**"),
        Rule(name="nobody", methods=["GET"], path="/nobody"),
    )
    assert set(document["paths"]) == {"/things/{id}", "/files/{rest}"}
    assert set(document["paths"]["/things/{id}"]) == {"get", "delete"}
    drop_parameters = document["paths"]["/things/{id}"]["delete"]["parameters"]
    assert [(given["name"], given["schema"]["format"]) for given in drop_parameters] == [("id", "uuid")]
    files = document["paths"]["/files/{rest}"]
    names = [operation["operationId"] for operation in files.values()]
    assert names == ["rest", "rest-post", "rest-put", "rest-patch", "rest-delete"]


def test_a_module_without_a_database_promises_no_idempotency() -> None:
    module = Module("shop")

    @module.handle("make")
    async def make(new: ThingIn) -> None: ...

    rule = Rule(name="make", methods=["POST"], path="/", auth="none")
    told = described(module, rule)["paths"]["/"]["post"]
    assert [given["name"] for given in told["parameters"]] == ["Idempotency-Key"]
    assert "parameters" not in described(module, rule, keeps_answers=False)["paths"]["/"]["post"]


def test_an_example_that_is_no_json_is_named() -> None:
    module = Module("shop")

    @module.handle("make")
    async def make(new: ThingIn) -> None:
        """Make.

        Body example:
            {name: 1}
        """

    with pytest.raises(DeclarationError, match=r"make: its body example is no JSON"):
        bind(module, {})


async def test_nothing_is_public_by_accident(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("read")
    async def read() -> str:
        return "x"

    shop = await serve(module, [{"name": "read", "methods": ["GET"], "path": "/things", "auth": "none"}])
    assert (await shop.anonymous().get("/openapi.json")).status == 404
    document = await shop.admin.get("/openapi.json")
    assert document.headers["Content-Type"] == "application/json"
    assert set(document.body["paths"]) == {"/things"}
    page = await shop.admin.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")


async def test_a_rule_serves_it_to_whom_the_rule_lets_in(serve: Serve) -> None:
    module = Module("shop")
    module.serve_openapi(page="docs")
    shop = await serve(
        module,
        [
            {"name": "openapi", "methods": ["GET"], "path": "/openapi.json", "auth": "none"},
            {"name": "docs", "methods": ["GET"], "path": "/docs"},
        ],
    )
    answer = await shop.anonymous().get("/openapi.json")
    assert answer.status == 200
    validate(answer.body)
    again = await shop.anonymous().get("/openapi.json", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status == 304
    assert (await shop.anonymous().get("/docs")).status == 401
    assert (await shop.client().get("/docs")).status == 200


async def test_the_document_follows_the_policy(serve: Serve) -> None:
    module = Module("shop")

    @module.handle("read")
    async def read() -> str:
        return "x"

    shop = await serve(module, [{"name": "read", "methods": ["GET"], "path": "/things", "auth": "none"}])
    assert set((await shop.admin.get("/openapi.json")).body["paths"]) == {"/things"}
    changed = shop.compile()
    rules = [changed.rules[0].model_copy(update={"path": "/stuff"})]
    shop.set_policy(changed.model_copy(update={"rules": rules}))
    assert set((await shop.admin.get("/openapi.json")).body["paths"]) == {"/stuff"}


def test_nothing_of_the_document_becomes_markup_or_script_in_the_page() -> None:
    module = Module("shop")

    @module.handle("read")
    async def read() -> str:
        """</script><script>alert(1)</script>"""
        return "x"

    content = json.dumps(described(module, Rule(name="read", methods=["GET"], path="/"))).encode()
    page, policy = render(content)
    assert b"alert(1)</script>" not in page
    assert page.count(b"<script") == 2
    assert "unsafe-inline" not in policy
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_the_command_writes_the_document_of_a_folder(tmp_path: Path) -> None:
    blog = Path(__file__).parents[4] / "services/blog"
    file = tmp_path / "openapi.json"
    done = CliRunner().invoke(main, ["openapi", str(blog), "-o", str(file)])
    assert done.exit_code == 0, done.output
    document = json.loads(file.read_text())
    validate(document)
    assert document["paths"]["/api/v1/blog/posts/{id}"]["put"]["operationId"] == "update-post"
    assert CliRunner().invoke(main, ["openapi", str(blog)]).output == file.read_text()


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_POLICY_DIR", str(tmp_path))
    done = CliRunner().invoke(main, ["openapi", "blog:module"])
    assert done.exit_code == 1
    assert "has no policy that could be used" in done.output


def test_a_websocket_is_told_with_its_messages() -> None:
    module = Module("shop")

    @module.websocket("chat")
    async def chat(room: str, socket: WebSocket[ThingIn, ThingOut]) -> None:
        """Talk."""

    document = described(module, Rule(name="chat", methods=["GET"], path="/chat/{room}"))
    operation = document["paths"]["/chat/{room}"]["get"]
    assert {"101", "401", "426"} <= set(operation["responses"])
    assert "204" not in operation["responses"]
    assert operation["x-moorage-websocket"] == {
        "receives": {"$ref": "#/components/schemas/ThingIn"},
        "sends": {"$ref": "#/components/schemas/ThingOut"},
    }
    assert {"ThingIn", "ThingOut"} <= set(document["components"]["schemas"])


def test_pages_by_cursor_have_a_schema_of_their_own() -> None:
    module = Module("shop")

    @module.handle("list")
    async def index() -> CursorPage[ThingOut]: ...

    document = described(module, Rule(name="list", methods=["GET"], path="/"))
    schema = document["components"]["schemas"]["CursorPage_ThingOut_"]
    assert set(schema["required"]) == {"items", "limit", "next_cursor"}
