"""A real Kafka broker: KRaft, one node that is broker and controller, from Maven's artefacts.

    with running(folder) as broker:
        broker.bootstrap  # 127.0.0.1:port
        broker.kill()     # SIGKILL
        broker.start()    # the same data on the same port

Its libraries are fetched once into a cache folder outside the checkout, named by a hash of ``kafka.pom.xml``.
"""

import contextlib
import hashlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rigs import RigUnavailable, packages
from testcluster.paths import cache_dir
from testcluster.pki import Authority
from testcluster.progress import step

_POM: Final = Path(__file__).with_name("kafka.pom.xml")
_START_TIMEOUT: Final = 90.0
"""Seconds; a start takes three on an idle machine."""
_STOP_TIMEOUT: Final = 30.0
_POLL: Final = 0.05
_CLUSTER_ID: Final = "MkU3OEVBNTcwNTJENDM2Qk"
_TOOLS: Final[Mapping[str, str]] = {
    "kafka-acls.sh": "org.apache.kafka.tools.AclCommand",
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
}
"""Kafka's own commands → what they run."""
ADMIN: Final = "admin"
"""The user of a secured broker who may do anything."""

_SETTINGS: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "inter.broker.listener.name": "LOCAL",
    "controller.listener.names": "CONTROLLER",
    # A producer must not make a topic with the wrong number of partitions by a mere typing error.
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    # After SIGKILL the controller takes no second broker of the same id before the first one's session is over.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "400",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "num.network.threads": "2",
    "num.io.threads": "2",
    "log.cleaner.enable": "false",
    "log.segment.bytes": "16777216",
}
"""Small and quick to start."""

_LOGGING: Final = """\
rootLogger.level=INFO
rootLogger.appenderRefs=console
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %-5p %c{1} %m%n
"""


class BrokerError(RuntimeError):
    """The broker did not start or stop; the message ends with its last log lines."""


@dataclass(frozen=True)
class Security:
    """A broker that asks who one is: SASL (PLAIN) over TLS, and rights by ACL, none by default."""

    users: Mapping[str, str]
    """User → password; `ADMIN` may do anything."""
    authority: Authority
    """Signs the broker's certificate; its own, ``authority.pair.certificate``, is what clients trust."""

    @property
    def passwords(self) -> Mapping[str, str]:
        """Of all users, `ADMIN` included."""
        return {ADMIN: "admin-secret", **self.users}


def libraries() -> Path:
    """The folder with Kafka's jars; fetched with Maven where the cache lacks them.

    Raises:
        RigUnavailable: no Java or Maven here, or the artefacts cannot be fetched.
    """
    digest = hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]
    folder = cache_dir().parent / f"kafka-{digest}"
    if folder.is_dir():
        return folder
    packages.ensure("default-jre-headless", "maven")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
        command = ["mvn", "--quiet", "--batch-mode", f"--file={_POM}", "dependency:copy-dependencies"]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={scratch}/libs", "-Dstyle.color=never"]
        with step("Kafka from Maven"):
            done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        if done.returncode:
            raise RigUnavailable(f"Kafka could not be fetched with Maven:\n{done.stdout[-2000:]}")
        # Another run may have been quicker; either result is the same.
        with contextlib.suppress(OSError):
            Path(scratch, "libs").rename(folder)
    return folder


