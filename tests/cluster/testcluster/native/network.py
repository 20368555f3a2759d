"""The node's network: a bridge for pods, masquerading, and the kernel settings both need."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from testcluster.native import layout

_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    # Without it a pod's answer to a Service's client on the same bridge bypasses the address translation.
    "net/bridge/bridge-nf-call-iptables": "1",
}


class NetworkError(RuntimeError):
    """The machine's network is not as it has to be; the message says what is in the way."""


def up() -> dict[str, str]:
    """Create bridge, masquerading and kernel settings; returns the settings as they were before.

    Raises NetworkError when the machine uses one of our addresses, or runs Kubernetes already.
    """
    _refuse_conflicts()
    _ip("link", "add", layout.BRIDGE, "mtu", str(uplink_mtu()), "type", "bridge")
    _ip("addr", "add", f"{layout.NODE_ADDRESS}/24", "dev", layout.BRIDGE)
    _ip("link", "set", layout.BRIDGE, "up")
    _nft(
        f"""
        table ip {layout.NFT_TABLE} {{
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {layout.POD_SUBNET} ip daddr != {layout.POD_RANGE} masquerade
            }}
        }}"""
    )
    if shutil.which("modprobe"):
        # Built into some kernels, absent in others; whether it helped shows below.
        subprocess.run(["modprobe", "br_netfilter"], capture_output=True)
    before = {}
    for name, value in _SYSCTLS.items():
        path = Path("/proc/sys") / name
        if not path.exists():
            raise NetworkError(f"this kernel has no {name.replace('/', '.')}: load the module br_netfilter")
        before[name] = path.read_text().strip()
        path.write_text(value)
    return before


def down(sysctls: dict[str, str] | None) -> None:
    """Remove what `up` and the cluster's own parts made; nothing of it has to exist."""
    for link in _links():
        if link["ifname"] == layout.BRIDGE or link.get("master") == layout.BRIDGE:
            _ip("link", "del", link["ifname"], check=False)
    for family, table in (("ip", layout.NFT_TABLE), ("ip", "kube-proxy"), ("ip6", "kube-proxy")):
        subprocess.run(["nft", "delete", "table", family, table], capture_output=True)
    for name, value in (sysctls or {}).items():
        (Path("/proc/sys") / name).write_text(value)


def uplink_mtu() -> int:
    """Return the packet size of the interface with the default route: pods must not send larger ones."""
    routes = json.loads(_ip("-json", "route", "show", "default"))
    device = next((r["dev"] for r in routes if "dev" in r), None)
    return next((int(link["mtu"]) for link in _links() if link["ifname"] == device), 1500)


def _refuse_conflicts() -> None:
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    if "kube-proxy" in tables:
        raise NetworkError(
            "this machine has a kube-proxy already: set MOORAGE_TEST_KUBECONFIG to use its cluster instead"
        )
    prefix = layout.POD_SUBNET.rpartition(".")[0] + "."
    for interface in json.loads(_ip("-json", "addr")):
        for address in interface.get("addr_info", ()):
            if str(address.get("local", "")).startswith(prefix):
                raise NetworkError(
                    f"{interface['ifname']} uses {address['local']}, an address of the pod network"
                )


def _links() -> list[dict[str, Any]]:
    links: list[dict[str, Any]] = json.loads(_ip("-json", "link"))
    return links


def _ip(*args: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *args], capture_output=True, text=True)
    if check and done.returncode:
        raise NetworkError(f"`ip {' '.join(args)}` failed: {done.stderr.strip()}")
    return done.stdout


def _nft(rules: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"nft refused the masquerading rule: {done.stderr.strip()}")
