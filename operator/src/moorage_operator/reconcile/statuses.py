"""Writes statuses where they changed, and says aloud what a person should notice."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

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
    {"RollingOut", "Running", "Started", "NoDeployment", "NoPodReady", "NoPodToAsk", "Loading"}
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
        parsed = context.resources.parse(manifest)
        if plan is None:
            facts = [_refused(parsed.refusal or missing_module(*key, field="spec.module")), _not_programmed()]
        elif parsed.refusal is not None:
            facts = [_refused(parsed.refusal), _not_programmed()]
        else:
            hosts = sorted(set(manifest["spec"].get("hosts", []))) or [""]
            facts = route_facts(plan, manifest["metadata"]["name"], observed, hosts)
        await _write_facts(context, manifest, facts, url=_route_url(context, manifest))
    for manifest in context.store.permissions_of(key):
        refusal = context.resources.parse(manifest).refusal
        if refusal is None and plan is None:
            refusal = missing_module(*key, field="metadata.name")
        if refusal is None and plan is not None:
            refusal = summary(plan.permissions.get(manifest["metadata"]["name"], ()))
        fact = _refused(refusal) if refusal else Fact("Accepted", "True", "Accepted", "it is in the policy")
        await _write_facts(context, manifest, [fact])


def _refused(refusal: Refusal) -> Fact:
    return Fact("Accepted", "False", refusal.reason, refusal.message)


def _not_programmed() -> Fact:
    return Fact("Programmed", "False", "NotAccepted", "the edge has nothing of it")


def _route_url(context: Context, manifest: Manifest) -> str | None:
    route = next(
        (
            one
            for one in context.resources.routes(
                (manifest["metadata"]["namespace"], manifest["spec"]["module"])
            )
            if one.metadata.name == manifest["metadata"]["name"]
        ),
        None,
    )
    return route_url(route, context.settings) if route is not None else None


async def _write_facts(
    context: Context, live: Manifest, facts: Sequence[Fact], url: str | None = None
) -> None:
    generation = live["metadata"].get("generation", 0)
    before = (live.get("status") or {}).get("conditions", [])
    status: Manifest = {
        "observedGeneration": generation,
        "conditions": conditions(facts, before, generation, _time(context)),
    }
    if url is not None:
        status["url"] = url
    await write(context, live, status)


def edge_refusals(context: Context, kind: Kind, plan: ModulePlan, key: Key) -> dict[str, Refusal]:
    """By host: why the edge does not take the module's HTTPRoute, as its controller says it."""
    if kind.kind != "HTTPRoute":
        return {}
    result: dict[str, Refusal] = {}
    for planned in plan.of_kind(kind.kind):
        live = context.store.get(kind, key[0], planned["metadata"]["name"])
        for parent in (live or {}).get("status", {}).get("parents", []):
            for condition in parent.get("conditions", []):
                if condition.get("status") == "False" and condition.get("type") in (
                    "Accepted",
                    "ResolvedRefs",
                ):
                    message = f"the edge refuses HTTPRoute {planned['metadata']['name']}: {condition.get('message')}"
                    for host in {place.host for place in _places(planned)}:
                        result[host] = Refusal(str(condition.get("reason", "Refused")), message)
    return result


def _places(planned: Manifest) -> list[claims.Place]:
    return [claims.Place(host, "/") for host in planned["spec"].get("hostnames") or [""]]
