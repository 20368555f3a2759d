"""One turn of one (namespace, module): read what is there, plan, apply what differs, say how it stands."""

import logging
from dataclasses import dataclass, field
from typing import Final

from moorage_crds.v1alpha1 import Module
from moorage_operator.apply.client import ApiError
from moorage_operator.apply.kinds import CONFIG_MAP, DEPLOYMENT, HTTP_ROUTE, MODULE, POD, SECRET
from moorage_operator.database import DatabaseRefusedError, DatabaseUnavailableError
from moorage_operator.plan import module as planning
from moorage_operator.plan.diff import Ref, inventory_of, prunable, ref_of
from moorage_operator.plan.facts import (
    DatabaseFact,
    MigrationFact,
    Observed,
    PolicyFact,
    pod_fact,
    rolled_out,
)
from moorage_operator.plan.module import ModulePlan, plan_module
from moorage_operator.plan.names import COMPONENT_SERVER, LABEL_COMPONENT, migration_name, policy_name
from moorage_operator.plan.pod import Guarding, guarding
from moorage_operator.plan.refusal import Refusal, summary
from moorage_operator.plan.status import module_status
from moorage_operator.plan.world import DatabaseAccess, Manifest, World
from moorage_operator.reconcile import deletion, policy, statuses
from moorage_operator.reconcile.applier import ObjectInTheWayError, Owner
from moorage_operator.reconcile.context import Context
from moorage_operator.reconcile.databases import Provision, access_of
from moorage_operator.reconcile.issuers import user_issuer
from moorage_operator.reconcile.migrations import Step
from moorage_operator.reconcile.policy import SignedPolicy
from moorage_operator.reconcile.store import Key

logger = logging.getLogger(__name__)
POLL: Final = 1.0
"""Seconds until guards that had not loaded the policy are asked again; nothing tells us when they have."""
SLOW_POLL: Final = 10.0
POLL_PATIENCE: Final = 60.0
"""Seconds since the policy was made after which asking slows down."""
RETRY_DATABASE: Final = 15.0
RETRY_BLOCKED: Final = 5.0


@dataclass(slots=True)
class Turn:
    """What is known and decided in the course of one turn."""

    key: Key
    live: Manifest
    module: Module
    inventory: list[Ref]
    provision: Provision = field(default_factory=lambda: Provision(DatabaseFact(), None))
    step: Step = field(default_factory=lambda: Step(MigrationFact()))
    signed: SignedPolicy | None = None
    blocked: Refusal | None = None
    again: list[float] = field(default_factory=list)

    @property
    def owner(self) -> Owner:
        """The Module as owner of its objects."""
        return Owner(*self.key, self.live["metadata"]["uid"])


async def reconcile(context: Context, key: Key) -> float | None:
    """Bring one module about; returns the seconds after which to look again without being asked (``None``: never).

    Raises:
        ApiError: the API server said no; trying again later may do.
    """
    live = context.store.get(MODULE, *key)
    if live is None:
        await statuses.write_dependents(context, key, None, None)
        return None
    parsed = context.resources.parse(live)
    inventory = inventory_of((live.get("status") or {}).get("inventory", []))
    if not isinstance(parsed.resource, Module):
        await _report_invalid(context, key, live, parsed.refusal, inventory)
        return None
    turn = Turn(key, live, parsed.resource, inventory)
    turn.live = await deletion.settle_finalizer(context, live, deletion.wants_finalizer(turn.module))
    plan = await _plan(context, turn)
    if "deletionTimestamp" in turn.live["metadata"]:
        return await _delete(context, turn, plan)
    if not plan.refusals:
        plan = await _converge(context, turn, plan)
    await _report(context, turn, plan)
    return min(turn.again, default=None)


async def _report_invalid(
    context: Context, key: Key, live: Manifest, refusal: Refusal | None, inventory: list[Ref]
) -> None:
    """A Module that its CRD should have refused: nothing of it is touched."""
    observed = Observed(
        generation=live["metadata"].get("generation", 0),
        deleting="deletionTimestamp" in live["metadata"],
        invalid=refusal or Refusal("Invalid", "the resource cannot be read"),
        deployment=context.store.get(DEPLOYMENT, *key),
    )
    status = module_status(
        None, observed, inventory=inventory, url=None, previous=live.get("status") or {}, now=_now(context)
    )
    await statuses.write(context, live, status)
    await statuses.write_dependents(context, key, None, observed)


async def _delete(context: Context, turn: Turn, plan: ModulePlan) -> float | None:
    """A Module that goes: its objects go with it by their owner references, its data only where it says so."""
    again = None
    if deletion.wants_finalizer(turn.module):
        fact, again = await deletion.clean_up(context, turn.key, turn.live, turn.module)
        turn.provision = Provision(fact, None)
        if again is None:
            return None
    observed = _observed(context, turn, PolicyFact())
    await _write_status(context, turn, plan, observed, turn.inventory)
    return again


