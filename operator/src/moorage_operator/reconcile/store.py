"""What the operator saw last of every object that concerns it, fed by watches, lists and its own writes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from moorage_operator.apply.kinds import CHILDREN, MODULE, PERMISSION, POD, ROUTE, Kind
from moorage_operator.plan.names import LABEL_MODULE
from moorage_operator.plan.world import Manifest

Key = tuple[str, str]
"""(namespace, module): what is reconciled as one."""


@dataclass(frozen=True, slots=True)
class Change:
    """An object before and after something happened; ``None``: it was, or is, not there."""

    kind: Kind
    before: Manifest | None
    after: Manifest | None

    @property
    def spec_changed(self) -> bool:
        """Something that a person wrote is new: spec (its generation), annotations, finalizers, deletion."""
        if self.before is None or self.after is None:
            return True
        old, new = self.before["metadata"], self.after["metadata"]
        fields = ("uid", "generation", "annotations", "labels", "deletionTimestamp", "finalizers")
        return any(old.get(field) != new.get(field) for field in fields)


class Store:
    """Objects by kind, namespace and name; children also by the module that their label names."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Manifest]] = {
            kind.kind: {} for kind in (MODULE, ROUTE, PERMISSION, POD, *CHILDREN)
        }
        self._children: dict[Key, dict[tuple[str, str], Manifest]] = {}
        self.routes_version = 0
        """Rises with every change that settled claims depend on: of a Route, or of a Module's being there."""

    def put(self, kind: Kind, manifest: Manifest) -> Change | None:
        """Take in *manifest*; ``None``: something newer of the same object is here already, or the very same."""
        metadata = manifest["metadata"]
        key = metadata["namespace"], metadata["name"]
        before = self._objects[kind.kind].get(key)
        if before is not None and not _newer(manifest, before):
            return None
        slim = manifest | {
            "metadata": {name: value for name, value in metadata.items() if name != "managedFields"}
        }
        slim |= {"apiVersion": kind.api_version, "kind": kind.kind}
        self._objects[kind.kind][key] = slim
        self._index(kind, key, before, slim)
        self._count(kind, before, slim)
        return Change(kind, before, slim)

    def remove(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> Change | None:
        """Forget an object; with *uid* only that very one. ``None``: it was not here."""
        key = namespace, name
        before = self._objects[kind.kind].get(key)
        if before is None or (uid is not None and before["metadata"].get("uid") != uid):
            return None
        del self._objects[kind.kind][key]
        self._index(kind, key, before, None)
        self._count(kind, before, None)
        return Change(kind, before, None)

    def keep_only(self, kind: Kind, namespace: str | None, listed: Iterable[Manifest]) -> list[Change]:
        """Set a kind to a fresh list, of one namespace or (``None``) of all; returns what changed.

        Watches are not told of what was deleted while they were down.
        """
        items = {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in listed}
        gone = [
            key
            for key in self._objects[kind.kind]
            if key not in items and (namespace is None or key[0] == namespace)
        ]
        changes = [self.remove(kind, *key) for key in gone]
        changes += [self.put(kind, one) for one in items.values()]
        return [change for change in changes if change is not None]

    def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """The object as it was last seen."""
        return self._objects[kind.kind].get((namespace, name))

    def all(self, kind: Kind) -> Iterator[Manifest]:
        """Every object of a kind."""
        return iter(self._objects[kind.kind].values())

    def children(self, key: Key, kind: Kind) -> list[Manifest]:
        """The objects of *kind* that carry the module's label, by name."""
        found = (
            one for (child_kind, _), one in self._children.get(key, {}).items() if child_kind == kind.kind
        )
        return sorted(found, key=lambda one: one["metadata"]["name"])

    def routes_of(self, key: Key) -> list[Manifest]:
        """The Routes that name the module."""
        return [
            one
            for (namespace, _), one in sorted(self._objects[ROUTE.kind].items())
            if namespace == key[0] and one.get("spec", {}).get("module") == key[1]
        ]

    def permissions_of(self, key: Key) -> list[Manifest]:
        """The Permissions whose code begins with the module's name."""
        return [
            one
            for (namespace, name), one in sorted(self._objects[PERMISSION.kind].items())
            if namespace == key[0] and name.partition(".")[0] == key[1]
        ]

    def keys(self) -> set[Key]:
        """Every key for which there is something to do: Modules, and what Routes, Permissions and children name."""
        found = set(self._objects[MODULE.kind])
        found |= {
            (one["metadata"]["namespace"], one["spec"]["module"]) for one in self.all(ROUTE) if "spec" in one
        }
        found |= {(namespace, name.partition(".")[0]) for namespace, name in self._objects[PERMISSION.kind]}
        return found

    def _index(self, kind: Kind, key: Key, before: Manifest | None, after: Manifest | None) -> None:
        if kind in (MODULE, ROUTE, PERMISSION):
            return
        old, new = _owner_key(before), _owner_key(after)
        if old is not None and old != new:
            below = self._children.get(old, {})
            below.pop((kind.kind, key[1]), None)
            if not below:
                self._children.pop(old, None)
        if new is not None and after is not None:
            self._children.setdefault(new, {})[kind.kind, key[1]] = after

    def _count(self, kind: Kind, before: Manifest | None, after: Manifest | None) -> None:
        if kind is ROUTE:
            changed = _claim_view(before) != _claim_view(after)
        else:
            changed = kind is MODULE and (before is None) != (after is None)
        if changed:
            self.routes_version += 1


def places_of(route: Manifest) -> list[str]:
    """The places in a Route's status, as text."""
    found: list[str] = (route.get("status") or {}).get("places") or []
    return found


def _claim_view(route: Manifest | None) -> tuple[object, ...] | None:
    """What of a Route others' claims depend on."""
    return (route["metadata"].get("uid"), route.get("spec"), places_of(route)) if route is not None else None


def _owner_key(manifest: Manifest | None) -> Key | None:
    if manifest is None:
        return None
    metadata = manifest["metadata"]
    module = metadata.get("labels", {}).get(LABEL_MODULE)
    return (metadata["namespace"], module) if module else None


def _newer(manifest: Manifest, known: Manifest) -> bool:
    """Whether *manifest* is worth taking in. Versions of one object are compared as numbers (KEP-5504)."""
    new, old = manifest["metadata"], known["metadata"]
    if new.get("uid") != old.get("uid"):
        return True
    versions = str(new.get("resourceVersion", "")), str(old.get("resourceVersion", ""))
    if not all(version.isdecimal() for version in versions):
        return versions[0] != versions[1]
    return int(versions[0]) > int(versions[1])
