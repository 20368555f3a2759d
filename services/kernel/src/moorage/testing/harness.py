"""One module, served in this process as it would be in a pod, with policy and database of its own."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar
from uuid import UUID, uuid4

import aiohttp
from aiohttp import web
from pydantic import SecretStr

from moorage.assembly import groups_of
from moorage.config.layers import Layer, merge
from moorage.config.live import Live
from moorage.config.loading import Source
from moorage.database.migrations import Migrator, Options
from moorage.events.cloudevents import decode, read
from moorage.events.event import Event
from moorage.events.port import EventsPort
from moorage.guard import signing, tokens
from moorage.guard.compiler import compile_base
from moorage.guard.policy import BaseDocument, Issuer
from moorage.health import Health
from moorage.http.app import ASSEMBLY, GUARD
from moorage.importing import import_module
from moorage.module import Module
from moorage.serve import Running, running
from moorage.testing.client import Client
from moorage.testing.databases import SchemaDatabase, throwaway_server
from moorage.testing.policy_stream import PolicyStream
from moorage_crds.manifests import ManifestSet
from moorage_crds.manifests import load as load_manifests
from moorage_crds.problems import errors
from moorage_crds.v1alpha1 import Module as ModuleResource

ISSUER: Final = "https://moorage.test"
AUDIENCE: Final = "test"

E = TypeVar("E", bound=Event)


class ModuleHarness:
    """Serves the module of a folder for the length of an ``async with`` block.

    Of rate limits those hold that the Routes set; an installation's defaults are not there.

    Args:
        folder: holds ``manifests/*.yaml`` with one Module that has ``app``; its ``spec.config`` and ``spec.env`` count.
        server_dsn: a superuser's DSN of a PostgreSQL to make a database on; ``None``: one is started for it.
            Not used by a Module without ``database``.
        environ: variables for the module, such as settings of its own group.
        module: the module itself, where tests define one; ``None``: what ``spec.app`` names is imported.
        overrides: what handlers and factories get instead, by type, such as ``{Mailer: FakeMailer()}``; what
            would have made it is not called.
        stream: an open policy stream that the module follows; its policy key signs the module's policy as well.
        beside: another harness, open and with a database: both modules are of one installation and hear each other's
            events.

    Raises:
        ValueError: the manifests cannot be used; the text has every problem.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        server_dsn: str | None = None,
        environ: Mapping[str, str] | None = None,
        module: Module | None = None,
        overrides: Mapping[type, object] | None = None,
        stream: PolicyStream | None = None,
        beside: "ModuleHarness | None" = None,
    ) -> None:
        self.folder = Path(folder)
        self.manifests = load_manifests(self.folder)
        if wrong := errors(self.manifests.problems):
            raise ValueError("\n".join(str(problem) for problem in wrong))
        self.resource = _only_module(self.manifests, folder)
        self._module = module
        self._beside = beside
        self._server_dsn = server_dsn
        self._environ = {**(stream.environ if stream is not None else {}), **(environ or {})}
        self._overrides = dict(overrides or {})
        self._stack = AsyncExitStack()
        self._token_key = tokens.new_es256_key()
        self._policy_key = stream.policy_key if stream is not None else signing.new_key()
        self._sequence = 0
        self._policy_dir = Path()
        self._work = Path()
        self._session: aiohttp.ClientSession
        self._running: Running
        self.database: SchemaDatabase | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def app(self) -> web.Application:
        """The application."""
        return self._running.app

    @property
    def health(self) -> Health:
        """Its readiness."""
        return self.app[ASSEMBLY].health

    @property
    def url(self) -> str:
        """Where it answers, without a path."""
        return f"http://127.0.0.1:{self._running.port}"

    @property
    def admin(self) -> Client:
        """A client of the admin port."""
        return Client(self._session, f"http://127.0.0.1:{self._running.admin_port}", {})

    def client(
        self,
        *,
        user: UUID | None = None,
        roles: Sequence[str] = (),
        tenant: str | None = None,
        email: str | None = None,
        lifetime_s: int = 900,
    ) -> Client:
        """A client with a token of its own; *user* ``None``: a new user each time."""
        user = user or uuid4()
        token = tokens.issue_user_token(
            self._token_key,
            issuer=ISSUER,
            audience=AUDIENCE,
            user_id=user,
            roles=roles,
            tenant_id=tenant,
            email=email,
            lifetime_s=lifetime_s,
        )
        return Client(self._session, self.url, {"Authorization": f"Bearer {token}"}, user)

    def anonymous(self) -> Client:
        """A client without a token."""
        return Client(self._session, self.url, {})

    def set_config(self, values: Mapping[str, object]) -> None:
        """Let ``config.yaml`` say *values*, as ``{"shop": {"per_page": 5}}``, while the module runs.

        They win over ``spec.config``, whose other fields stay.
        What is `Reloadable` is in force when this returns; `admin`'s ``/config`` tells what was refused.
        """
        self._write_config(values)
        self._running.assembly.live.refresh()

    def _write_config(self, values: Mapping[str, object]) -> None:
        layers = [Layer("", dict(self.resource.spec.config or {})), Layer("", dict(values))]
        (self._work / "config.yaml").write_text(json.dumps(merge(layers)))  # JSON is YAML

    def set_policy(self, document: BaseDocument | None = None) -> None:
        """Put a policy into force: the manifests' own, or *document* (its sequence must rise)."""
        document = document or self.compile()
        signing.write_folder(self._policy_dir, document, self._policy_key)
        if hasattr(self, "_running"):
            self.app[GUARD].refresh()

    def compile(self) -> BaseDocument:
        """The policy of the manifests, with the next sequence."""
        self._sequence += 1
        issuer = Issuer(
            issuer=ISSUER,
            audiences=[AUDIENCE],
            algorithms=["ES256"],
            keys=[dict(tokens.public_jwk(self._token_key))],
            subject="user",
        )
        return compile_base(
            self.resource,
            self.manifests.routes,
            self.manifests.permissions,
            issuers=[issuer],
            sequence=self._sequence,
            issued_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def emitted(self, kind: type[E]) -> list[E]:
        """Events of this type that the module emitted and committed, in order; they are on the bus, or will be."""
        return [
            read(kind, decode(one.text))
            for one in self._events.committed or ()
            if one.type == kind.__event_type__
        ]

    async def deliver(
        self, event: Event, *, source: str = "/test/emitter", tenant: str | None = None
    ) -> None:
        """Call the module's handler of *event* in a unit of work, once, as if it had come from the bus.

        Raises:
            LookupError: the module handles no such type.
            Exception: what the handler raised: on the bus, that would be a repeat or the dead letter.
        """
        await self._events.deliver(event, source=source, tenant=tenant)

    @property
    def _events(self) -> EventsPort:
        port = self.app[ASSEMBLY].get(EventsPort)
        if port is None:
            raise LookupError("the module has no events: declare them in spec.events of its Module")
        return port

    async def _start(self) -> None:
        work = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="moorage-test-")))
        self._work, self._policy_dir = work, work / "policy"
        self.set_policy()
        self._write_config({})
        place = self.resource.metadata
        environ = {one.name: one.value for one in self.resource.spec.env} | {
            "SERVER_HOST": "127.0.0.1",
            "SERVER_PORT": "0",
            "ADMIN_HOST": "127.0.0.1",
            "ADMIN_PORT": "0",
            "SERVER_SHUTDOWN_GRACE": "0s",
            "MOORAGE_NAMESPACE": place.namespace or "default",
            "MOORAGE_MODULE": place.name,
            "MOORAGE_VERSION": self.resource.spec.version,
            "MOORAGE_POLICY_DIR": str(self._policy_dir),
            "LIMITS_BAD_TOKENS": "0",  # tests of refusals send many, all from one address
        }
        if self.resource.spec.database is not None:
            self.database = await self._provision()
            environ |= {"DATABASE_DSN": self.database.app_dsn, "DATABASE_SCHEMA": self.database.schema}
        if (events := self.resource.spec.events) is not None:
            environ |= {
                "EVENTS_PUBLISHES": json.dumps(events.publishes),
                "EVENTS_SUBSCRIBES": json.dumps([one.model_dump(mode="json") for one in events.subscribes]),
            }
        assert self.resource.spec.app is not None
        module = self._module or import_module(self.resource.spec.app, self.folder)
        live = Live.start(Source(groups_of(module), environ | self._environ, work))
        self._session = await self._stack.enter_async_context(aiohttp.ClientSession())
        self._running = await self._stack.enter_async_context(
            running(module, live, overrides=self._overrides)
        )
        if (port := self.app[ASSEMBLY].get(EventsPort)) is not None:
            port.committed = []

    async def _provision(self) -> SchemaDatabase:
        place, spec = self.resource.metadata, self.resource.spec
        namespace = place.namespace or "default"
        database = await self._new_database(f"{namespace}_{place.name}")
        self._stack.push_async_callback(database.drop)
        if spec.events is not None:
            types = [one.type for one in spec.events.subscribes]
            await database.open_bus(namespace, place.name, publishes=spec.events.publishes, subscribes=types)
        assert spec.app is not None
        package = spec.app.partition(":")[0].partition(".")[0]
        migrator = Migrator(package, SecretStr(database.owner_dsn), Options(schema=database.schema))
        if spec.database is not None and spec.database.migrations == "auto":
            await migrator.upgrade()
        return database

    async def _new_database(self, schema: str) -> SchemaDatabase:
        if self._beside is not None:
            if self._beside.database is None:
                raise ValueError(
                    "`beside` has no database: open it before, and give its Module `database: {}`"
                )
            return await self._beside.database.beside(schema)
        server_dsn = self._server_dsn
        if server_dsn is None:
            server = self._stack.enter_context(throwaway_server())
            self._stack.push_async_callback(server.stop)
            server_dsn = await server.start()
        return await SchemaDatabase.create(server_dsn, schema)


def _only_module(manifests: ManifestSet, folder: Path | str) -> ModuleResource:
    modules = [module for module in manifests.modules if module.spec.app is not None]
    if len(modules) != 1:
        raise ValueError(f"{folder} holds {len(modules)} Modules with spec.app; a harness serves one")
    return modules[0]