class Broker:
    """One broker with its data below *home*.

    Args:
        home: a folder of the caller's; data, log and configuration lie in it.
        also: further addresses of this machine to answer on (pods reach the host by the bridge's), each on
            a port of its own.
        security: ``None``: everybody who reaches the port may do anything.
        settings: on top of `_SETTINGS`, as in Kafka's ``server.properties``.
    """

    def __init__(
        self,
        home: Path,
        *,
        also: Sequence[str] = (),
        security: Security | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._home = home
        self._port, self._controller, *more = _free_ports(2 + len(also))
        self._also = dict(zip(also, more, strict=True))
        self._security = security
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._libraries: Path | None = None

    @property
    def bootstrap(self) -> str:
        """``127.0.0.1:port`` for clients on this machine."""
        return f"127.0.0.1:{self._port}"

    def bootstrap_at(self, address: str) -> str:
        """``address:port`` for clients that reach one of the addresses in *also*."""
        return f"{address}:{self._also[address]}"

    @property
    def pid(self) -> int | None:
        """The broker's process; ``None`` while it is not running."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    @property
    def log_file(self) -> Path:
        """The log of the present or last start."""
        return self._home / "kafka.log"

    def start(self) -> None:
        """Start it and return when it serves; its data of earlier starts are there again.

        Raises:
            RigUnavailable: this machine cannot have it.
            BrokerError: it ended or does not serve; the text has the end of its log.
        """
        self.spawn()
        self.wait()

    def spawn(self) -> None:
        """Start it without waiting; `wait` does that."""
        assert self.pid is None, "it runs already"
        self._libraries = libraries()
        packages.ensure("default-jre-headless")
        if not (self._home / "data" / "meta.properties").exists():
            self._format()
        command = self._java("kafka.Kafka", "256m", str(self._home / "server.properties"))
        if shutil.which("setpriv"):  # ends with the test process, however that ends
            command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, timeout: float = _START_TIMEOUT) -> None:
        """Wait until a spawned broker serves; raises `BrokerError` where it does not within *timeout* seconds."""
        deadline = time.monotonic() + timeout
        while b"Kafka Server started" not in self.log_file.read_bytes():
            if self.pid is None or time.monotonic() > deadline:
                raise BrokerError(f"Kafka does not start; the end of {self.log_file}:\n{self._tail()}")
            time.sleep(_POLL)

    def kill(self) -> None:
        """End it at once with SIGKILL, as a crash would; nothing happens when it is not running."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Shut it down in order; killed if that takes too long."""
        try:
            self._end(signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop its clock (SIGSTOP): it neither answers nor closes its connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client_properties(self, user: str) -> dict[str, str]:
        """The settings of group ``kafka`` with which *user* reaches this broker, for `moorage.config`."""
        if self._security is None:
            return {"brokers": self.bootstrap}
        return {
            "brokers": self.bootstrap,
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "username": user,
            "password": self._security.passwords[user],
            "ca_file": str(self._security.authority.pair.certificate),
        }

    def admin_file(self) -> Path:
        """A file for the option ``--command-config`` of Kafka's commands, with the rights of `ADMIN`."""
        assert self._security is not None
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        lines = {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "PLAIN",
            "sasl.jaas.config": f'{login} username="{ADMIN}" password="{self._security.passwords[ADMIN]}";',
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self._security.authority.pair.certificate),
        }
        path = self._home / "admin.properties"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        return path

    def run(self, command: str, *arguments: str) -> str:
        """Run one of Kafka's commands such as ``kafka-topics.sh``; returns what it prints.

        Raises:
            BrokerError: it failed; the text has what it printed.
        """
        done = subprocess.run(
            self._java(_TOOLS[command], "64m", *arguments), capture_output=True, text=True, cwd=self._home
        )
        if done.returncode:
            raise BrokerError(f"{command} failed:\n{(done.stdout + done.stderr)[-2000:]}")
        return done.stdout

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(_STOP_TIMEOUT)
        self._process = None

    def _format(self) -> None:
        self._home.mkdir(parents=True, exist_ok=True)
        (self._home / "log4j2.properties").write_text(_LOGGING)
        properties = self._home / "server.properties"
        properties.touch(mode=0o600)
        lines = {**_SETTINGS, **self._listeners(), **self._secured(), **self._settings}
        properties.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        command = self._java(
            "kafka.tools.StorageTool", "96m", "format", "-t", _CLUSTER_ID, "-c", str(properties)
        )
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BrokerError(f"Kafka's storage cannot be formatted:\n{(done.stdout + done.stderr)[-2000:]}")

    def _listeners(self) -> dict[str, str]:
        names = {"LOCAL": f"127.0.0.1:{self._port}"}
        names |= {f"ALSO{i}": self.bootstrap_at(address) for i, address in enumerate(self._also)}
        protocol = "PLAINTEXT" if self._security is None else "SASL_SSL"
        protocols = [*(f"{name}:{protocol}" for name in names), "CONTROLLER:PLAINTEXT"]
        advertised = ",".join(f"{name}://{address}" for name, address in names.items())
        return {
            "listeners": f"{advertised},CONTROLLER://127.0.0.1:{self._controller}",
            "advertised.listeners": advertised,
            "listener.security.protocol.map": ",".join(protocols),
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "log.dirs": str(self._home / "data"),
        }

    def _secured(self) -> dict[str, str]:
        if self._security is None:
            return {}
        pair = self._security.authority.issue("kafka", "kafka", hosts=["127.0.0.1", "localhost", *self._also])
        bundle = self._home / "kafka.pem"
        bundle.touch(mode=0o600)
        bundle.write_text(pair.key.read_text() + pair.certificate.read_text())
        users = self._security.passwords
        login = "".join(f' user_{name}="{password}"' for name, password in users.items())
        jaas = (
            "org.apache.kafka.common.security.plain.PlainLoginModule required"
            f' username="{ADMIN}" password="{users[ADMIN]}"{login};'
        )
        listeners = ["local", *(f"also{i}" for i in range(len(self._also)))]
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(bundle),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self._security.authority.pair.certificate),
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            **{f"listener.name.{name}.plain.sasl.jaas.config": jaas for name in listeners},
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{ADMIN};User:ANONYMOUS",
        }

    def _java(self, main: str, heap: str, *arguments: str) -> list[str]:
        # The first compiler alone: half the time to start, and tests never reach the second's gain.
        return [
            "java",
            f"-Xmx{heap}",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            f"-Dlog4j2.configurationFile={self._home / 'log4j2.properties'}",
            "-cp",
            f"{self._libraries}/*",
            main,
            *arguments,
        ]

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            return self.log_file.read_text(errors="replace")[-3000:].strip()
        return ""


@contextmanager
def running(
    home: Path,
    *,
    also: Sequence[str] = (),
    security: Security | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Broker]:
    """A broker for the length of the block; see `Broker`."""
    broker = Broker(home, also=also, security=security, settings=settings)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
