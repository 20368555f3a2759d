"""The Modules, Routes and Permissions in the store as models, and who of the installation gets which place."""

from dataclasses import dataclass, field

from moorage_crds import checks, manifests
from moorage_crds.problems import Problem, errors
from moorage_crds.v1alpha1 import Module, Permission, Route
from moorage_crds.v1alpha1.base import ManifestResource
from moorage_operator.apply.kinds import MODULE, ROUTE
from moorage_operator.plan import claims
from moorage_operator.plan.module import host_refusals
from moorage_operator.plan.refusal import Refusal, of_problems, summary
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest
from moorage_operator.reconcile.store import Key, Store, places_of


@dataclass(frozen=True, slots=True)
class Parsed:
    """An object of the store as a model, or why it is none (its CRD would have refused it)."""

    resource: ManifestResource | None
    refusal: Refusal | None


@dataclass(slots=True)
class _Settled:
    version: int = -1
    refused: dict[Key, tuple[Problem, ...]] = field(default_factory=dict)


class Resources:
    """Parses each version of a resource once."""

    def __init__(self, store: Store, settings: PlatformSettings) -> None:
        self._store = store
        self._settings = settings
        self._parsed: dict[tuple[str, str, str], tuple[object, Parsed]] = {}
        self._settled = _Settled()

    def parse(self, manifest: Manifest) -> Parsed:
        """*manifest* as a model."""
        metadata = manifest["metadata"]
        key = manifest["kind"], metadata["namespace"], metadata["name"]
        fields = ("uid", "generation", "annotations", "deletionTimestamp", "finalizers")
        version = [metadata.get(one) for one in fields]
        known = self._parsed.get(key)
        if known is not None and known[0] == version:
            return known[1]
        # The status is ours, and may be of another release.
        content = {name: value for name, value in manifest.items() if name != "status"}
        resource, problems = manifests.parse(content)
        result = Parsed(resource, summary(of_problems(problems)))
        self._parsed[key] = (version, result)
        return result

    def forget(self, kind: str, key: Key) -> None:
        """Drop what was remembered of an object that is gone."""
        self._parsed.pop((kind, *key), None)

    def modules(self, namespace: str) -> list[Module]:
        """Every Module of a namespace that can be read."""
        here = (one for one in self._store.all(MODULE) if one["metadata"]["namespace"] == namespace)
        found = (self.parse(one).resource for one in here)
        return [one for one in found if isinstance(one, Module)]

    def routes(self, key: Key) -> list[Route]:
        """The Routes of a module that can be read."""
        found = (self.parse(one).resource for one in self._store.routes_of(key))
        return [one for one in found if isinstance(one, Route)]

    def permissions(self, key: Key) -> list[Permission]:
        """The Permissions of a module that can be read."""
        found = (self.parse(one).resource for one in self._store.permissions_of(key))
        return [one for one in found if isinstance(one, Permission)]

    def refused_claims(self, key: Key) -> dict[str, tuple[Problem, ...]]:
        """By name of a Route of the namespace: whose places it wants."""
        return {
            name: problems for (namespace, name), problems in self._settle().items() if namespace == key[0]
        }

    def claims_changed(self) -> set[Key]:
        """The modules for which a Route won or lost a place since this was asked last."""
        before, after = self._settled.refused, self._settle()
        if before is after:
            return set()
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        return {
            (one["metadata"]["namespace"], one["spec"]["module"])
            for one in self._store.all(ROUTE)
            if (one["metadata"]["namespace"], one["metadata"]["name"]) in changed
        }

    def _settle(self) -> dict[Key, tuple[Problem, ...]]:
        if self._settled.version != self._store.routes_version:
            version = self._store.routes_version
            refused = claims.settle(
                self._claimants(), self._held(), core_namespace=self._settings.core_namespace
            )
            self._settled = _Settled(version, refused)
        return self._settled.refused

    def _claimants(self) -> list[Route]:
        """Routes that nothing else stands in the way of: a broken one holds no place."""
        result = []
        for manifest in self._store.all(ROUTE):
            route = self.parse(manifest).resource
            if not isinstance(route, Route) or self._store.get(MODULE, *route.module_key) is None:
                continue
            if not errors(checks.unsupported(route)) and not host_refusals(route, self._settings):
                result.append(route)
        return result

    def _held(self) -> dict[Key, list[claims.Place]]:
        """What each Route was given before, from its status, which only the operator writes.

        Edge objects do not count: whoever may write them in his namespace could pass for a holder.
        """
        return {
            (one["metadata"]["namespace"], one["metadata"]["name"]): [
                claims.Place.parse(place) for place in places_of(one)
            ]
            for one in self._store.all(ROUTE)
        }
