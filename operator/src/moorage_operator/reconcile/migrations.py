"""Migrations before a revision's pods: one Job each, recorded in the database, tried again after a failure."""

import datetime
import logging
from dataclasses import dataclass, field
from typing import Final

from moorage_operator.apply.kinds import DEPLOYMENT, JOB, POD, SECRET
from moorage_operator.database import DatabaseRefusedError, DatabaseUnavailableError
from moorage_operator.plan.diff import Ref
from moorage_operator.plan.facts import MigrationFact, live_revision, stuck_reason, termination_message
from moorage_operator.plan.job import deadline_seconds, migration_job
from moorage_operator.plan.module import ModulePlan
from moorage_operator.plan.names import (
    ANNOTATION_ATTEMPT,
    COMPONENT_MIGRATION,
    LABEL_COMPONENT,
    LABEL_REVISION,
    migration_name,
)
from moorage_operator.plan.secret import migration_secret
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest
from moorage_operator.reconcile.databases import Databases
from moorage_operator.reconcile.store import Key, Store

logger = logging.getLogger(__name__)
FIRST_RETRY: Final = 30.0
MAX_RETRY: Final = 600.0
"""Seconds until a failed migration is tried again, doubled with each failure in a row."""
GRACE: Final = 60
"""Seconds that the owner's password outlives the Job's deadline."""


@dataclass(frozen=True, slots=True)
class Step:
    """What has to be done about a module's migrations now."""

    fact: MigrationFact
    keep: tuple[Ref, ...] = ()
    """Objects of the migration that are wanted still; all others of earlier ones go."""
    create: tuple[Manifest, ...] = field(default=(), repr=False)
    """To be made, in this order: a Secret, then the Job that uses it."""
    again: float | None = None
    """Seconds after which to look again; ``None``: an event will come."""

    @property
    def may_deploy(self) -> bool:
        """Whether pods of the planned revision may start."""
        return self.fact.state in ("none", "done")


