"""Who listens in the pod: an app that can be reached past the guard makes it worthless.

All containers of a pod share one network namespace, so `/proc/net/tcp` shows the app's sockets, too.
The format is described in proc_pid_net(5): addresses are words in the byte order of the host.
"""

import ipaddress
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from moorage.guard.headers import IPAddress

TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN: Final = "0A"


def bypassable(own_ports: Iterable[int], tables: Iterable[Path] = TABLES) -> list[str] | None:
    """Sockets beyond loopback that are not our own, as ``:8000`` (every address) or ``10.0.0.7:8000``.

    ``None`` where the kernel does not tell (no Linux).
    """
    own = frozenset(own_ports)
    found: set[tuple[int, str]] = set()
    known = False
    for table in tables:
        try:
            lines = table.read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        known = True
        found.update(
            (port, "" if address.is_unspecified else str(address))
            for address, port in _listening(lines)
            if not address.is_loopback and port not in own
        )
    if not known:
        return None
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for port, host in sorted(found)]


def _listening(lines: Iterable[str]) -> Iterator[tuple[IPAddress, int]]:
    for line in lines:
        columns = line.split()
        if len(columns) > 3 and columns[3] == _LISTEN:
            address, _, port = columns[1].partition(":")
            yield parse_address(address), int(port, 16)


def parse_address(text: str) -> IPAddress:
    """An address of these tables: 8 or 32 hexadecimal digits; IPv4 in IPv6 is the IPv4 address it stands for."""
    words = [text[start : start + 8] for start in range(0, len(text), 8)]
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    if len(packed) == 4:
        return ipaddress.IPv4Address(packed)
    address = ipaddress.IPv6Address(packed)
    return address.ipv4_mapped or address
