"""etcd, the API server, the controller manager and the scheduler, as host processes."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from testcluster.native import layout
from testcluster.native.api import Api
from testcluster.native.layout import State
from testcluster.pki import Authority, Pair
from testcluster.process import Supervisor
from testcluster.waiting import until


class ControlPlane:
    """Starts the control plane of one run; its keys lie in `<run>/pki`."""

    def __init__(self, run: Path, state: State, supervisor: Supervisor, programs: Mapping[str, Path]) -> None:
        self.run, self.state, self.supervisor, self.programs = run, state, supervisor, programs
        self.authority = Authority(run / "pki")
        self.admin = self.kubeconfig("admin", "moorage-test-admin", "system:masters")
        self.api = Api(
            state.api_server,
            self.authority.pair.certificate,
            Pair(run / "pki/client-admin.crt", run / "pki/client-admin.key"),
        )

    def kubeconfig(self, file: str, user: str, *groups: str) -> Path:
        """Write `<run>/<file>.kubeconfig` for a user; returns its path."""
        path = self.run / f"{file}.kubeconfig"
        return self.authority.kubeconfig(path, self.state.api_server, user, groups)

    def kubectl(self, *args: str, input: str = "") -> str:
        """Run kubectl as the administrator; raises RuntimeError with its complaint."""
        command = [str(self.programs["kubectl"]), f"--kubeconfig={self.admin}", *args]
        done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"kubectl {args[0]} failed: {done.stderr.strip()}")
        return done.stdout

    def start_servers(self) -> None:
        """Start etcd and the API server; returns at once."""
        self._start_etcd()
        self._start_api_server()

    def wait(self) -> None:
        """Wait until the API server is ready; raises TimedOutError with its log."""

        def ready() -> bool:
            for name in ("etcd", "kube-apiserver"):
                if self.supervisor.find(name) is None:
                    raise RuntimeError(f"{name} ended")
            return self.api.healthy()

        until(
            "the API server is ready",
            ready,
            60,
            explain=lambda: self.supervisor.tail("etcd", 5) + "\n" + self.supervisor.tail("kube-apiserver"),
        )

    def start_controllers(self) -> None:
        """Start the controller manager and the scheduler; returns at once."""
        pki, ports = self.run / "pki", self.state.ports
        ca = self.authority.pair
        self.supervisor.spawn(
            "kube-controller-manager",
            [
                self.programs["kube-controller-manager"],
                f"--kubeconfig={self.kubeconfig('controller-manager', 'system:kube-controller-manager')}",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                f"--secure-port={ports.controller_manager}",
                "--use-service-account-credentials",
                f"--service-account-private-key-file={pki / 'service-account.key'}",
                f"--root-ca-file={ca.certificate}",
                f"--cluster-signing-cert-file={ca.certificate}",
                f"--cluster-signing-key-file={ca.key}",
                f"--cluster-cidr={layout.POD_RANGE}",
                "--profiling=false",
            ],
        )
        self.supervisor.spawn(
            "kube-scheduler",
            [
                self.programs["kube-scheduler"],
                f"--kubeconfig={self.kubeconfig('scheduler', 'system:kube-scheduler')}",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                f"--secure-port={ports.scheduler}",
                "--profiling=false",
            ],
        )

    def _start_etcd(self) -> None:
        # TLS even on loopback: whoever reads etcd reads every Secret.
        server = self.authority.issue("etcd", "etcd", hosts=["127.0.0.1"])
        ca = self.authority.pair.certificate
        client = f"https://127.0.0.1:{self.state.ports.etcd}"
        peer = f"https://127.0.0.1:{self.state.ports.etcd_peer}"
        self.supervisor.spawn(
            "etcd",
            [
                self.programs["etcd"],
                "--name=default",
                f"--data-dir={self.run / 'etcd'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                f"--cert-file={server.certificate}",
                f"--key-file={server.key}",
                f"--trusted-ca-file={ca}",
                "--client-cert-auth",
                f"--peer-cert-file={server.certificate}",
                f"--peer-key-file={server.key}",
                f"--peer-trusted-ca-file={ca}",
                "--peer-client-cert-auth",
                # Nothing of it outlives the run.
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
        )

    def _start_api_server(self) -> None:
        self.supervisor.spawn(
            "kube-apiserver",
            [
                self.programs["kube-apiserver"],
                *self._serving_flags(),
                *self._client_flags(),
                *self._account_flags(),
                f"--service-cluster-ip-range={layout.SERVICE_RANGE}",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--profiling=false",
            ],
        )

    def _serving_flags(self) -> list[str]:
        """Return where the API server listens, and under which names it answers."""
        names = [
            f"kubernetes{suffix}" for suffix in ("", ".default", ".default.svc", ".default.svc.cluster.local")
        ]
        addresses = ["127.0.0.1", layout.API_SERVICE_ADDRESS, layout.NODE_ADDRESS]
        pair = self.authority.issue("apiserver", "kube-apiserver", hosts=[*names, "localhost", *addresses])
        return [
            # The bridge's address: pods reach it, the machine's own network does not.
            f"--bind-address={layout.NODE_ADDRESS}",
            f"--advertise-address={layout.NODE_ADDRESS}",
            f"--secure-port={self.state.ports.api}",
            f"--tls-cert-file={pair.certificate}",
            f"--tls-private-key-file={pair.key}",
        ]

    def _client_flags(self) -> list[str]:
        """Return how the API server presents itself to etcd and the kubelet."""
        ca = self.authority.pair.certificate
        etcd = self.authority.issue("apiserver-etcd", "kube-apiserver")
        kubelet = self.authority.issue("apiserver-kubelet", "kube-apiserver", ["system:masters"])
        return [
            f"--etcd-servers=https://127.0.0.1:{self.state.ports.etcd}",
            f"--etcd-cafile={ca}",
            f"--etcd-certfile={etcd.certificate}",
            f"--etcd-keyfile={etcd.key}",
            f"--kubelet-client-certificate={kubelet.certificate}",
            f"--kubelet-client-key={kubelet.key}",
            f"--kubelet-certificate-authority={ca}",
            "--kubelet-preferred-address-types=InternalIP",
        ]

    def _account_flags(self) -> list[str]:
        """Return whom the API server recognises: certificates, service accounts, forwarded users."""
        ca = self.authority.pair.certificate
        accounts = self.authority.service_account_keys()
        front = self.authority.issue("front-proxy", "front-proxy-client")
        return [
            f"--client-ca-file={ca}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-signing-key-file={accounts.key}",
            f"--service-account-key-file={accounts.certificate}",
            # Extension API servers (metrics) recognise forwarded users by these.
            f"--requestheader-client-ca-file={ca}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={front.certificate}",
            f"--proxy-client-key-file={front.key}",
        ]
