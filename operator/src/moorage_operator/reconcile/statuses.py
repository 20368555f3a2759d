"""Writes statuses where they changed, and says aloud what a person should notice."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from moorage_crds.v1alpha1 import Route
from moorage_operator.apply.kinds import Kind, find
from moorage_operator.plan import claims
from moorage_operator.plan.facts import Observed
from moorage_operator.plan.module import ModulePlan, route_url
from moorage_operator.plan.refusal import Refusal, summary
from moorage_operator.plan.status import Fact, conditions, missing_module, route_facts
from moorage_operator.plan.world import Manifest
from moorage_operator.reconcile.context import Context
from moorage_operator.reconcile.store import Key

_QUIET: frozenset[str] = frozenset(
    {"RollingOut", "Running", "Started", "NoDeployment", "NoPodReady", "NoPodToAsk", "Loading", "NotSeen"}
)
"""Reasons of conditions that are steps on the way and no news."""


def _time(context: Context) -> str:
    return context.clock().strftime("%Y-%m-%dT%H:%M:%SZ")


async def write(context: Context, live: Manifest, status: Manifest) -> Manifest:
    """Write *status* if it is not what is there; returns the object as it is then."""
    before = live.get("status") or {}
    if before == status:
        return live
    # A merge patch leaves what it does not name: name what has to go.
    patch = status | {name: None for name in before if name not in status}
    kind = find(live["apiVersion"], live["kind"])
    metadata = live["metadata"]
    result = await context.cluster.patch(
        kind, metadata["namespace"], metadata["name"], {"status": patch}, subresource="status"
    )
    if result is None:
        return live
    context.store.put(kind, result)
    await _announce(context, result, before, status)
    return result


async def _announce(
    context: Context, live: Manifest, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """An Event for each condition that changed in status or reason, where that is news."""
    known = {one["type"]: (one["status"], one["reason"]) for one in before.get("conditions", [])}
    told: set[str] = set()
    for condition in after.get("conditions", []):
        kind, status, reason = condition["type"], condition["status"], condition["reason"]
        good = status == "True"
        if known.get(kind) == (status, reason) or status == "Unknown" or reason in told:
            continue
        if not good and reason in _QUIET:
            continue
        if good and (kind not in ("Ready", "Accepted", "Migrated") or reason == "NotNeeded"):
            continue
        told.add(reason)  # Ready repeats what another condition said
        level: Literal["Normal", "Warning"] = "Normal" if good else "Warning"
        word = "Ready" if (kind, good) == ("Ready", True) else reason
        await context.events.post(live, level, word, condition["message"] or f"{kind} is {status}")


async def write_dependents(
    context: Context, key: Key, plan: ModulePlan | None, observed: Observed | None
) -> None:
    """The statuses of the module's Routes and Permissions; *plan* is ``None`` where there is no such Module."""
    for manifest in context.store.routes_of(key):
        await _write_route(context, key, manifest, plan, observed)
    for manifest in context.store.permissions_of(key):
        refusal = context.resources.parse(manifest).refusal
        if refusal is None and plan is None:
            refusal = missing_module(*key, field="metadata.name")
        if refusal is None and plan is not None:
            refusal = summary(plan.permissions.get(manifest["metadata"]["name"], ()))
        fact = _refused(refusal) if refusal else Fact("Accepted", "True", "Accepted", "it is in the policy")
        await _write_facts(context, manifest, [fact])


async def _write_route(
    context: Context, key: Key, manifest: Manifest, plan: ModulePlan | None, observed: Observed | None
) -> None:
    parsed, name = context.resources.parse(manifest), manifest["metadata"]["name"]
    route = parsed.resource
    if not isinstance(route, Route):
        refusal = parsed.refusal or Refusal("Invalid", "the resource cannot be read")
        await _write_facts(context, manifest, [_refused(refusal), _not_programmed()])
        return
    extra: Manifest = {"url": route_url(route, context.settings)}
    if plan is None:
        facts = [_refused(missing_module(*key, field="spec.module")), _not_programmed()]
    else:
        facts = route_facts(plan, name, observed, claims.hosts(route))
        if plan.routes.get(name) == ():
            extra["places"] = [str(place) for place in claims.places(route)]
    await _write_facts(context, manifest, facts, extra)


def _refused(refusal: Refusal) -> Fact:
    return Fact("Accepted", "False", refusal.reason, refusal.message)


def _not_programmed() -> Fact:
    return Fact("Programmed", "False", "NotAccepted", "the edge has nothing of it")


async def _write_facts(
    context: Context, live: Manifest, facts: Sequence[Fact], extra: Manifest | None = None
) -> None:
    generation = live["metadata"].get("generation", 0)
    before = (live.get("status") or {}).get("conditions", [])
    status: Manifest = {
        "observedGeneration": generation,
        "conditions": conditions(facts, before, generation, _time(context)),
    }
    status |= {name: value for name, value in (extra or {}).items() if value is not None}
    await write(context, live, status)


def edge_refusals(context: Context, kind: Kind, plan: ModulePlan, key: Key) -> dict[str, Refusal]:
    """By host: why the edge does not have the module's HTTPRoute, as its controller says it."""
    result: dict[str, Refusal] = {}
    for planned in plan.of_kind(kind.kind):
        live = context.store.get(kind, key[0], planned["metadata"]["name"])
        refusal = _edge_refusal(planned["metadata"]["name"], live or {})
        if refusal is not None:
            result |= dict.fromkeys(planned["spec"].get("hostnames") or [""], refusal)
    return result


def _edge_refusal(name: str, live: Manifest) -> Refusal | None:
    parents = live.get("status", {}).get("parents") or []
    if not parents:
        return Refusal(
            "NotSeen", f"no Gateway controller has looked at HTTPRoute {name}; does the Gateway exist?"
        )
    for condition in (one for parent in parents for one in parent.get("conditions", [])):
        if condition.get("type") in ("Accepted", "ResolvedRefs") and condition.get("status") == "False":
            message = f"the edge refuses HTTPRoute {name}: {condition.get('message')}"
            return Refusal(str(condition.get("reason", "Refused")), message)
    return None