async def _plan(context: Context, turn: Turn, database: DatabaseAccess | None = None) -> ModulePlan:
    """Plan the module with everything that can be known without touching the database."""
    cluster_issuer = await context.issuers.get()
    issuers = [user_issuer(context.settings, context.keys)]
    world = World(
        others=tuple(context.resources.modules(turn.key[0])),
        refused_claims=context.resources.refused_claims(turn.key),
        issuers=(*issuers, cluster_issuer) if cluster_issuer is not None else tuple(issuers),
        secrets=await _fingerprints(context, turn),
        database=database,
    )
    return plan_module(
        turn.module,
        context.resources.routes(turn.key),
        context.resources.permissions(turn.key),
        world,
        context.settings,
    )


async def _fingerprints(context: Context, turn: Turn) -> dict[str, str | None]:
    result: dict[str, str | None] = {}
    for ref in turn.module.spec.secret_refs:
        secret = await context.cluster.get(SECRET, turn.key[0], ref.name)
        result[ref.name] = context.keys.fingerprint(secret.get("data") or {}) if secret is not None else None
        if secret is None and not ref.optional:
            turn.blocked = Refusal(
                "SecretMissing",
                f"spec.secretRefs: there is no Secret {turn.key[0]}/{ref.name}; create it, or make it `optional: true`",
            )
    return result


async def _converge(context: Context, turn: Turn, plan: ModulePlan) -> ModulePlan:
    """Database, then objects. What stands in the way is noted for the status, what may pass by itself is raised."""
    if turn.module.spec.database is not None:
        turn.provision = await context.databases.look_after(turn.module, await _known_access(context, turn))
        plan = await _plan(context, turn, turn.provision.access)
        if turn.provision.fact.state == "failed":
            turn.again.append(RETRY_DATABASE)
    try:
        await _apply(context, turn, plan)
    except ObjectInTheWayError as error:
        turn.blocked = error.refusal
    except ApiError as error:
        if error.transient or error.terminating:
            raise
        turn.blocked = Refusal("ApiRefused", f"the API server refuses: {error.message}")
    if turn.blocked is not None:
        turn.again.append(RETRY_BLOCKED)
    return plan


async def _known_access(context: Context, turn: Turn) -> DatabaseAccess | None:
    """The DSN that the module's pods have, from the Secret that the Deployment uses or the inventory names."""
    prefix = f"{turn.key[1]}-database-"
    names = [ref.name for ref in turn.inventory if ref.kind == SECRET.kind and ref.name.startswith(prefix)]
    used = str(context.store.get(DEPLOYMENT, *turn.key))
    for name in sorted(names, key=lambda name: name not in used):
        secret = await context.cluster.get(SECRET, turn.key[0], name)
        if secret is not None and turn.owner.owns(secret):
            return access_of(secret)
    return None


async def _apply(context: Context, turn: Turn, plan: ModulePlan) -> None:
    now = context.clock()
    live_policy = context.store.get(CONFIG_MAP, turn.key[0], policy_name(turn.key[1]))
    turn.signed = policy.signed(plan, live_policy, context.keys.policy, context.settings, now)
    provisioned = turn.provision.fact.state in ("none", "done")
    turn.step = await context.migrations.step(turn.key, plan, provisioned=provisioned, now=now)
    if turn.step.again is not None:
        turn.again.append(turn.step.again)
    objects = [turn.signed.config_map, *(one for one in plan.objects if _may_apply(turn, plan, one))]
    wanted = {ref_of(one) for one in (turn.signed.config_map, *plan.objects)} | set(turn.step.keep)
    await _write_ahead(context, turn, wanted)
    await context.applier.ensure(turn.owner, objects)
    for manifest in turn.step.create:
        await context.applier.create(turn.owner, manifest)
    await policy.hurry(context.cluster, context.store.children(turn.key, POD), turn.signed)
    await _prune(context, turn, plan, wanted)


def _may_apply(turn: Turn, plan: ModulePlan, manifest: Manifest) -> bool:
    """The Deployment waits for its database, migrations, dependencies and Secrets; the rest need not."""
    if manifest["kind"] != "Deployment":
        return True
    missing_database = turn.module.spec.database is not None and turn.provision.access is None
    return turn.step.may_deploy and not missing_database and not plan.dependencies and turn.blocked is None


