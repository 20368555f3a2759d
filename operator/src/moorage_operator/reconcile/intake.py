"""What a change means: which keys have to be looked at because of it."""

from collections.abc import Iterable
from typing import Any

from moorage_operator.apply.kinds import MODULE, PERMISSION, POD, ROUTE, Kind
from moorage_operator.plan.facts import pod_fact, termination_message
from moorage_operator.plan.names import LABEL_MODULE
from moorage_operator.plan.world import Manifest
from moorage_operator.reconcile.queue import KeyedQueue
from moorage_operator.reconcile.resources import Resources
from moorage_operator.reconcile.store import Change, Key, Store


class Intake:
    """Takes in what watches and lists bring, and puts on the queue what it concerns."""

    def __init__(self, store: Store, resources: Resources, queue: KeyedQueue) -> None:
        self._store = store
        self._resources = resources
        self._queue = queue

    def observe(self, kind: Kind, manifest: Manifest, *, deleted: bool) -> None:
        """One event of a watch."""
        metadata = manifest["metadata"]
        if deleted:
            change = self._store.remove(kind, metadata["namespace"], metadata["name"], metadata.get("uid"))
        else:
            change = self._store.put(kind, manifest)
        if change is not None:
            self.take([change])

    def take(self, changes: Iterable[Change]) -> None:
        """Changes that the store has taken in."""
        keys: set[Key] = set()
        for change in changes:
            keys |= self._concerned(change)
        keys |= self._resources.claims_changed()
        for key in sorted(keys):
            self._queue.add(key)

    def _concerned(self, change: Change) -> set[Key]:
        if change.after is None and change.before is not None:
            metadata = change.before["metadata"]
            self._resources.forget(change.kind.kind, (metadata["namespace"], metadata["name"]))
        if change.kind is MODULE:
            return self._of_module(change)
        if change.kind is ROUTE:
            return {key for one in _both(change) for key in _route_key(one)} if change.spec_changed else set()
        if change.kind is PERMISSION:
            return {_permission_key(one) for one in _both(change)} if change.spec_changed else set()
        if change.kind is POD and not _pod_news(change):
            return set()
        return {key for one in _both(change) for key in _child_key(one)}

    def _of_module(self, change: Change) -> set[Key]:
        one = next(iter(_both(change)))
        key = one["metadata"]["namespace"], one["metadata"]["name"]
        found = {key} if change.spec_changed else set()
        if change.spec_changed or _ready(change.before) != _ready(change.after):
            found |= self._dependents(key)
        return found

    def _dependents(self, key: Key) -> set[Key]:
        return {
            (one["metadata"]["namespace"], one["metadata"]["name"])
            for one in self._store.all(MODULE)
            for dependency in one.get("spec", {}).get("dependencies", [])
            if (dependency.get("namespace") or one["metadata"]["namespace"], dependency.get("module")) == key
        }


def _both(change: Change) -> list[Manifest]:
    return [one for one in (change.before, change.after) if one is not None]


def _route_key(manifest: Manifest) -> list[Key]:
    module = manifest.get("spec", {}).get("module")
    return [(manifest["metadata"]["namespace"], module)] if module else []


def _permission_key(manifest: Manifest) -> Key:
    metadata = manifest["metadata"]
    return metadata["namespace"], metadata["name"].partition(".")[0]


def _child_key(manifest: Manifest) -> list[Key]:
    metadata = manifest["metadata"]
    module = metadata.get("labels", {}).get(LABEL_MODULE)
    return [(metadata["namespace"], module)] if module else []


def _pod_news(change: Change) -> bool:
    """Pods tell much that changes nothing: container ids, start times, our own annotation."""
    if change.before is None or change.after is None:
        return True
    return _pod_view(change.before) != _pod_view(change.after)


def _pod_view(pod: Manifest) -> tuple[Any, ...]:
    metadata = pod["metadata"]
    phase = pod.get("status", {}).get("phase")
    return (
        pod_fact(pod),
        phase,
        metadata.get("labels"),
        metadata.get("deletionTimestamp"),
        termination_message(pod),
    )


def _ready(manifest: Manifest | None) -> bool:
    conditions = ((manifest or {}).get("status") or {}).get("conditions", [])
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
