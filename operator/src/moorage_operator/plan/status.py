"""Statuses from facts: phase and conditions of the three kinds. Pure: the time of a change is given by the caller."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moorage_crds.v1alpha1.module import Phase
from moorage_operator.plan.diff import Ref
from moorage_operator.plan.facts import Observed, PolicyReport, live_revision, rolled_out
from moorage_operator.plan.module import ModulePlan
from moorage_operator.plan.refusal import Refusal, shorten, summary
from moorage_operator.plan.world import Manifest

State = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One condition without its time."""

    type: str
    status: State
    reason: str
    message: str = ""


def _no(kind: str, refusal: Refusal) -> Fact:
    return Fact(kind, "False", refusal.reason, shorten(refusal.message))


def _yes(kind: str, reason: str, message: str = "") -> Fact:
    return Fact(kind, "True", reason, shorten(message))


def conditions(
    facts: Sequence[Fact], previous: Sequence[Mapping[str, Any]], generation: int, now: str
) -> list[Manifest]:
    """*facts* as KEP-1623 conditions: one that did not change its status keeps its `lastTransitionTime`.

    Args:
        facts: in the order in which they should be shown.
        previous: the conditions of the live object.
        generation: the `metadata.generation` that they are about.
        now: RFC 3339, for those that change.
    """
    before = {one.get("type"): one for one in previous}
    result = []
    for fact in facts:
        old = before.get(fact.type, {})
        since = old.get("lastTransitionTime") if old.get("status") == fact.status else None
        result.append(
            {
                "type": fact.type,
                "status": fact.status,
                "reason": fact.reason,
                "message": fact.message,
                "observedGeneration": generation,
                "lastTransitionTime": since or now,
            }
        )
    return result


def module_status(
    plan: ModulePlan | None,
    observed: Observed,
    *,
    inventory: Sequence[Ref],
    url: str | None,
    previous: Mapping[str, Any],
    now: str,
) -> Manifest:
    """The status of a Module; ``plan`` is ``None`` where the resource could not be read."""
    facts = module_facts(plan, observed)
    live = observed.deployment or {}
    counts, desired = live.get("status", {}), live.get("spec", {}).get("replicas", 0)
    ready = counts.get("readyReplicas", 0)
    status: Manifest = {
        "observedGeneration": observed.generation,
        "phase": phase(plan, observed, facts),
        "conditions": conditions(
            list(facts.values()), previous.get("conditions", []), observed.generation, now
        ),
        "revision": live_revision(observed.deployment),
        "url": url,
        "ready": f"{ready}/{desired}",
        "replicas": {"desired": desired, "updated": counts.get("updatedReplicas", 0), "ready": ready},
        "inventory": [ref.as_item() for ref in sorted(set(inventory))],
    }
    if observed.migration.head is not None:
        status["migrations"] = {"current": observed.migration.head, "pending": 0}
    return {key: value for key, value in status.items() if value is not None}


def module_facts(plan: ModulePlan | None, observed: Observed) -> dict[str, Fact]:
    """The conditions of a Module, in the order in which each builds on the one before."""
    steps = [
        _accepted(plan, observed),
        _dependencies(plan, observed),
        _database(observed),
        _migrated(observed),
        _available(observed),
        _policy(plan, observed),
    ]
    return {fact.type: fact for fact in [*steps, _ready(plan, observed, steps)]}


def _accepted(plan: ModulePlan | None, observed: Observed) -> Fact:
    refusal = observed.invalid or (summary(plan.refusals) if plan is not None else None) or observed.blocked
    if refusal is not None:
        return _no("Accepted", refusal)
    return _yes("Accepted", "Accepted", "the resource can be served as it is")


def _dependencies(plan: ModulePlan | None, observed: Observed) -> Fact:
    refusal = (summary(plan.dependencies) if plan is not None else None) or observed.dependency_wait
    if refusal is not None:
        return _no("DependenciesReady", refusal)
    return _yes("DependenciesReady", "Satisfied")


