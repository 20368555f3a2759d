"""DNS for pods (CoreDNS) and the edge (Contour with Envoy), as host processes."""

import http.client
import subprocess
from importlib import resources
from pathlib import Path

import yaml

from testcluster import paths
from testcluster.native import layout
from testcluster.native.api import condition
from testcluster.native.control_plane import ControlPlane
from testcluster.process import ProcessError
from testcluster.waiting import until

GATEWAY_NAMESPACE = "projectcontour"
GATEWAY = "edge"
_CONTAINER_PORT_OFFSET = 8000
"""Contour lets Envoy listen on a Gateway listener's port plus this, so that 80 needs no privilege."""


def apply_definitions(control: ControlPlane) -> None:
    """Create the CRDs of Contour and Gateway API, and wait until they are served.

    Gateway API's *experimental* ones: Contour watches TLSRoute, which is not in the standard channel.
    """
    files = [control.programs["contour-deployment"] / "01-crds.yaml"]
    files += sorted(control.programs["gateway-api-crds"].glob("gateway.networking.k8s.io_*.yaml"))
    control.kubectl("create", "--validate=false", *(f"--filename={f}" for f in files))

    def established() -> bool:
        found = control.api.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
        return all(condition(definition, "Established") for definition in found)

    until("the edge's CRDs are established", established, 30)


def apply_objects(control: ControlPlane) -> None:
    """Create rights of Contour and CoreDNS, the Gateway on the edge's port, and both classes."""
    documents = []
    for path in (
        paths.MANIFESTS / "edge.yaml",  # first: the namespace is in it
        control.programs["contour-deployment"] / "02-role-contour.yaml",
        paths.MANIFESTS / "native.yaml",
    ):
        documents += [d for d in yaml.safe_load_all(path.read_text()) if d]
    for document in documents:
        if document["kind"] == "Gateway":
            listener = document["spec"]["listeners"][0]
            listener["port"] = control.state.ports.edge - _CONTAINER_PORT_OFFSET
    control.kubectl("create", "--validate=false", "-f", "-", input=yaml.safe_dump_all(documents))


def start_dns(control: ControlPlane) -> None:
    """Start CoreDNS on the bridge's address; returns at once."""
    kubeconfig = control.kubeconfig("coredns", "moorage-test-coredns")
    corefile = control.run / "Corefile"
    corefile.write_text(
        f"""cluster.local:53 in-addr.arpa:53 .:53 {{
    bind {layout.NODE_ADDRESS}
    errors
    health 127.0.0.1:{control.state.ports.dns_health}
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
    }}
    forward . /etc/resolv.conf
    cache 5
}}
"""
    )
    control.supervisor.spawn("coredns", [control.programs["coredns"], "-conf", corefile])


def wait_for_dns(control: ControlPlane) -> None:
    """Wait until CoreDNS has bound its addresses; raises TimedOutError with its log."""

    def answers() -> bool:
        if control.supervisor.find("coredns") is None:
            raise RuntimeError(
                f"CoreDNS ended; does something else listen on port 53 of {layout.NODE_ADDRESS}?"
            )
        return _answers(control.state.ports.dns_health, "/health")

    until("CoreDNS answers", answers, 15, explain=lambda: control.supervisor.tail("coredns"))


def start_contour(control: ControlPlane) -> None:
    """Start Contour and Envoy; its CRDs have to be established. Returns at once."""
    run, ports, contour = control.run, control.state.ports, control.programs["contour"]
    config = run / "contour.yaml"
    config.write_text(
        yaml.safe_dump({"gateway": {"gatewayRef": {"namespace": GATEWAY_NAMESPACE, "name": GATEWAY}}})
    )
    control.supervisor.spawn(
        "contour",
        [
            contour,
            "serve",
            f"--config-path={config}",
            f"--kubeconfig={control.kubeconfig('contour', 'moorage-test-contour')}",
            "--disable-leader-election",
            "--insecure",  # its stream to Envoy, which does not leave loopback
            "--xds-address=127.0.0.1",
            f"--xds-port={ports.contour_xds}",
            "--health-address=127.0.0.1",
            f"--health-port={ports.contour_health}",
            "--http-address=127.0.0.1",
            f"--http-port={ports.contour_metrics}",
            "--debug-http-address=127.0.0.1",
            f"--debug-http-port={ports.contour_debug}",
            "--stats-address=127.0.0.1",
            f"--stats-port={ports.envoy_stats}",
            "--envoy-service-http-address=127.0.0.1",
            f"--envoy-service-http-port={ports.edge}",
            "--envoy-service-https-address=127.0.0.1",
            "--ingress-class-name=contour",
            "--ingress-status-address=127.0.0.1",
        ],
    )
    bootstrap = run / "envoy.json"
    done = subprocess.run(
        [
            contour,
            "bootstrap",
            bootstrap,
            f"--admin-address={run / 'envoy-admin.sock'}",
            "--xds-address=127.0.0.1",
            f"--xds-port={ports.contour_xds}",
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ProcessError(f"contour bootstrap failed ({done.returncode}): {done.stderr.strip()}")
    envoy = Path(str(resources.files("envoy"))) / "_bin" / "envoy"
    control.supervisor.spawn(
        "envoy",
        [
            envoy,
            *("-c", bootstrap, "--service-cluster", "contour", "--service-node", layout.NODE),
            *("--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"),
        ],
    )


def wait_for_edge(control: ControlPlane) -> None:
    """Wait until the Gateway is programmed and Envoy answers; raises TimedOutError with their logs."""

    def programmed() -> bool:
        path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{GATEWAY_NAMESPACE}/gateways/{GATEWAY}"
        return condition(control.api.get(path), "Programmed")

    def explain() -> str:
        return control.supervisor.tail("contour") + "\n" + control.supervisor.tail("envoy")

    until("the Gateway is programmed", programmed, 60, explain=explain)
    # Its readiness listener, which Contour configures: the one for HTTP only exists from the first route on.
    until(
        "Envoy has its configuration",
        lambda: _answers(control.state.ports.envoy_stats, "/ready"),
        30,
        explain=explain,
    )


def _answers(port: int, path: str) -> bool:
    """Tell whether a loopback port answers a path with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    finally:
        connection.close()
