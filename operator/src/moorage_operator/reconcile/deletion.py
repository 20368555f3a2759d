"""The one finalizer: where a Module's data is to go with it (`onDelete: Drop`), which owner references cannot do.

Cleaning makes nothing new: a namespace that is going away would refuse it.
"""

import logging
from typing import Final

from moorage_crds.v1alpha1 import Module
from moorage_operator.apply.kinds import DEPLOYMENT, JOB, MODULE, POD
from moorage_operator.database import DatabaseRefusedError, DatabaseUnavailableError
from moorage_operator.plan.facts import DatabaseFact
from moorage_operator.plan.names import FINALIZER_DATABASE
from moorage_operator.plan.world import Manifest
from moorage_operator.reconcile.applier import Owner
from moorage_operator.reconcile.context import Context
from moorage_operator.reconcile.store import Key

logger = logging.getLogger(__name__)
WAIT: Final = 2.0
"""Seconds until it is looked again whether the pods are gone."""
RETRY: Final = 15.0


def wants_finalizer(module: Module) -> bool:
    """Whether the Module's data goes with it."""
    return module.spec.database is not None and module.spec.database.on_delete == "Drop"


async def settle_finalizer(context: Context, live: Manifest, wanted: bool) -> Manifest:
    """Put our finalizer on *live* or take it off; returns the object as it is then."""
    metadata = live["metadata"]
    present = list(metadata.get("finalizers", []))
    if (FINALIZER_DATABASE in present) == wanted or (wanted and "deletionTimestamp" in metadata):
        return live
    others = [one for one in present if one != FINALIZER_DATABASE]
    # With the version, so that a finalizer that somebody else adds meanwhile is not lost: a conflict comes back later.
    patch: Manifest = {
        "metadata": {
            "finalizers": [*others, FINALIZER_DATABASE] if wanted else others,
            "resourceVersion": metadata["resourceVersion"],
        }
    }
    result = await context.cluster.patch(MODULE, metadata["namespace"], metadata["name"], patch)
    if result is None:
        return live
    context.store.put(MODULE, result)
    return result


async def clean_up(
    context: Context, key: Key, live: Manifest, module: Module
) -> tuple[DatabaseFact, float | None]:
    """Drop the data of a Module that is being deleted, once nothing uses it any more, and let it go.

    Returns:
        How it stands, and after how many seconds to look again (``None``: it is done).
    """
    owner = Owner(*key, live["metadata"]["uid"])
    for kind in (DEPLOYMENT, JOB):
        for child in context.store.children(key, kind):  # by label, which is anybody's to give
            if owner.owns(child) and "deletionTimestamp" not in child["metadata"]:
                await context.cluster.delete(
                    kind, key[0], child["metadata"]["name"], child["metadata"]["uid"]
                )
    pods = context.store.children(key, POD)
    if pods:
        return DatabaseFact("waiting", "PodsStopping", f"{len(pods)} pods still use the schema"), WAIT
    names = context.databases.names(*key)
    try:
        dropped = await (await context.databases.provisioner()).drop(names, module.metadata.uid or "")
    except (DatabaseUnavailableError, DatabaseRefusedError) as error:
        message = f"the schema cannot be dropped: {error}; set spec.database.onDelete to Retain to let the Module go"
        return DatabaseFact("failed", "DropFailed", message), RETRY
    logger.info("%s/%s: schema %s", *key, "dropped" if dropped else "was not ours, left alone")
    await settle_finalizer(context, live, wanted=False)
    return DatabaseFact("done", message="dropped"), None
