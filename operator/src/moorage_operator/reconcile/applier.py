"""Makes a module's live objects as planned: writes what differs, takes away what is no longer planned."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moorage_operator.apply import kinds
from moorage_operator.apply.client import ApiError, Cluster
from moorage_operator.apply.kinds import SECRET, Kind
from moorage_operator.plan import diff
from moorage_operator.plan.diff import Ref, ref_of
from moorage_operator.plan.refusal import Refusal
from moorage_operator.plan.world import Manifest
from moorage_operator.reconcile.store import Store

logger = logging.getLogger(__name__)


class ObjectInTheWayError(Exception):
    """An object of a planned name belongs to somebody else, or to a Module of before that is still being removed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Owner:
    """The Module whose objects these are."""

    namespace: str
    name: str
    uid: str

    def owns(self, manifest: Manifest) -> bool:
        """Whether *manifest* names this very Module as its controller."""
        references = manifest["metadata"].get("ownerReferences") or []
        return any(one.get("uid") == self.uid and one.get("controller") for one in references)


class Applier:
    """Reads live objects from the store, or from the API where it is not sure, and writes to the API."""

    def __init__(self, cluster: Cluster, store: Store) -> None:
        self._cluster = cluster
        self._store = store

    async def live(self, owner: Owner, ref: Ref) -> Manifest | None:
        """The live object. Secrets are in no store: they are read one by one."""
        kind = kinds.find(ref.api_version, ref.kind)
        if kind is not SECRET:
            known = self._store.get(kind, owner.namespace, ref.name)
            if known is not None:
                return known
        return await self._cluster.get(kind, owner.namespace, ref.name)

    async def ensure(self, owner: Owner, planned: Iterable[Manifest]) -> None:
        """Bring every *planned* object about, in order, writing only what differs.

        Raises:
            ObjectInTheWayError: one of the names is taken; nothing of that object was changed.
            ApiError: the API server said no.
        """
        for manifest in planned:
            await self._ensure(owner, diff.stamp(manifest))

    async def _ensure(self, owner: Owner, planned: Manifest) -> None:
        kind = kinds.find(planned["apiVersion"], planned["kind"])
        live = await self.live(owner, ref_of(planned))
        if live is not None:
            _check_owner(owner, live)
            found = diff.differences(planned, live)
            if not found:
                self._store_put(kind, live)
                return
            logger.info(
                "%s/%s: %s %s differs: %s",
                owner.namespace,
                owner.name,
                kind.kind,
                planned["metadata"]["name"],
                ", ".join(".".join(one.path) for one in found[:8]),
            )
        self._store_put(kind, await self._write(kind, planned, live))

    async def _write(self, kind: Kind, planned: Manifest, live: Manifest | None) -> Manifest:
        """Apply *planned*, and undo by a merge patch what apply leaves, or trips over (422).

        With the UID of the object that was looked at: another one of its name, of whomever, is a conflict (409).
        """
        if live is not None:
            planned = planned | {"metadata": planned["metadata"] | {"uid": live["metadata"]["uid"]}}
        try:
            result = await self._cluster.apply(kind, planned)
        except ApiError as error:
            if error.not_found and "requested resource" in error.message:
                raise _unknown_kind(kind) from error
            if error.status != 422 or live is None:
                raise
            await self._patch(kind, planned, diff.differences(planned, live))
            result = await self._cluster.apply(kind, planned)
        added = [one for one in diff.differences(planned, result) if one.extra]
        return await self._patch(kind, planned, added) or result if added else result

    async def _patch(self, kind: Kind, planned: Manifest, found: list[diff.Difference]) -> Manifest | None:
        metadata = planned["metadata"]
        patch = diff.repair_patch(planned, found)
        return await self._cluster.patch(kind, metadata["namespace"], metadata["name"], patch)

    async def create(self, owner: Owner, manifest: Manifest) -> None:
        """Make an object whose content may never change (a Job, the Secret it uses), or put it in place of its like."""
        kind = kinds.find(manifest["apiVersion"], manifest["kind"])
        live = await self.live(owner, ref_of(manifest))
        if live is not None:
            _check_owner(owner, live)
            await self._cluster.delete(
                kind, owner.namespace, live["metadata"]["name"], live["metadata"]["uid"]
            )
        self._store_put(kind, await self._cluster.create(kind, manifest))

    async def prune(self, owner: Owner, refs: Sequence[Ref]) -> list[Ref]:
        """Delete what is the Module's own of *refs*; returns those that are gone, or were never its own."""
        gone = []
        for ref in refs:
            if not kinds.known(ref.api_version, ref.kind):
                continue  # another release's; it stays in the inventory, and goes with the Module
            live = await self.live(owner, ref)
            if live is not None and owner.owns(live):
                kind, metadata = kinds.find(ref.api_version, ref.kind), live["metadata"]
                logger.info("%s/%s: deleting %s %s", owner.namespace, owner.name, ref.kind, ref.name)
                await self._cluster.delete(kind, owner.namespace, ref.name, metadata["uid"])
                if kind is not SECRET:
                    self._store.remove(kind, owner.namespace, ref.name, metadata["uid"])
            gone.append(ref)
        return gone

    def _store_put(self, kind: Kind, manifest: Manifest) -> None:
        if kind is not SECRET:
            self._store.put(kind, manifest)


def _unknown_kind(kind: Kind) -> ApiError:
    mend = (
        f"the cluster does not know {kind.kind} ({kind.api_version}); install its CRDs, or change `edge.kind`"
    )
    return ApiError(404, "NotFound", f"{mend} in the chart's values")


def _check_owner(owner: Owner, live: Manifest) -> None:
    if owner.owns(live):
        return
    metadata = live["metadata"]
    what = f"{live.get('kind')} {metadata['namespace']}/{metadata['name']}"
    controller = next((one for one in metadata.get("ownerReferences") or [] if one.get("controller")), None)
    if controller is not None and (controller.get("kind"), controller.get("name")) == ("Module", owner.name):
        raise ObjectInTheWayError(
            Refusal(
                "PreviousModule",
                f"{what} belongs to a deleted Module of this name and is still being removed",
            )
        )
    raise ObjectInTheWayError(
        Refusal(
            "ObjectExists",
            f"metadata.name: {what} exists and is not this Module's; delete or rename it, or rename the Module",
        )
    )
