"""pytest plugin: one session fixture for each real server. Nothing is imported before a test asks for it.

A new rig is a module beside this one and a fixture here::

    @pytest.fixture(scope="session")
    def redis_server() -> Iterator[str]:
        from rigs import redis

        with available(), redis.running() as server:
            yield server.url
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from rigs import RigUnavailable
from testcluster.switches import switched_on

if TYPE_CHECKING:
    from rigs.pgbouncer import Pooler


@contextmanager
def available() -> Iterator[None]:
    """Within the block, `RigUnavailable` skips the asking test; with `CI=true` it fails it."""
    try:
        yield
    except RigUnavailable as error:
        if switched_on("CI"):
            pytest.fail(f"CI=true, and {error}", pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a real Redis. Everybody shares it: nobody may stop it or remove what is not his."""
    from rigs import redis

    with available(), redis.running() as server:
        yield server.url


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a real Kafka broker. Everybody shares it: use topics and groups of your own names.

    A test that kills or secures its broker starts one with `rigs.kafka.running`.
    """
    from rigs import kafka

    with available(), kafka.running(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker.bootstrap


@pytest.fixture(scope="session")
def postgres15() -> Iterator[str]:
    """The superuser's DSN of a real PostgreSQL 15. Everybody shares it: use databases of your own."""
    from rigs import postgres15 as rig

    with available(), rig.running() as server:
        yield server.dsn


@pytest.fixture(scope="session")
def pgbouncer(postgres15: str) -> "Iterator[Pooler]":
    """A real PgBouncer in transaction mode before `postgres15`, with two connections for each role and database."""
    from rigs import pgbouncer as rig

    with available(), rig.running(postgres15) as pooler:
        yield pooler
