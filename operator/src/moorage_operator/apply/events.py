"""Kubernetes Events for what a person should notice."""

import datetime
import logging
import socket
from collections.abc import Callable
from typing import Final, Literal

from moorage_operator.apply.client import ApiError, Cluster
from moorage_operator.apply.kinds import EVENT
from moorage_operator.plan.names import digest
from moorage_operator.plan.refusal import shorten
from moorage_operator.plan.world import Manifest

logger = logging.getLogger(__name__)
_REMEMBERED: Final = 4096
_QUIET: Final = datetime.timedelta(minutes=5)
"""The same thing about the same object is said again only after this."""

Clock = Callable[[], datetime.datetime]


def utc_now() -> datetime.datetime:
    """The clock."""
    return datetime.datetime.now(datetime.UTC)


class Events:
    """Posts Events, each at most once in five minutes. Failing to post is logged and stops nothing."""

    def __init__(self, cluster: Cluster, clock: Clock = utc_now) -> None:
        self._cluster = cluster
        self._clock = clock
        self._said: dict[str, datetime.datetime] = {}

    async def post(
        self,
        about: Manifest,
        kind: Literal["Normal", "Warning"],
        reason: str,
        note: str,
        action: str = "Reconcile",
    ) -> None:
        """Say *note* about an object."""
        metadata, now = about["metadata"], self._clock()
        key = digest([metadata.get("uid"), kind, reason, note], 32)
        last = self._said.get(key)
        if last is not None and now - last < _QUIET:
            return
        if len(self._said) >= _REMEMBERED:
            self._said = {one: when for one, when in self._said.items() if now - when < _QUIET}
        self._said[key] = now
        event = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"generateName": f"{metadata['name'][:200]}-", "namespace": metadata["namespace"]},
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "moorage.dev/operator",
            "reportingInstance": socket.gethostname()[:128],
            "type": kind,
            "reason": reason,
            "action": action,
            "note": shorten(note),
            "regarding": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata.get("uid"),
                "resourceVersion": metadata.get("resourceVersion"),
            },
        }
        try:
            await self._cluster.create(EVENT, event)
        except ApiError as error:
            if not error.terminating:
                logger.warning("could not post an event about %s: %s", metadata["name"], error)
