"""Who listens beyond loopback, read from the kernel's tables."""

import socket
import sys

import pytest

from moorage_gateway.sidecar.listeners import bypassable, parse_address

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def table(tmp_path, name, *rows):
    path = tmp_path / name
    path.write_text(HEAD + "".join(f"   {n}: {row} 00000000:00000000\n" for n, row in enumerate(rows)))
    return path


@pytest.mark.skipif(sys.byteorder != "little", reason="the rows below are those of a little-endian machine")
def test_rows_are_read_as_the_kernel_writes_them(tmp_path):
    tcp = table(
        tmp_path,
        "tcp",
        "0100007F:1F91 00000000:0000 0A",  # 127.0.0.1:8081, the app as it should be
        "00000000:1F40 00000000:0000 0A",  # 0.0.0.0:8000
        "0700000A:2328 00000000:0000 0A",  # 10.0.0.7:9000
        "00000000:1F90 00000000:0000 0A",  # 8080, ours
        "0700000A:C000 0800000A:1F90 01",  # a connection, not a listener
    )
    tcp6 = table(
        tmp_path,
        "tcp6",
        "00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A",  # ::1
        "0000000000000000FFFF00000100007F:1F91 00000000000000000000000000000000:0000 0A",  # ::ffff:127.0.0.1
        "00000000000000000000000000000000:1F41 00000000000000000000000000000000:0000 0A",  # :::8001
        "000080FE000000000000000001000000:1F42 00000000000000000000000000000000:0000 0A",  # fe80::1
    )
    assert bypassable((8080, 9901), (tcp, tcp6)) == [":8000", ":8001", "[fe80::1]:8002", "10.0.0.7:9000"]


def test_where_the_kernel_does_not_tell_nothing_is_claimed(tmp_path):
    assert bypassable((), (tmp_path / "none",)) is None
    assert bypassable((), (table(tmp_path, "tcp"), tmp_path / "none")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/net/tcp is Linux's")
@pytest.mark.parametrize(
    ("address", "family"), [("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)], ids=["IPv4", "IPv6"]
)
def test_a_real_listener_beyond_loopback_is_found(address, family):
    with socket.create_server((address, 0), family=family) as listening:
        port = listening.getsockname()[1]
        assert f":{port}" in bypassable(())
        assert f":{port}" not in bypassable((port,))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/net/tcp is Linux's")
def test_a_real_listener_on_loopback_is_none():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert not any(str(listening.getsockname()[1]) in found for found in bypassable(()))


def test_addresses_have_the_byte_order_of_the_host():
    assert parse_address("0100007F" if sys.byteorder == "little" else "7F000001").is_loopback