class Migrations:
    """Decides on the migration of one module at a time; what it decides is carried out by the caller."""

    def __init__(self, store: Store, databases: Databases, settings: PlatformSettings) -> None:
        self._store = store
        self._databases = databases
        self._settings = settings
        self._attempts: dict[tuple[Key, str], int] = {}
        """Failures in a row, by key and revision; the Job that knew the number is gone when the next one is made."""

    async def step(self, key: Key, plan: ModulePlan, *, provisioned: bool, now: datetime.datetime) -> Step:
        """What to do for *plan*; *provisioned*: schema and roles are right."""
        if plan.migration is None:
            return Step(MigrationFact("none"))
        job = self._store.get(JOB, key[0], migration_name(key[1], plan.revision))
        if any(live_revision(one) == plan.revision for one in self._store.children(key, DEPLOYMENT)):
            self._attempts.pop((key, plan.revision), None)
            done = MigrationFact("done", message=f"revision {plan.revision}")
            return Step(done, keep=_refs(key[1], plan.revision)[:1] if job is not None else ())
        if not provisioned:
            return Step(MigrationFact("waiting", "DatabaseNotReady", "the database comes first"))
        if job is not None:
            return self._judge(key, plan, job, now)
        other = self._running_other(key, plan)
        if other is not None:
            return Step(
                MigrationFact("running", "OtherRevision", f"waiting for the end of Job {other.name}"),
                keep=(other,),
            )
        return await self._begin(key, plan)

    def _judge(self, key: Key, plan: ModulePlan, job: Manifest, now: datetime.datetime) -> Step:
        keep = _refs(key[1], plan.revision)
        ended = {
            one["type"]: one for one in job.get("status", {}).get("conditions", []) if one["status"] == "True"
        }
        if "Complete" in ended:
            return Step(MigrationFact("done", message=f"revision {plan.revision}"), keep=keep[:1])
        pods = self._pods(key, plan.revision)
        if "Failed" in ended:
            return self._failed(key, plan, job, ended["Failed"], pods, now)
        stuck = next((found for found in map(stuck_reason, pods) if found is not None), None)
        if stuck is not None:
            return Step(MigrationFact("failed", stuck.reason, f"migration: {stuck.message}"), keep=keep)
        return Step(
            MigrationFact("running", "Running", f"Job {job['metadata']['name']} is running"), keep=keep
        )

    def _failed(
        self,
        key: Key,
        plan: ModulePlan,
        job: Manifest,
        condition: Manifest,
        pods: list[Manifest],
        now: datetime.datetime,
    ) -> Step:
        said = next((text for text in map(termination_message, pods) if text), "") or condition.get(
            "message", ""
        )
        attempt = int(job["metadata"].get("annotations", {}).get(ANNOTATION_ATTEMPT, "1"))
        delay = min(FIRST_RETRY * 2 ** (attempt - 1), MAX_RETRY)
        failed_at = datetime.datetime.fromisoformat(condition["lastTransitionTime"])
        left = delay - (now - failed_at).total_seconds()
        reason = "DeadlineExceeded" if condition.get("reason") == "DeadlineExceeded" else "MigrationFailed"
        if left > 0:
            fact = MigrationFact(
                "failed", reason, f"{said} (attempt {attempt}; it is tried again, or mend the spec)"
            )
            return Step(fact, keep=_refs(key[1], plan.revision)[:1], again=left)
        self._attempts[key, plan.revision] = attempt
        # Not in `keep`: the failed Job goes, and the next one is made once it is gone.
        return Step(MigrationFact("failed", reason, f"{said} (attempt {attempt}; trying again)"), again=2.0)

    def _pods(self, key: Key, revision: str) -> list[Manifest]:
        wanted = {LABEL_COMPONENT: COMPONENT_MIGRATION, LABEL_REVISION: revision}
        return [
            pod
            for pod in self._store.children(key, POD)
            if wanted.items() <= pod["metadata"].get("labels", {}).items()
        ]

    def _running_other(self, key: Key, plan: ModulePlan) -> Ref | None:
        """A migration of another revision that really runs: it may end. One that is stuck is given up."""
        for job in self._store.children(key, JOB):
            revision = job["metadata"].get("labels", {}).get(LABEL_REVISION)
            phases = [pod.get("status", {}).get("phase") for pod in self._pods(key, revision or "")]
            if revision != plan.revision and job.get("status", {}).get("active") and "Running" in phases:
                return Ref(JOB.api_version, JOB.kind, job["metadata"]["name"])
        return None

    async def _begin(self, key: Key, plan: ModulePlan) -> Step:
        names = self._databases.names(*key)
        try:
            provisioner = await self._databases.provisioner()
            if await provisioner.migration_done(names, plan.revision):
                return Step(MigrationFact("done", message=f"revision {plan.revision}"))
            seconds = deadline_seconds(self._settings) + GRACE
            dsn = await provisioner.open_owner(names, seconds=seconds)
        except (DatabaseUnavailableError, DatabaseRefusedError) as error:
            return Step(MigrationFact("waiting", "DatabaseNotReady", str(error)), again=10.0)
        assert plan.migration is not None
        config_map = next(one["metadata"]["name"] for one in plan.of_kind("ConfigMap"))
        attempt = self._attempts.get((key, plan.revision), 0) + 1
        job = migration_job(
            plan.module, self._settings, plan.revision, config_map=config_map, attempt=attempt
        )
        secret = migration_secret(plan.module, self._settings, plan.revision, dsn)
        return Step(
            MigrationFact("running", "Started", f"Job {job['metadata']['name']} is starting"),
            keep=_refs(key[1], plan.revision),
            create=(secret, job),
        )


def _refs(module: str, revision: str) -> tuple[Ref, Ref]:
    """The Job and the Secret of a revision's migration."""
    name = migration_name(module, revision)
    return Ref(JOB.api_version, JOB.kind, name), Ref(SECRET.api_version, SECRET.kind, name)
