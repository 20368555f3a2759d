"""What the policy stream promises to guards: every server of it has to pass, today the stand-in of the testing kit."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from moorage.testing import PolicyStream
from moorage.testing.stream_contract import CHECKS


class Stub:
    """The stand-in, as the checks see a server."""

    place = ("default", "blog")
    heartbeat = 0.3

    def __init__(self, stream: PolicyStream) -> None:
        self._stream = stream
        self.urls, self.token, self.trust = stream.urls, stream.token, stream.trust
        self.core_namespace = stream.core_namespace

    async def change(self) -> None:
        self._stream.change(sessions=[str(uuid4())])


@pytest.fixture
async def server() -> AsyncIterator[Stub]:
    async with PolicyStream(replicas=2, heartbeat=Stub.heartbeat) as stream:
        yield Stub(stream)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_server_keeps_what_the_stream_promises(check, server: Stub) -> None:
    await check(server)