async def _write_ahead(context: Context, turn: Turn, wanted: set[Ref]) -> None:
    """Name in status what is going to be made: an operator that is killed after it leaves nothing that it forgets."""
    if wanted <= set(turn.inventory):
        return
    turn.inventory = sorted(wanted | set(turn.inventory))
    patch: Manifest = {"status": {"inventory": [ref.as_item() for ref in turn.inventory]}}
    metadata = turn.live["metadata"]
    result = await context.cluster.patch(
        MODULE, metadata["namespace"], metadata["name"], patch, subresource="status"
    )
    if result is not None:
        context.store.put(MODULE, result)
        turn.live = context.store.get(MODULE, *turn.key) or turn.live


async def _prune(context: Context, turn: Turn, plan: ModulePlan, wanted: set[Ref]) -> None:
    done = rolled_out(context.store.get(DEPLOYMENT, *turn.key), plan.revision)
    gone = prunable(turn.inventory, wanted, module=turn.key[1], rolled_out=done)
    if any(ref.kind == SECRET.kind and ref.name.startswith(migration_name(turn.key[1], "")) for ref in gone):
        await _close_owner(context, turn.key)
    removed = await context.applier.prune(turn.owner, gone)
    turn.inventory = sorted(set(turn.inventory) - set(removed))


async def _close_owner(context: Context, key: Key) -> None:
    """End the owner role's login with its migration; where the database is away, the password expires by itself."""
    try:
        await (await context.databases.provisioner()).close_owner(context.databases.names(*key))
    except (DatabaseUnavailableError, DatabaseRefusedError) as error:
        logger.warning("%s/%s: the owner role could not be closed: %s", *key, error)


async def _report(context: Context, turn: Turn, plan: ModulePlan) -> None:
    fact = PolicyFact()
    if turn.signed is not None:
        pods = [pod_fact(pod) for pod in _serving_pods(context, turn.key)]
        reports = await context.guards.ask(pods) if _guarded(turn.module) else ()
        fact = PolicyFact(turn.signed.sequence, reports)
        if any((report.sequence or 0) < turn.signed.sequence for report in reports):
            age = context.clock().timestamp() - turn.signed.sequence / 1000
            turn.again.append(POLL if age < POLL_PATIENCE else SLOW_POLL)
    observed = _observed(context, turn, fact, plan)
    await _write_status(context, turn, plan, observed, turn.inventory)


async def _write_status(
    context: Context, turn: Turn, plan: ModulePlan, observed: Observed, inventory: list[Ref]
) -> None:
    accepted = [one for one in context.resources.routes(turn.key) if not plan.routes.get(one.metadata.name)]
    status = module_status(
        plan,
        observed,
        inventory=inventory,
        url=planning.url(turn.module, accepted, context.settings),
        previous=turn.live.get("status") or {},
        now=_now(context),
    )
    await statuses.write(context, turn.live, status)
    await statuses.write_dependents(context, turn.key, plan, observed)


def _observed(context: Context, turn: Turn, fact: PolicyFact, plan: ModulePlan | None = None) -> Observed:
    metadata = turn.live["metadata"]
    return Observed(
        generation=metadata.get("generation", 0),
        deleting="deletionTimestamp" in metadata,
        blocked=turn.blocked,
        database=turn.provision.fact,
        migration=turn.step.fact,
        dependency_wait=_dependency_wait(context, turn),
        deployment=context.store.get(DEPLOYMENT, *turn.key),
        pods=tuple(pod_fact(pod) for pod in _serving_pods(context, turn.key)),
        policy=fact,
        bypass_allowed=context.settings.allowance(turn.key[0]).bypassable,
        guarded=_guarded(turn.module),
        edge=statuses.edge_refusals(context, HTTP_ROUTE, plan, turn.key) if plan is not None else {},
    )


def _guarded(module: Module) -> bool:
    return guarding(module) is not Guarding.NONE


def _serving_pods(context: Context, key: Key) -> list[Manifest]:
    return [
        pod
        for pod in context.store.children(key, POD)
        if pod["metadata"].get("labels", {}).get(LABEL_COMPONENT) == COMPONENT_SERVER
        and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
    ]


def _dependency_wait(context: Context, turn: Turn) -> Refusal | None:
    """Modules that this one needs, that are there and are not ready."""
    waiting = []
    for at, dependency in enumerate(turn.module.spec.dependencies):
        other = context.store.get(MODULE, dependency.namespace or turn.key[0], dependency.module)
        if other is None or dependency.optional:
            continue
        conditions = (other.get("status") or {}).get("conditions", [])
        if not any(one["type"] == "Ready" and one["status"] == "True" for one in conditions):
            waiting.append(
                Refusal(
                    "DependencyNotReady", f"spec.dependencies[{at}]: Module {dependency.module} is not ready"
                )
            )
    return summary(waiting)


def _now(context: Context) -> str:
    return context.clock().strftime("%Y-%m-%dT%H:%M:%SZ")
