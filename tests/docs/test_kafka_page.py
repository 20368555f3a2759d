"""docs/ports/kafka.md: its commands give modules exactly the rights that they need, on a real, closed cluster."""

import asyncio
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.config.settings import Kafka
from moorage.events.bus import BusUnavailable, Message, Partition
from moorage.events.kafka import KafkaPublisher
from moorage.events.kafka_group import KafkaSubscriber
from moorage.events.kafka_link import Names
from rigs import kafka
from rigs.plugin import available
from testcluster.pki import Authority

NAMES = Names("moorage", "default")
TOPIC = "shop.order"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[kafka.Broker]:
    """Knows ``shop`` and ``ledger``, who may do nothing."""
    users = {"shop": "shop-secret", "ledger": "ledger-secret"}
    security = kafka.Security(users, Authority(tmp_path / "ca"))
    with available(), kafka.running(tmp_path / "kafka", security=security) as running:
        yield running


def settings(broker: kafka.Broker, user: str) -> Kafka:
    return Kafka.model_validate(broker.client_properties(user) | {"timeout": 5.0})


def follow(page, broker: kafka.Broker) -> None:
    """Type the page's commands of Kafka."""
    admin = str(broker.admin_file())
    lines = [line for block in page.blocks if block.language == "sh" for line in block.text.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("kafka-")]
    assert len(commands) == 4
    for command, *arguments in commands:
        known = {"kafka-0:9093": broker.bootstrap, "admin.properties": admin}
        broker.run(command, *(known.get(one, one) for one in arguments))


async def nothing(_: frozenset[Partition]) -> None: ...


async def steal(thief: KafkaSubscriber) -> None:
    await thief.open([TOPIC], nothing)
    for _ in range(10):
        assert await thief.fetch(10, 1.0) == {}


async def test_the_rights_on_the_page_are_enough_and_no_more(page, broker: kafka.Broker) -> None:
    """Before: refused, and told for which topic. After: one sends, the other receives, and neither the other way."""
    shop = KafkaPublisher(settings(broker, "shop"), NAMES, topics=[TOPIC])
    with pytest.raises(BusUnavailable, match=r"moorage\.default\.shop\.order"):
        await shop.open()
    await asyncio.to_thread(follow, page("docs/ports/kafka.md"), broker)
    ledger = KafkaSubscriber(settings(broker, "ledger"), NAMES, module="ledger", session=6.0)
    thief = KafkaSubscriber(settings(broker, "shop"), NAMES, module="shop", session=6.0)
    forger = KafkaPublisher(settings(broker, "ledger"), NAMES, topics=[TOPIC])
    try:
        await shop.open()
        await shop.publish([Message(TOPIC, "k", b"{}")])
        await ledger.open([TOPIC], nothing)
        found = await ledger.fetch(10, 20.0)
        assert [one.body for some in found.values() for one in some] == [b"{}"]
        await ledger.commit({place: some[-1].position + 1 for place, some in found.items()})
        with pytest.raises(BusUnavailable):
            await forger.publish([Message(TOPIC, "k", b"forged")])
        with pytest.raises(BusUnavailable):
            await steal(thief)
    finally:
        for one in (shop, ledger, thief, forger):
            await one.close()
