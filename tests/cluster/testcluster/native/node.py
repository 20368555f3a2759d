"""The node: containerd, kubelet and kube-proxy, as host processes with all state in the run directory."""

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from testcluster import oci
from testcluster.native import layout
from testcluster.native.control_plane import ControlPlane
from testcluster.native.layout import State
from testcluster.process import Supervisor
from testcluster.waiting import until

_CNI_PLUGINS = Path("/usr/lib/cni")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def containerd_socket(run: Path) -> Path:
    """Return the path of containerd's socket."""
    return run / "containerd.sock"


def ctr(run: Path, *args: str | Path, timeout: float = 300) -> str:
    """Run containerd's client in the kubelet's namespace; raises RuntimeError with its complaint."""
    command = ["ctr", "--address", containerd_socket(run), "--namespace", "k8s.io", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"ctr {' '.join(map(str, args))} failed: {done.stderr.strip()}")
    return done.stdout


def start_containerd(run: Path, supervisor: Supervisor, programs: Mapping[str, Path], mtu: int) -> None:
    """Start containerd with the pause image in it; raises TimedOutError."""
    _write_cni_configuration(run, mtu)
    config = run / "containerd.toml"
    config.write_text(_containerd_config(run))
    supervisor.spawn("containerd", ["containerd", "--config", config])
    until(
        "containerd answers",
        lambda: bool(ctr(run, "version", timeout=5)),
        30,
        explain=lambda: supervisor.tail("containerd"),
    )
    archive = run / "pause.tar"
    machine = _ARCHITECTURES.get(platform.machine(), platform.machine())
    oci.write_archive(programs["pause"], layout.PAUSE_IMAGE, machine, archive)
    ctr(run, "images", "import", archive)
    archive.unlink()


def start_kubelet(control: ControlPlane) -> None:
    """Start the kubelet; returns at once."""
    run, state = control.run, control.state
    _make_cgroup_parent()
    serving = control.authority.issue(
        "kubelet", f"system:node:{layout.NODE}", ["system:nodes"], [layout.NODE, layout.NODE_ADDRESS]
    )
    config = run / "kubelet.yaml"
    settings = _kubelet_config(run, state)
    settings["authentication"]["x509"] = {"clientCAFile": str(control.authority.pair.certificate)}
    settings |= {"tlsCertFile": str(serving.certificate), "tlsPrivateKeyFile": str(serving.key)}
    config.write_text(yaml.safe_dump(settings))
    kubeconfig = control.kubeconfig("kubelet", f"system:node:{layout.NODE}", "system:nodes")
    control.supervisor.spawn(
        "kubelet",
        [
            control.programs["kubelet"],
            f"--config={config}",
            f"--kubeconfig={kubeconfig}",
            f"--root-dir={run / 'kubelet'}",
            f"--hostname-override={layout.NODE}",
            f"--node-ip={layout.NODE_ADDRESS}",
        ],
    )


def start_proxy(control: ControlPlane) -> None:
    """Start kube-proxy, which makes Service addresses work; returns at once."""
    ports = control.state.ports
    control.supervisor.spawn(
        "kube-proxy",
        [
            control.programs["kube-proxy"],
            f"--kubeconfig={control.kubeconfig('proxy', 'system:kube-proxy')}",
            "--proxy-mode=nftables",
            f"--hostname-override={layout.NODE}",
            f"--cluster-cidr={layout.POD_RANGE}",
            "--conntrack-max-per-core=0",  # what a container or small VM may not set
            f"--healthz-bind-address=127.0.0.1:{ports.proxy_health}",
            f"--metrics-bind-address=127.0.0.1:{ports.proxy_metrics}",
        ],
    )


def _write_cni_configuration(run: Path, mtu: int) -> None:
    folder = run / "cni"
    folder.mkdir(exist_ok=True)
    bridge = {
        "type": "bridge",
        "bridge": layout.BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "mtu": mtu,
        # Masquerading is a rule of our own (network.py): the plugin's leave traces in iptables.
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": layout.POD_SUBNET}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(run / "cni-addresses"),
        },
    }
    config = {"cniVersion": "0.4.0", "name": layout.CNI_NETWORK, "plugins": [bridge]}
    (folder / "10-bridge.conflist").write_text(json.dumps(config))


def _containerd_config(run: Path) -> str:
    return f"""version = 2
root = "{run / "containerd/root"}"
state = "{run / "containerd/state"}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{containerd_socket(run)}"
[plugins."io.containerd.grpc.v1.cri"]
  # Lowering a process's score needs CAP_SYS_RESOURCE, which this machine may lack.
  restrict_oom_score_adj = true
  sandbox_image = "{layout.PAUSE_IMAGE}"
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{_CNI_PLUGINS}"
  conf_dir = "{run / "cni"}"
"""


def _kubelet_config(run: Path, state: State) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": layout.NODE_ADDRESS,
        "port": state.ports.kubelet,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": state.ports.kubelet_health,
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}},
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [layout.NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{containerd_socket(run)}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.CGROUP}",
        "failCgroupV1": False,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        "oomScoreAdj": 0,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "podLogsDir": str(run / "pod-logs"),
        "volumePluginDir": str(run / "volume-plugins"),
        "serializeImagePulls": False,
        # Images are brought by hand and could not be pulled again: never collect them.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
    }


def _make_cgroup_parent() -> None:
    """Create the parent of all pods' control groups, in every hierarchy (one, with cgroup v2)."""
    for root in cgroup_roots():
        (root / layout.CGROUP).mkdir(exist_ok=True)
        if root.name == "cpuset":
            # A new cpuset is empty, and nothing can be put into it until it has processors and memory.
            for name in ("cpuset.cpus", "cpuset.mems"):
                shutil.copyfile(root / name, root / layout.CGROUP / name)


def cgroup_roots() -> list[Path]:
    """Return the mount points of the control group hierarchies in use."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return sorted(
        p for p in root.iterdir() if p.is_dir() and (p / "cgroup.procs").exists() and not p.is_symlink()
    )
