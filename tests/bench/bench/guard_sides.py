"""The sides of the guard benchmark: which servers each has, and how they are started."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import guard_peers as peers
from bench.guard_trust import AUDIENCE, ISSUER, MODULE, NAMESPACE, ROLE, Trust
from bench.server import PYTHON, Server, started
from moorage.guard.limits.document import Limits
from rigs.postgres15 import free_port

_MODULE: Final = "bench_guard:shop"


@dataclass(frozen=True)
class Side:
    """One of those that are compared.

    ``servers`` are what the side itself brings: clients talk to the first, and their processor time and memory are the
    side's. ``app`` is the bare app, where it stands behind; its costs are told apart.
    """

    name: str
    servers: tuple[Server, ...]
    app: Server | None = None
    guards: bool = True
    admin_port: int | None = None
    """Of Moorage's own, where metrics are."""
    logs: tuple[Path, ...] = ()
    """Which have a line for each request, and are emptied now and then."""

    @property
    def url(self) -> str:
        """For clients, without a path."""
        return f"http://127.0.0.1:{self.servers[0].port}"

    @property
    def admin(self) -> str:
        """The admin port's address."""
        return f"http://127.0.0.1:{self.admin_port}"

    def cpu(self) -> float:
        """Seconds of processor time of its own servers so far."""
        return sum(server.cpu() for server in self.servers)


class Starter:
    """Starts the sides' servers, which end with *stack*.

    Args:
        folder: for policies, configurations and logs.
    """

    def __init__(self, stack: ExitStack, folder: Path, trust: Trust) -> None:
        self._stack, self._folder, self._trust = stack, folder, trust

    def all(self) -> list[Side]:
        """Every side, in the order in which they take their turns; they may not listen yet."""
        app = self._run("app", [PYTHON, "-m", "bench.plain", "app"])
        return [
            Side("bare", (app,), guards=False),
            self.in_process(),
            self._envoy("envoy", app, remembers=True),
            self._sidecar(app),
            self._envoy("envoy_uncached", app, remembers=False),
            self._nginx(app),
        ]

    def _run(self, name: str, command: list[str | Path], *more: str | Path) -> Server:
        port = free_port()
        return self._start(name, [*command, str(port), *more], port)

    def _start(
        self, name: str, command: list[str | Path], port: int, environ: dict[str, str] | None = None
    ) -> Server:
        log = self._folder / f"{name}.log"
        return self._stack.enter_context(started(name, command, port=port, log=log, environ=environ))

    def in_process(
        self, name: str = "in_process", limits: Limits | None = None, environ: dict[str, str] | None = None
    ) -> Side:
        """A module that guards itself, with *limits* for its rule."""
        return self._moorage(name, "serve", _MODULE, limits=limits, more=environ)

    def _moorage(
        self,
        name: str,
        *command: str,
        app: Server | None = None,
        limits: Limits | None = None,
        more: dict[str, str] | None = None,
    ) -> Side:
        """A process of ours as the operator starts it, but for where it listens and where its files are."""
        port, admin_port, policy = free_port(), free_port(), self._folder / f"{name}-policy"
        self._trust.write_policy(policy, limits)
        environ = {
            "MOORAGE_MODULE": MODULE,
            "MOORAGE_NAMESPACE": NAMESPACE,
            "MOORAGE_POLICY_DIR": str(policy),
            "SERVER_HOST": "127.0.0.1",
            "SERVER_PORT": str(port),
            "SERVER_SHUTDOWN_GRACE": "0s",
            "ADMIN_HOST": "127.0.0.1",
            "ADMIN_PORT": str(admin_port),
            **(more or {}),
        }
        if app is not None:
            environ["UPSTREAM_PORT"] = str(app.port)
        server = self._start(name, [PYTHON, "-m", "moorage.cli", *command], port, environ)
        return Side(name, (server,), app, admin_port=admin_port, logs=(server.log,))

    def _sidecar(self, app: Server) -> Side:
        return self._moorage("sidecar", "sidecar", app=app)

    def _envoy(self, name: str, app: Server, *, remembers: bool) -> Side:
        port, log = free_port(), self._folder / f"{name}-access.log"
        configuration = self._folder / f"{name}.json"
        configuration.write_text(peers.envoy(port, app.port, self._trust, log, remembers=remembers))
        server = self._start(name, peers.envoy_command(configuration), port)
        return Side(name, (server,), app, logs=(log,))

    def _nginx(self, app: Server) -> Side:
        trust = {"issuer": ISSUER, "audience": AUDIENCE, "jwk": self._trust.jwk, "role": ROLE}
        file = self._folder / "trust.json"
        file.write_text(json.dumps(trust))
        verifier = self._run("verifier", [PYTHON, "-m", "bench.plain", "verifier"], file)
        folder, port = self._folder / "nginx", free_port()
        folder.mkdir()
        configuration = folder / "nginx.conf"
        configuration.write_text(peers.nginx(port, app.port, verifier.port, folder))
        # -e: before it has read its configuration it would write to the machine's own log.
        command: list[str | Path] = [peers.NGINX, "-c", configuration, "-e", folder / "error.log"]
        return Side(
            "nginx",
            (self._start("nginx", command, port), verifier),
            app,
            logs=(folder / "access.log",),
        )
