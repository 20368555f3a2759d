"""The signed policy of a module: written when its content changes, and brought to running pods at once."""

import datetime
import json
import logging
from dataclasses import dataclass

from moorage.guard import signing
from moorage.guard.policy import (
    BASE_FILE,
    SIGNATURE_FILE,
    TRUST_FILE,
    BaseDocument,
    DocumentError,
    parse_document,
)
from moorage_operator.apply.client import Cluster
from moorage_operator.apply.kinds import POD
from moorage_operator.plan.configmap import policy_config_map
from moorage_operator.plan.module import ModulePlan
from moorage_operator.plan.names import ANNOTATION_POLICY, COMPONENT_SERVER, LABEL_COMPONENT
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest

logger = logging.getLogger(__name__)
_CLOCKS = 3_600_000
"""Milliseconds by which the clocks of two operators may differ."""


@dataclass(frozen=True, slots=True)
class SignedPolicy:
    """The ConfigMap that should exist, and its document's sequence and time of issue."""

    config_map: Manifest
    sequence: int
    issued_at: str


def signed(
    plan: ModulePlan, live: Manifest | None, key: bytes, settings: PlatformSettings, now: datetime.datetime
) -> SignedPolicy:
    """The ConfigMap for *plan*: the live one's document while it says the same and is signed well, else a new one.

    A new document's sequence is the time in milliseconds, or one more than the live one's: it rises even where the
    ConfigMap was deleted, and guards refuse what does not rise.
    """
    trust = signing.public_pem(key)
    ours = _ours(live, trust)
    document = ours if ours is not None and _says(ours, plan.policy) and _anchored(live, trust) else None
    if document is None:
        time = int(now.timestamp() * 1000)
        document = plan.policy.model_copy(
            update={
                "sequence": max(time, _before(live, ours, time) + 1),
                "issued_at": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
    content = document.canonical()
    config_map = policy_config_map(
        plan.module,
        settings,
        document=content.decode(),
        signature=signing.sign(content, key).decode(),
        trust=trust.decode(),
    )
    return SignedPolicy(config_map, document.sequence, document.issued_at)


def _ours(live: Manifest | None, trust: bytes) -> BaseDocument | None:
    """The live ConfigMap's document, if we signed it: what anybody else put there does not count."""
    data = (live or {}).get("data") or {}
    try:
        content = data[BASE_FILE].encode()
        signing.verify(content, data[SIGNATURE_FILE].encode(), trust)
        return parse_document(content)
    except (KeyError, UnicodeError, DocumentError, signing.SignatureError):
        return None


def _before(live: Manifest | None, ours: BaseDocument | None, time: int) -> int:
    """The sequence to rise above: of a document that we did not sign only if it is one that we could have given."""
    if ours is not None:
        return ours.sequence
    try:
        found = int(json.loads((live or {})["data"][BASE_FILE])["sequence"])
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        return 0
    return found if found <= time + _CLOCKS else 0


def _says(document: BaseDocument, wanted: BaseDocument) -> bool:
    same = wanted.model_copy(update={"sequence": document.sequence, "issued_at": document.issued_at})
    return same.canonical() == document.canonical()


def _anchored(live: Manifest | None, trust: bytes) -> bool:
    return bool(live) and (live or {}).get("data", {}).get(TRUST_FILE) == trust.decode()


async def hurry(cluster: Cluster, pods: list[Manifest], policy: SignedPolicy) -> None:
    """Make kubelet read the policy at once, in pods that are older than it.

    Kubelet reads mounted ConfigMaps anew when their pod changes: 0.2 s after a patched annotation, else within 80 s.
    """
    wanted = str(policy.sequence)
    for pod in pods:
        metadata = pod["metadata"]
        if (
            metadata.get("labels", {}).get(LABEL_COMPONENT) != COMPONENT_SERVER
            or "deletionTimestamp" in metadata
        ):
            continue
        # A pod that was made after the policy has read it at its start (both times are whole seconds).
        if metadata.get("creationTimestamp", "") > policy.issued_at:
            continue
        if metadata.get("annotations", {}).get(ANNOTATION_POLICY) != wanted:
            patch: Manifest = {"metadata": {"annotations": {ANNOTATION_POLICY: wanted}}}
            await cluster.patch(POD, metadata["namespace"], metadata["name"], patch)
