"""Ports: the contract's where free, others where not, and a clear word about who holds one."""

import os
import socket
from collections.abc import Iterator

import pytest

from moorage_operator.local import ports


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.socket() as server:
        server.bind((ports.LOOPBACK, 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_taken_port_is_refused_with_its_owner_and_the_flag(taken: int) -> None:
    with pytest.raises(ports.PortTakenError) as refused:
        ports.require(taken, "--port")
    assert f"port {taken} of 127.0.0.1 is in use by " in str(refused.value)
    assert f"(pid {os.getpid()})" in str(refused.value)
    assert "--port PORT" in str(refused.value)


def test_a_free_port_is_taken_as_it_is() -> None:
    free = ports.require(0, "--port")
    assert ports.require(free, "--port") == free


def test_modules_get_another_port_where_theirs_is_in_use_and_none_twice(taken: int) -> None:
    handed = ports.Ports()
    first = handed.take(taken)
    assert first != taken
    assert handed.take(first) != first
