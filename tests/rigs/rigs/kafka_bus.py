"""The Kafka bus as the conformance suite wants it."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from moorage.config.settings import Kafka
from moorage.events.bus import Subscriber
from moorage.events.kafka import KafkaPublisher
from moorage.events.kafka_group import KafkaSubscriber
from moorage.events.kafka_link import Names


@dataclass
class KafkaBus:
    """An installation of its own on the broker at *bootstrap*: empty, because nobody else uses its names."""

    bootstrap: str
    core_namespace: str = "moorage-system"
    installation: str = field(default_factory=lambda: f"t{secrets.token_hex(5)}")

    @property
    def settings(self) -> Kafka:
        """The group ``kafka`` of every module."""
        return Kafka(brokers=self.bootstrap, partitions=8)

    async def declare(
        self, namespace: str, module: str, *, publishes: Sequence[str] = (), subscribes: Sequence[str] = ()
    ) -> None:
        """See `rigs.buses.Bus`: Kafka knows no declarations; rights are ACLs, which this broker does not ask for."""

    def publisher(self, namespace: str, module: str) -> KafkaPublisher:
        """See `rigs.buses.Bus`."""
        return KafkaPublisher(self.settings, self._names(namespace), client_id=module)

    def subscriber(self, namespace: str, module: str, *, lease: float = 15.0) -> KafkaSubscriber:
        """See `rigs.buses.Bus`."""
        return KafkaSubscriber(self.settings, self._names(namespace), module=module, session=lease)

    async def freeze(self, subscriber: Subscriber) -> None:
        """See `rigs.buses.Bus`: no heartbeats any more."""
        assert isinstance(subscriber, KafkaSubscriber)
        assert subscriber._consumer is not None
        coordinator = subscriber._consumer._coordinator
        coordinator._coordination_task.cancel()
        coordinator._heartbeat_task.cancel()

    def _names(self, namespace: str) -> Names:
        return Names(self.installation, namespace, self.core_namespace)