def _database(observed: Observed) -> Fact:
    fact = observed.database
    match fact.state:
        case "none":
            return _yes("DatabaseReady", "NotNeeded")
        case "done":
            return _yes("DatabaseReady", "Provisioned", fact.message)
        case "failed":
            return _no("DatabaseReady", Refusal(fact.reason, fact.message))
        case _:
            return Fact("DatabaseReady", "Unknown", fact.reason or "Waiting", shorten(fact.message))


def _migrated(observed: Observed) -> Fact:
    fact = observed.migration
    match fact.state:
        case "none":
            return _yes("Migrated", "NotNeeded")
        case "done":
            return _yes("Migrated", "Succeeded", fact.message)
        case "failed":
            return _no("Migrated", Refusal(fact.reason, fact.message))
        case "running":
            return _no(
                "Migrated", Refusal(fact.reason or "Running", fact.message or "the migration Job is running")
            )
        case _:
            return Fact("Migrated", "Unknown", fact.reason or "Waiting", shorten(fact.message))


def _stuck(plan: ModulePlan | None, observed: Observed) -> Refusal | None:
    """What keeps a pod of the planned revision from running."""
    for pod in observed.pods:
        if (
            plan is not None
            and pod.revision == plan.revision
            and pod.stuck is not None
            and not pod.terminating
        ):
            return pod.stuck
    for condition in (observed.deployment or {}).get("status", {}).get("conditions", []):
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return Refusal("ReplicaFailure", f"no pod could be made: {condition.get('message', '')}")
    return None


def _available(observed: Observed) -> Fact:
    live = observed.deployment
    if live is None:
        return _no("Available", Refusal("NoDeployment", "no Deployment yet"))
    desired, counts = live["spec"].get("replicas", 1), live.get("status", {})
    if desired == 0:
        return _yes("Available", "ScaledToZero", "spec.replicas is 0")
    ready = counts.get("readyReplicas", 0)
    if ready:
        return _yes("Available", "PodsReady", f"{ready} of {desired} pods are ready")
    stuck = next((pod.stuck for pod in observed.pods if pod.stuck is not None), None)
    return _no("Available", stuck or Refusal("NoPodReady", f"none of {desired} pods is ready"))


def _current_reports(plan: ModulePlan | None, observed: Observed) -> list[PolicyReport]:
    return [one for one in observed.policy.reports if plan is not None and one.revision == plan.revision]


def _policy(plan: ModulePlan | None, observed: Observed) -> Fact:
    policy = observed.policy
    if not observed.guarded:
        return _yes("PolicyLoaded", "Unguarded", "the installation lets this module run without a guard")
    if (observed.deployment or {}).get("spec", {}).get("replicas") == 0:
        return _yes("PolicyLoaded", "ScaledToZero", "no pod needs one")
    if policy.sequence is None:
        return _no("PolicyLoaded", Refusal("NotWritten", "no policy has been written yet"))
    if not policy.reports:
        return Fact("PolicyLoaded", "Unknown", "NoPodToAsk", "no pod is there to say which policy it has")
    behind = [one for one in policy.reports if (one.sequence or 0) < policy.sequence]
    for report in behind:
        if report.error is not None and report.answered:
            return _no("PolicyLoaded", Refusal("PolicyRefused", f"pod {report.pod}: {report.error}"))
    if behind:
        pods = ", ".join(sorted(one.pod + (f" ({one.error})" if one.error else "") for one in behind))
        return _no("PolicyLoaded", Refusal("Loading", f"not loaded yet by {pods}"))
    bypassable = sorted({socket for one in _current_reports(plan, observed) for socket in one.bypassable})
    if bypassable and not observed.bypass_allowed:
        return _no(
            "PolicyLoaded",
            Refusal(
                "Bypassable",
                f"the app listens on {', '.join(bypassable)}, beyond loopback, so the guard can be passed by; let it "
                "listen on $HOST:$PORT, or let the installation allow it with the chart value "
                "`allow.<namespace>.bypassable`",
            ),
        )
    return _yes("PolicyLoaded", "Loaded", f"every guard has policy {policy.sequence}")


