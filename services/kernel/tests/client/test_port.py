"""A module that calls another one, both served as they are in pods."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from moorage import Clients, Model, Module, ModuleCaller, NotFound, Request, UpstreamError, User
from moorage.guard import tokens
from moorage.guard.policy import Issuer
from moorage.scope import current
from moorage.testing import ModuleHarness
from rigs.waiting import until

ISSUER = "https://cluster.test"


class Seen(Model):
    """What stock knew of a call."""

    caller: str
    user: bool
    request_id: str
    trace_id: str
    left_ms: int


def folder(path: Path, name: str, rules: list[dict[str, Any]]) -> Path:
    resources: list[Any] = [
        {"kind": "Module", "spec": {"version": "1.0.0", "image": "x:1", "app": "x:y"}},
        {"kind": "Route", "spec": {"module": name, "rules": rules}},
    ]
    for resource in resources:
        resource |= {"apiVersion": "moorage.dev/v1alpha1", "metadata": {"name": name}}
    path.mkdir()
    (path / "all.yaml").write_text("\n---\n".join(json.dumps(one) for one in resources))
    return path


def stock_module(ended: list[str]) -> Module:
    stock = Module("stock")

    @stock.handle("seen")
    async def seen(caller: ModuleCaller, request: Request) -> Seen:
        scope = current.get()
        assert scope is not None
        assert scope.deadline is not None
        left = scope.deadline - asyncio.get_running_loop().time()
        return Seen(
            caller=caller.key,
            user=isinstance(caller, User),
            request_id=request.request_id,
            trace_id=request.trace_id,
            left_ms=round(left * 1000),
        )

    @stock.handle("slow")
    async def slow(caller: ModuleCaller) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    @stock.handle("gone")
    async def gone(caller: ModuleCaller) -> None:
        NotFound.throw("article", "secret-article")

    return stock


def shop_module() -> Module:
    shop = Module("shop")

    @shop.handle("ask")
    async def ask(clients: Clients) -> Seen:
        return await clients("stock").get("/seen", into=Seen)

    @shop.handle("wait")
    async def wait(clients: Clients) -> None:
        await clients("stock").get("/slow")

    @shop.handle("miss")
    async def miss(clients: Clients) -> None:
        await clients("stock").get("/gone")

    @shop.handle("handled")
    async def handled(clients: Clients) -> dict[str, Any]:
        try:
            await clients("stock").get("/gone")
        except UpstreamError as error:
            return {
                "answered": error.answered,
                "code": error.upstream_code,
                "details": error.upstream_details,
            }
        return {}

    return shop


@pytest.fixture
def ended() -> list[str]:
    """How stock's slow handler ended."""
    return []


@pytest.fixture
async def shop(tmp_path: Path, ended: list[str]) -> AsyncIterator[ModuleHarness]:
    """The module ``shop``, with ``stock`` behind it, which takes modules' tokens alone."""
    key = tokens.new_es256_key()
    token = tmp_path / "token"
    token.write_text(
        tokens.issue_module_token(key, issuer=ISSUER, audience="moorage", namespace="default", module="shop")
    )
    rules = [{"name": name, "methods": ["GET"], "path": f"/{name}"} for name in ("seen", "slow", "gone")]
    asked = [
        {"name": name, "methods": ["GET"], "path": f"/{name}", "auth": "optional"}
        for name in ("ask", "miss", "handled")
    ]
    asked.append(
        {"name": "wait", "methods": ["GET"], "path": "/wait", "auth": "optional", "timeout": "1500ms"}
    )
    async with AsyncExitStack() as stack:
        stock = await stack.enter_async_context(
            ModuleHarness(folder(tmp_path / "stock", "stock", rules), module=stock_module(ended))
        )
        document = stock.compile()
        issuer = Issuer(
            issuer=ISSUER,
            audiences=["moorage"],
            algorithms=["ES256"],
            keys=[dict(tokens.public_jwk(key))],
            subject="module",
        )
        stock.set_policy(document.model_copy(update={"issuers": [*document.issuers, issuer]}))
        environ = {
            "CLIENT_REGISTRY": json.dumps({"default/stock": stock.url}),
            "CLIENT_TOKEN_FILE": str(token),
            "CLIENT_TIMEOUT": "60s",
            "CLIENT_CONNECT_TIMEOUT": "20s",
        }
        yield await stack.enter_async_context(
            ModuleHarness(folder(tmp_path / "shop", "shop", asked), module=shop_module(), environ=environ)
        )


async def test_the_called_module_sees_the_calling_one_and_not_its_user(shop: ModuleHarness) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-ID": "from-the-edge", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    seen = Seen(**(await shop.client().get("/ask", headers=headers)).body)
    assert (seen.caller, seen.user) == ("default/shop", False)
    assert (seen.request_id, seen.trace_id) == ("from-the-edge", trace)
    assert 20_000 < seen.left_ms <= 30_000, "the route has 30 s"


async def test_the_deadline_goes_along_and_ends_the_work_behind(
    shop: ModuleHarness, ended: list[str]
) -> None:
    await shop.anonymous().get("/ask")  # connected
    began = asyncio.get_running_loop().time()
    answer = await shop.anonymous().get("/wait")
    assert answer.status == 504
    assert asyncio.get_running_loop().time() - began < 20
    await until(lambda: ended == ["cancelled"], 20)  # the client's own timeout would be 60 s


async def test_what_the_other_refused_is_for_the_log_and_the_code_but_not_for_the_client(
    shop: ModuleHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = await shop.anonymous().get("/miss")
    assert (answer.status, answer.code) == (502, "upstream_not_found")
    assert "stock" not in answer.content.decode()
    assert "article" not in answer.content.decode()
    assert "default/stock: answered 404 article_not_found" in capsys.readouterr().out
    assert (await shop.anonymous().get("/handled")).body == {
        "answered": 404,
        "code": "article_not_found",
        "details": {"resource": "article", "id": "secret-article"},
    }


async def test_what_was_called_is_counted(shop: ModuleHarness) -> None:
    await shop.anonymous().get("/ask")
    metrics = (await shop.admin.get("/metrics")).content.decode()
    assert 'client_requests_total{outcome="2xx",target="default/stock"} 1.0' in metrics
    assert 'client_breaker_state{target="default/stock"} 0.0' in metrics
