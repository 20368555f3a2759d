"""Bringing the native cluster up, step by step, and taking it down."""

import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from testcluster import build
from testcluster.native import database, edge, layout, network, node
from testcluster.native.api import condition, from_kubeconfig
from testcluster.native.control_plane import ControlPlane
from testcluster.native.layout import Ports, State
from testcluster.native.teardown import claim, sweep
from testcluster.process import ProcessError, Supervisor
from testcluster.progress import step
from testcluster.waiting import until

PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kubectl",
    "pause",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
    "contour",
    "contour-deployment",
    "gateway-api-crds",
)

_PARTS = frozenset(
    {
        *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"),
        *("containerd", "kubelet", "kube-proxy", "coredns", "contour", "envoy", "postgres"),
    }
)
"""Every process of a whole cluster."""


def running(run: Path) -> State | None:
    """Return the state of a cluster that is up and answers, or None."""
    state = State.read(run)
    if state is None or not state.ready:
        return None
    if _PARTS.difference(Supervisor(run).running()):
        return None
    return state if from_kubeconfig(run / "admin.kubeconfig", run / "pki").healthy() else None


def up(run: Path, keep: bool, cluster_id: str) -> State:
    """Start a fresh cluster in `run`, after ending whatever an earlier run left there.

    Raises when it cannot be had; what was started until then is ended again, also when
    interrupted (KeyboardInterrupt).
    """
    run.mkdir(parents=True, exist_ok=True)
    run.chmod(0o711)
    programs = build.ensure(*PROGRAMS)
    sweep(run)
    claim(run)
    shutil.rmtree(run / "logs", ignore_errors=True)
    state = State(cluster_id, keep, Ports.choose(), secrets.token_urlsafe(24))
    state.write(run)
    try:
        with step("cluster"):
            state = _start(run, state, programs)
    except BaseException:
        sweep(run)
        raise
    return state


def _start(run: Path, state: State, programs: dict[str, Path]) -> State:
    supervisor = Supervisor(run)
    with step("network"):
        state = replace(state, sysctls=network.up())
        state.write(run)
        control = ControlPlane(run, state, supervisor, programs)
    with ThreadPoolExecutor() as pool:
        postgres = pool.submit(_timed, "postgres", database.start, run, state, supervisor)
        with step("API server"):
            control.start_servers()
            containerd = pool.submit(
                _timed, "containerd", node.start_containerd, run, supervisor, programs, network.uplink_mtu()
            )
            control.wait()
        control.start_controllers()
        edge.start_dns(control)
        containerd.result()
        node.start_kubelet(control)
        with step("CRDs and rights"):
            edge.apply_definitions(control)
            edge.apply_objects(control)
        edge.start_contour(control)
        node.start_proxy(control)
        with step("node"):
            _wait_for_node(control)
        with step("edge"):
            edge.wait_for_edge(control)
            edge.wait_for_dns(control)
        postgres.result()
    if ended := _PARTS.difference(supervisor.running()):
        logs = "\n".join(f"{name}:\n{supervisor.tail(name)}" for name in sorted(ended))
        raise ProcessError(f"parts of the cluster ended while it started:\n{logs}")
    state = replace(state, ready=True)
    state.write(run)
    return state


def _timed(name: str, function, *args) -> None:  # type: ignore[no-untyped-def]
    with step(name):
        function(*args)


def _wait_for_node(control: ControlPlane) -> None:
    """Wait until the node takes pods and the default service account exists."""

    def ready() -> bool:
        found = control.api.get(f"/api/v1/nodes/{layout.NODE}")
        return condition(found, "Ready") and not (found["spec"].get("taints"))

    until("the node is ready", ready, 90, explain=lambda: control.supervisor.tail("kubelet"))
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    until("the controller manager works", lambda: control.api.get(account) is not None, 60)
