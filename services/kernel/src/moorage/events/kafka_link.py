"""What both halves of the Kafka bus stand on: names, connections, topics."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]  # neither stubs nor py.typed
from aiokafka.errors import (  # type: ignore[import-untyped]
    KafkaError,
    NoError,
    TopicAlreadyExistsError,
    for_code,
)

from moorage.config.settings import Kafka
from moorage.events.bus import BusUnavailable

log = structlog.get_logger("moorage.events")
# It logs every attempt that fails, ten in a second; whoever uses the bus says once that it is away, and why.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

STOP: Final = 5.0
"""Seconds in which a connection has to end by itself."""
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 3.0
_DENIED: Final = frozenset({29, 31})
"""TOPIC_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED."""
_UNKNOWN_TOPIC: Final = 3


@dataclass(frozen=True, slots=True)
class Names:
    """What things of one namespace are called in a cluster that other namespaces and installations share."""

    installation: str
    namespace: str
    core_namespace: str = "moorage-system"

    def topic(self, topic: str) -> str:
        """Kafka's name of *topic*; what begins with ``platform.`` is the core namespace's, seen by all."""
        owner = self.core_namespace if topic.partition(".")[0] == "platform" else self.namespace
        return f"{self.installation}.{owner}.{topic}"

    def group(self, module: str) -> str:
        """The consumer group of *module*."""
        return f"{self.installation}.{self.namespace}.{module}"


@dataclass
class Pause:
    """Pauses between attempts that fail: each longer than the last, up to a few seconds."""

    seconds: float = 0.0

    async def __call__(self) -> None:
        if self.seconds:
            await asyncio.sleep(self.seconds)

    def longer(self) -> None:
        self.seconds = min(max(self.seconds * 2, _FIRST_PAUSE), _LONGEST_PAUSE)

    def over(self) -> None:
        self.seconds = 0.0


async def ensure_topics(settings: Kafka, topics: Collection[str], *, client_id: str) -> None:
    """Have Kafka's *topics* (full names): make those that are missing, with ``kafka.partitions`` and ``.replication``.

    Raises:
        BusUnavailable: the cluster does not answer, or forbids it; the text names the topic and what to do.
    """
    if not topics:
        return
    admin = AIOKafkaAdminClient(
        **connection(settings, client_id), request_timeout_ms=milliseconds(settings.timeout)
    )
    try:
        async with asyncio.timeout(settings.timeout):
            await admin.start()
            missing = _missing(await admin.describe_topics(sorted(topics)))
            if missing:
                answer = await admin.create_topics([_new(settings, name) for name in missing])
                _check_created(settings, answer.topic_errors)
    except (KafkaError, OSError, TimeoutError, ValueError) as exc:
        raise unavailable(settings, exc) from exc
    finally:
        with contextlib.suppress(KafkaError, OSError):
            await admin.close()


def _missing(described: Sequence[Mapping[str, Any]]) -> list[str]:
    # Without the right to describe it, a topic may be there or not: the broker tells neither, and creating it decides.
    return [
        topic["topic"]
        for topic in described
        if topic["error_code"] == _UNKNOWN_TOPIC or topic["error_code"] in _DENIED
    ]


def _new(settings: Kafka, name: str) -> NewTopic:
    # Acknowledged by all but one copy, so that one broker may fail and what was acknowledged is still there.
    safe = {"min.insync.replicas": str(max(1, settings.replication - 1))}
    return NewTopic(name, settings.partitions, settings.replication, topic_configs=safe)


def _check_created(settings: Kafka, errors: Sequence[tuple[Any, ...]]) -> None:
    for name, code, *text in errors:
        error = for_code(code)
        if error in (NoError, TopicAlreadyExistsError):
            continue
        if code in _DENIED:
            raise BusUnavailable(
                f"Kafka: the topic {name} is missing or closed to "
                f"{settings.username or 'this principal'}: create it with {settings.partitions} partitions, and allow "
                "Describe and Read or Write on it (docs/ports/kafka.md)"
            )
        raise BusUnavailable(
            f"Kafka: the topic {name} cannot be made with kafka.partitions={settings.partitions} and "
            f"kafka.replication={settings.replication}: {text[0] if text and text[0] else error.__name__}"
        )


async def quietly(closing: Awaitable[None]) -> None:
    """Await what closes something, for `STOP` seconds; its failure is nobody's concern any more."""
    try:
        async with asyncio.timeout(STOP):
            await closing
    except Exception as exc:  # noqa: BLE001 - of a connection that is of no use any more
        log.debug("a connection ended with an error", error=repr(exc))


def connection(settings: Kafka, client_id: str) -> dict[str, Any]:
    """Arguments that every client of aiokafka takes."""
    assert settings.brokers is not None
    arguments: dict[str, Any] = {
        "bootstrap_servers": [broker.strip() for broker in settings.brokers.split(",")],
        "client_id": client_id,
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        arguments["ssl_context"] = _tls(settings)
    if settings.security_protocol.startswith("SASL_"):
        assert settings.password is not None
        arguments |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": settings.password.get_secret_value(),
        }
    return arguments


def _tls(settings: Kafka) -> ssl.SSLContext:
    """Read anew for every connection: mounted certificates change while we run."""
    context = ssl.create_default_context(cafile=settings.ca_file)
    if settings.cert_file is not None:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


def unavailable(settings: Kafka, exc: BaseException) -> BusUnavailable:
    """What a failure of aiokafka is for those who use the bus."""
    if isinstance(exc, TimeoutError):
        return BusUnavailable(f"Kafka: no answer of {settings.brokers} within {settings.timeout:g} s")
    return BusUnavailable(f"Kafka at {settings.brokers}: {type(exc).__name__}: {exc}")


def milliseconds(seconds: float) -> int:
    """As aiokafka takes durations."""
    return round(seconds * 1000)


def noticed(future: "asyncio.Future[Any]") -> None:
    """Look at the exception, so that asyncio does not report one of a batch that was given up."""
    if not future.cancelled():
        future.exception()