def _ready(plan: ModulePlan | None, observed: Observed, steps: Sequence[Fact]) -> Fact:
    if observed.deleting:
        return _no("Ready", Refusal("Deleting", "the Module is being deleted"))
    for fact in steps:
        if fact.status != "True":
            return Fact("Ready", "False", fact.reason, fact.message)
    if plan is not None and not rolled_out(observed.deployment, plan.revision):
        return _no(
            "Ready",
            _stuck(plan, observed) or Refusal("RollingOut", f"revision {plan.revision} is rolling out"),
        )
    return _yes("Ready", "Running", "the planned revision serves")


def phase(plan: ModulePlan | None, observed: Observed, facts: Mapping[str, Fact]) -> Phase:
    """One word for the table of `kubectl get modules`."""
    if observed.deleting:
        return "Stopping"
    if plan is None or observed.invalid is not None or plan.refusals:
        return "Rejected"
    if facts["Ready"].status == "True":
        return "Running"
    serving = facts["Available"].status == "True"
    failed = (
        observed.migration.state == "failed"
        or _stuck(plan, observed) is not None
        or facts["PolicyLoaded"].reason in ("Bypassable", "PolicyRefused")
    )
    held = [
        fact for fact in ("Accepted", "DependenciesReady", "DatabaseReady") if facts[fact].status != "True"
    ]
    if failed or (serving and held):
        return "Degraded"
    if held:
        return "Validated"
    return "Migrating" if facts["Migrated"].status != "True" else "Starting"


def route_facts(
    plan: ModulePlan | None, route: str, observed: Observed | None, hosts: Sequence[str]
) -> list[Fact]:
    """The conditions of a Route: whether it is taken, and whether the edge has it.

    Args:
        plan: of its module; ``None``: there is no such Module, or it cannot be read.
        route: its name.
        observed: of its module.
        hosts: that it names (one empty one where it names none).
    """
    refusal = _route_refusal(plan, route, observed)
    accepted = (
        _no("Accepted", refusal) if refusal else _yes("Accepted", "Accepted", "its rules are in the policy")
    )
    return [accepted, _programmed(plan, route, observed, hosts)]


def _route_refusal(plan: ModulePlan | None, route: str, observed: Observed | None) -> Refusal | None:
    if plan is None or observed is None:
        return None
    found = summary(plan.routes.get(route, ()))
    if found is not None:
        return found
    current = _current_reports(plan, observed)
    unbound = _rules_of(plan, route, (rule for one in current for rule in one.unbound_rules))
    if unbound:
        return Refusal(
            "RuleWithoutHandler",
            f"spec.rules: no handler of the module binds to {', '.join(unbound)}; write one with "
            "`@module.handle(…)`, or remove the rule",
        )
    loaders = _rules_of(plan, route, (rule for one in current for rule in one.missing_loaders))
    if loaders:
        return Refusal(
            "LoaderMissing",
            f"spec.rules: the condition of the permission of {', '.join(loaders)} uses `resource`, and its handler has "
            "no loader; give it `resource=…`, or take `resource` out of the condition",
        )
    return None


def _rules_of(plan: ModulePlan, route: str, rules: Any) -> list[str]:
    return sorted({str(rule) for rule in rules if plan.rule_routes.get(rule) == route})


def _programmed(plan: ModulePlan | None, route: str, observed: Observed | None, hosts: Sequence[str]) -> Fact:
    if plan is None or observed is None or plan.refusals or plan.routes.get(route):
        return _no("Programmed", Refusal("NotAccepted", "the edge has nothing of it"))
    for host in hosts:
        if host in observed.edge:
            return _no("Programmed", observed.edge[host])
    return _yes("Programmed", "Programmed")


def missing_module(namespace: str, module: str, field: str) -> Refusal:
    """What is said of a Route or Permission whose Module is not there."""
    return Refusal(
        "ModuleNotFound", f"{field}: there is no Module {namespace}/{module}; apply it, or name another"
    )
