"""The reconciler against a small stand-in of the API server and a real PostgreSQL."""

import copy
import datetime
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from moorage_operator.apply import kinds
from moorage_operator.apply.client import ApiError, Cluster
from moorage_operator.apply.events import Events
from moorage_operator.plan.facts import PodFact, PolicyReport
from moorage_operator.plan.settings import PlatformSettings, parse_settings
from moorage_operator.reconcile.applier import Applier
from moorage_operator.reconcile.context import Context
from moorage_operator.reconcile.databases import Databases
from moorage_operator.reconcile.intake import Intake
from moorage_operator.reconcile.issuers import ClusterIssuer
from moorage_operator.reconcile.migrations import Migrations
from moorage_operator.reconcile.module import reconcile
from moorage_operator.reconcile.queue import KeyedQueue
from moorage_operator.reconcile.resources import Resources
from moorage_operator.reconcile.signing import load_or_create
from moorage_operator.reconcile.store import Key, Store
from moorage_operator.reconcile.workers import list_all

Manifest = dict[str, Any]
CHILDREN = [kinds.POD, *kinds.CHILDREN]


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


@dataclass
class FakeApi:
    """Stores objects by path as the API server does: UIDs, versions, generations, preconditions, finalizers.

    Server-side apply is a deep merge, which is what it comes to for the only writer of its fields.
    """

    objects: dict[str, Manifest] = field(default_factory=dict)
    writes: list[tuple[str, str]] = field(default_factory=list)
    writes_left: int | None = None
    """After so many writes nothing answers any more: the operator was killed, as far as it can tell."""
    faults: list[tuple[str, str, int, Manifest]] = field(default_factory=list)
    """(method, part of the path, status, body): answered once each, in this order, instead of what was asked."""
    url: str = ""
    _version: int = 100

    async def handle(self, request: web.Request) -> web.Response:
        """Every request."""
        if self.writes_left is not None and self.writes_left < 0:
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=500)
        for fault in self.faults:
            method, part, status, body = fault
            if request.method == method and part in request.path:
                self.faults.remove(fault)
                return web.json_response(body, status=status)
        if request.method == "GET":
            return self._get(request)
        body = await request.json()
        if "events" not in request.path:
            if self.writes_left is not None:
                self.writes_left -= 1
                if self.writes_left < 0:
                    return await self.handle(request)
            self.writes.append((request.method, request.path))
        return {"PATCH": self._patch, "POST": self._post, "DELETE": self._delete}[request.method](
            request, body
        )

    def _get(self, request: web.Request) -> web.Response:
        if request.path == "/.well-known/openid-configuration":
            return self._status(404, "NotFound", "no issuer here")
        if request.path in self.objects:
            return web.json_response(self.objects[request.path])
        kind = next((one for one in (*kinds.RESOURCES, *CHILDREN) if one.path(None) == request.path), None)
        if kind is None:
            return self._status(404, "NotFound", f"{request.path} not found")
        items = [one for one in self.objects.values() if one["kind"] == kind.kind]
        if "labelSelector" in request.query:
            label = request.query["labelSelector"]
            items = [one for one in items if label in one["metadata"].get("labels", {})]
        return web.json_response({"metadata": {"resourceVersion": str(self._version)}, "items": items})

    def _patch(self, request: web.Request, body: Manifest) -> web.Response:
        path, _, subresource = request.path, "", ""
        if path.endswith("/status"):
            path, subresource = path.removesuffix("/status"), "status"
        apply = request.content_type == "application/apply-patch+yaml"
        live = self.objects.get(path)
        if live is None and not apply:
            return self._status(404, "NotFound", f"{path} not found")
        uid = body.get("metadata", {}).get("uid")
        if uid is not None and (live is None or live["metadata"]["uid"] != uid):
            return self._status(409, "Conflict", "Precondition failed: UID in precondition")
        wanted = body.get("metadata", {}).get("resourceVersion")
        if live is not None and wanted not in (None, live["metadata"]["resourceVersion"]):
            return self._status(409, "Conflict", "the object has been modified")
        if subresource:
            body = {"status": body["status"]}
        return web.json_response(self.put(merge(live or {}, body), path))

    def _post(self, request: web.Request, body: Manifest) -> web.Response:
        name = body["metadata"].get("name") or body["metadata"]["generateName"] + secrets.token_hex(3)
        body["metadata"]["name"] = name
        path = f"{request.path}/{name}"
        if path in self.objects:
            return self._status(409, "AlreadyExists", f"{name} already exists")
        return web.json_response(self.put(body, path), status=201)

    def _delete(self, request: web.Request, body: Manifest) -> web.Response:
        live = self.objects.get(request.path)
        if live is None:
            return self._status(404, "NotFound", f"{request.path} not found")
        if body.get("preconditions", {}).get("uid", live["metadata"]["uid"]) != live["metadata"]["uid"]:
            return self._status(409, "Conflict", "another object")
        self.delete(request.path)
        return web.json_response({})

    def put(self, manifest: Manifest, path: str | None = None) -> Manifest:
        """Write an object as somebody else would."""
        kind = next(
            one
            for one in (*kinds.RESOURCES, *CHILDREN, kinds.SECRET, kinds.EVENT)
            if one.kind == manifest["kind"]
        )
        metadata = manifest["metadata"]
        path = path or kind.path(metadata["namespace"], metadata["name"])
        before = self.objects.get(path)
        manifest = copy.deepcopy(manifest)
        metadata = manifest["metadata"]
        metadata.setdefault("uid", secrets.token_hex(8))
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        changed = before is None or {**before, "metadata": None} != {**manifest, "metadata": None}
        if before is None or before.get("spec") != manifest.get("spec"):
            metadata["generation"] = metadata.get("generation", 0) + 1
        if before is None or changed or before["metadata"] != metadata:
            self._version += 1
            metadata["resourceVersion"] = str(self._version)
        self.objects[path] = manifest
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            self.delete(path)
        return manifest

    def delete(self, path: str) -> None:
        """Remove an object, and with it what it owns; one with finalizers only begins to go."""
        live = self.objects[path]
        if live["metadata"].get("finalizers"):
            live["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"
            self._version += 1
            live["metadata"]["resourceVersion"] = str(self._version)
            return
        del self.objects[path]
        uid = live["metadata"]["uid"]
        for child, manifest in list(self.objects.items()):
            if any(one["uid"] == uid for one in manifest["metadata"].get("ownerReferences", [])):
                self.delete(child)

    def find(self, kind: str, name: str | None = None) -> list[Manifest]:
        """Objects of a kind."""
        found = [one for one in self.objects.values() if one["kind"] == kind]
        return [one for one in found if name in (None, one["metadata"]["name"])]

    @staticmethod
    def _status(code: int, reason: str, message: str) -> web.Response:
        return web.json_response(
            {"kind": "Status", "reason": reason, "message": message, "code": code}, status=code
        )


class Workloads:
    """What the controllers and kubelets of a cluster do: pods for Deployments, ends for Jobs."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.job_result = "Complete"
        self.job_message = ""
        self.now = datetime.datetime(2026, 1, 3, tzinfo=datetime.UTC)

    def work(self) -> None:
        """Bring everything to where it would end."""
        for job in self.api.find("Job"):
            if not job.get("status"):
                self._end_job(job)
        for live in self.api.find("Deployment"):
            self._roll_out(live)

    def _end_job(self, job: Manifest) -> None:
        when = self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": self.job_result,
            "status": "True",
            "lastTransitionTime": when,
            "message": "it ended",
        }
        self.api.put(job | {"status": {"conditions": [condition]}})
        ended = {"exitCode": 0 if self.job_result == "Complete" else 1, "message": self.job_message}
        status = {
            "phase": "Succeeded",
            "containerStatuses": [{"name": "migrate", "state": {"terminated": ended}}],
        }
        self._pod(job, job["metadata"]["name"] + "-pod", status)

    def _roll_out(self, live: Manifest) -> None:
        count, generation = live["spec"]["replicas"], live["metadata"]["generation"]
        ready = {
            "observedGeneration": generation,
            "updatedReplicas": count,
            "readyReplicas": count,
            "replicas": count,
        }
        self.api.put(live | {"status": {key: value for key, value in ready.items() if value}})
        revision = live["spec"]["template"]["metadata"]["labels"]["moorage.dev/revision"]
        module = live["metadata"]["name"]
        for pod in self.api.find("Pod"):
            labels = pod["metadata"]["labels"]
            if labels["moorage.dev/module"] == module and labels.get("moorage.dev/revision") != revision:
                self.api.delete(kinds.POD.path(pod["metadata"]["namespace"], pod["metadata"]["name"]))
        for at in range(count):
            status = {
                "phase": "Running",
                "podIP": "10.0.0.1",
                "conditions": [{"type": "Ready", "status": "True"}],
            }
            self._pod(live, f"{module}-{revision}-{at}", status)

    def _pod(self, parent: Manifest, name: str, status: Manifest) -> None:
        metadata = {
            "name": name,
            "namespace": parent["metadata"]["namespace"],
            "labels": parent["spec"]["template"]["metadata"]["labels"],
            "ownerReferences": [{"uid": parent["metadata"]["uid"], "kind": parent["kind"], "name": "x"}],
        }
        live = self.api.objects.get(kinds.POD.path(metadata["namespace"], name), {"metadata": metadata})
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "spec": parent["spec"]["template"]["spec"],
            "status": status,
        }
        self.api.put(pod | {"metadata": live["metadata"]})


@dataclass
class StandInGuards:
    """Guards that have loaded what the ConfigMap holds."""

    api: FakeApi
    extra: Manifest = field(default_factory=dict)

    async def ask(self, pods: Sequence[PodFact]) -> tuple[PolicyReport, ...]:
        reports = []
        for pod in pods:
            name = pod.name.rsplit("-", 2)[0]
            (config_map,) = self.api.find("ConfigMap", f"{name}-policy")
            sequence = json.loads(config_map["data"]["base.json"])["sequence"]
            reports.append(PolicyReport(pod.name, pod.revision, sequence, **self.extra))
        return tuple(reports)


@dataclass
class Operator:
    """One operator process's worth of state."""

    context: Context
    intake: Intake
    queue: KeyedQueue

    async def round(self) -> None:
        """List everything and give each key one turn."""
        await list_all(self.context, self.intake, CHILDREN)
        for key in sorted(self.context.store.keys()):
            await self.turn(key)

    async def turn(self, key: Key) -> float | None:
        return await reconcile(self.context, key)


@dataclass
class Harness:
    """API, workloads, database, and operators that come and go."""

    api: FakeApi
    workloads: Workloads
    guards: StandInGuards
    settings: PlatformSettings
    dsn_file: Path
    superuser: str
    now: datetime.datetime = datetime.datetime(2026, 1, 3, tzinfo=datetime.UTC)
    _closers: list[Callable[[], Any]] = field(default_factory=list)

    async def operator(self) -> Operator:
        """A new operator process."""
        configuration = Configuration(host=self.api.url)
        configuration.retries = False
        cluster = Cluster(configuration)
        store, queue = Store(), KeyedQueue()
        resources = Resources(store, self.settings)
        databases = Databases(self.settings, lambda: None)
        self._closers += [databases.close, lambda: cluster.__aexit__(None, None, None)]
        context = Context(
            settings=self.settings,
            cluster=cluster,
            store=store,
            resources=resources,
            applier=Applier(cluster, store),
            databases=databases,
            migrations=Migrations(store, databases, self.settings),
            guards=self.guards,
            issuers=ClusterIssuer(cluster),
            keys=await load_or_create(cluster, self.settings),
            events=Events(cluster, lambda: self.now),
            clock=lambda: self.now,
        )
        return Operator(context, Intake(store, resources, queue), queue)

    async def converge(self, operator: Operator | None = None, rounds: int = 12) -> int:
        """Rounds and workloads in turn until nothing is written any more; how many rounds that took."""
        operator = operator or await self.operator()
        for count in range(1, rounds + 1):
            before = len(self.api.writes)
            await operator.round()
            self.workloads.work()
            if len(self.api.writes) == before and count > 1:
                return count
        pytest.fail(f"still writing after {rounds} rounds: {self.api.writes[-10:]}")

    async def run_until_killed(self, writes: int) -> bool:
        """Let an operator work that dies after so many writes; whether it did."""
        self.api.writes_left = writes
        try:
            await self.converge()
        except ApiError:
            return True
        finally:
            self.api.writes_left = None
        return False

    async def fetch(self, query: str, *values: object) -> list[Any]:
        """As superuser, in the modules' database."""
        connection = await asyncpg.connect(self.superuser)
        try:
            return list(await connection.fetch(query, *values))
        finally:
            await connection.close()

    def apply(self, *manifests: Manifest) -> None:
        """`kubectl apply`."""
        for manifest in manifests:
            manifest["metadata"].setdefault("namespace", "default")
            kind = kinds.find(manifest["apiVersion"], manifest["kind"])
            path = kind.path(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
            live = self.api.objects.get(path, {})
            self.api.put(
                live | manifest | {"metadata": live.get("metadata", {}) | manifest["metadata"]}, path
            )

    def module(self, name: str = "blog", **spec: Any) -> Manifest:
        spec = {"version": "1.0.0", "image": "acme/blog:1", "app": "blog:module", **spec}
        return {
            "apiVersion": "moorage.dev/v1alpha1",
            "kind": "Module",
            "metadata": {"name": name},
            "spec": spec,
        }

    def route(self, name: str = "blog", **spec: Any) -> Manifest:
        rules = [{"name": f"{name}-list", "methods": ["GET"], "path": "/posts"}]
        spec = {"module": "blog", "prefix": "/api", "rules": rules, **spec}
        return {
            "apiVersion": "moorage.dev/v1alpha1",
            "kind": "Route",
            "metadata": {"name": name},
            "spec": spec,
        }

    def conditions(self, kind: str, name: str) -> dict[str, tuple[str, str, str]]:
        """Status, reason and message, by type."""
        (found,) = self.api.find(kind, name)
        return {
            one["type"]: (one["status"], one["reason"], one["message"])
            for one in found["status"]["conditions"]
        }

    def phase(self, name: str = "blog") -> str:
        (found,) = self.api.find("Module", name)
        return str(found["status"]["phase"])

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """`kubectl delete`."""
        found = next(one for one in (*kinds.RESOURCES, *CHILDREN, kinds.SECRET) if one.kind == kind)
        self.api.delete(found.path(namespace, name))


@pytest.fixture
async def harness(moorage_postgres: str, tmp_path: Path) -> AsyncIterator[Harness]:
    """See `Harness`; its database is new and its admin no superuser."""
    name = f"t_{secrets.token_hex(6)}"
    connection = await asyncpg.connect(moorage_postgres)
    await connection.execute(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD 'admin'")
    await connection.execute(f"CREATE DATABASE {name} OWNER {name}")
    await connection.close()
    address = moorage_postgres.rpartition("@")[2].partition("/")[0]
    dsn_file = tmp_path / "dsn"
    dsn_file.write_text(f"postgresql://{name}:admin@{address}/{name}\n")
    settings = parse_settings(
        f"""
        installation: {name.replace("_", "-")}
        database: {{adminDsnFile: {dsn_file}}}
        edge: {{kind: gateway, gateway: {{name: edge, namespace: infra}}}}
        """
    )
    api = FakeApi()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    superuser = moorage_postgres.rpartition("/")[0] + f"/{name}"
    one = Harness(api, Workloads(api), StandInGuards(api), settings, dsn_file, superuser)
    yield one
    for close in reversed(one._closers):
        await close()
    await runner.cleanup()
