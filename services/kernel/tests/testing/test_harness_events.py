"""Two modules in harnesses hear each other through a real bus."""

import asyncio
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from moorage import Db, Event, EventInfo, Module
from moorage.testing import ModuleHarness

pytestmark = pytest.mark.postgres


class Placed(Event, type="shop.order.placed", key="id"):
    """What the shop emits."""

    id: UUID
    total: int


class Unknown(Event, type="shop.order.lost", key="id"):
    """What nobody declares."""

    id: UUID


def folder(root: Path, name: str, events: str) -> Path:
    manifests = root / name / "manifests"
    manifests.mkdir(parents=True)
    (manifests / "all.yaml").write_text(
        f"""\
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata: {{name: {name}}}
spec: {{version: 1.0.0, image: "x:1", app: "{name}:module", database: {{}}, events: {events}}}
---
apiVersion: moorage.dev/v1alpha1
kind: Route
metadata: {{name: {name}}}
spec:
  module: {name}
  prefix: /api/v1/{name}
  rules: [{{name: order, methods: [POST], path: /orders, auth: none}}]
"""
    )
    return root / name


def make_shop() -> Module:
    shop = Module("shop")

    @shop.handle("order")
    async def order(db: Db) -> None:
        await db.emit(Placed(id=uuid4(), total=7))

    return shop


def make_mail(heard: "asyncio.Queue[tuple[Placed, EventInfo]]") -> Module:
    mail = Module("mail")

    @mail.on(Placed)
    async def react(event: Placed, info: EventInfo) -> None:
        if event.total < 0:
            raise ArithmeticError("negative")
        heard.put_nowait((event, info))

    return mail


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    for name in ("shop", "mail"):
        (tmp_path / name / "migrations" / "versions").mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    return (
        folder(tmp_path / "m", "shop", "{publishes: [shop.order.placed]}"),
        folder(tmp_path / "m", "mail", "{subscribes: [{type: shop.order.placed}]}"),
    )


async def test_a_module_beside_another_hears_its_events(
    moorage_postgres: str, modules: tuple[Path, Path]
) -> None:
    heard: asyncio.Queue[tuple[Placed, EventInfo]] = asyncio.Queue()
    async with (
        ModuleHarness(modules[0], server_dsn=moorage_postgres, module=make_shop()) as shop,
        ModuleHarness(modules[1], module=make_mail(heard), beside=shop),
    ):
        answer = await shop.anonymous().post("/api/v1/shop/orders")
        assert answer.status in {200, 201, 204}
        async with asyncio.timeout(10):
            event, info = await heard.get()
        assert shop.emitted(Placed) == [event]
        assert shop.emitted(Unknown) == []
        assert (event.total, info.source, info.key, info.attempt) == (7, "/default/shop", str(event.id), 1)


async def test_a_handler_is_called_without_an_emitter(
    moorage_postgres: str, modules: tuple[Path, Path]
) -> None:
    heard: asyncio.Queue[tuple[Placed, EventInfo]] = asyncio.Queue()
    async with ModuleHarness(modules[1], server_dsn=moorage_postgres, module=make_mail(heard)) as mail:
        sent = Placed(id=uuid4(), total=1)
        await mail.deliver(sent, source="/default/shop")
        event, info = heard.get_nowait()
        assert (event, info.source) == (sent, "/default/shop")
        with pytest.raises(ArithmeticError):
            await mail.deliver(Placed(id=uuid4(), total=-1))
        with pytest.raises(LookupError, match=r"shop\.order\.lost"):
            await mail.deliver(Unknown(id=uuid4()))
