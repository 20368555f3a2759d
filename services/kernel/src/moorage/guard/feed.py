"""What a guard makes of the policy stream's messages: which of them count, and for how long. No I/O.

- A message counts if it is sealed by a certified key, for this namespace and module, and is the next one: a snapshot
  with a higher sequence, the change after the overlay in force, a heartbeat of its sequence.
- What is older is a replay, or comes from a replica that is behind: it changes nothing, and is no sign of life.
- What is further ahead shows that something is missing: the whole overlay has to be asked for again.
- Everything that counts keeps the overlay fresh for another `max_staleness`. A heartbeat counts once, or a recording
  of one could keep a guard that was cut off content.
"""

import datetime
import logging
import time
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

from moorage.errors import Unavailable
from moorage.guard.overlay import Change, Heartbeat, Overlay, OverlayDocument, parse
from moorage.guard.policy import DocumentError
from moorage.guard.sealing import Seals, elapsed
from moorage.guard.signing import SignatureError
from moorage.guard.sse import Event

logger = logging.getLogger("moorage.guard")

Document = OverlayDocument | Change | Heartbeat

KINDS: Final[dict[str, type[Document]]] = {
    "snapshot": OverlayDocument,
    "change": Change,
    "heartbeat": Heartbeat,
}
"""What each event's data is. Events of other names are left alone: a change that hides in one leaves a gap."""


Reason = Literal["seal", "place", "form", "content", "old", "gap"]
"""Why a message does not count: not signed as it has to be; for another module; not to be read; nothing that can be
put in force; made too long ago; not the next one.
"""


class Refused(Exception):  # noqa: N818 - says what happened to the message
    """A message that does not count; the text says why, and *reason* in one word. What was in force stays."""

    def __init__(self, text: str, reason: Reason) -> None:
        super().__init__(text)
        self.reason: Reason = reason


class Gap(Refused):
    """Something is missing between the overlay in force and this message."""

    def __init__(self, text: str) -> None:
        super().__init__(text, "gap")


class Enforcer(Protocol):
    """What a feed needs of a guard."""

    @property
    def trust(self) -> bytes | None:
        """The trust anchor in force (PEM)."""
        ...

    def overlay(self, overlay: Overlay) -> None:
        """Put *overlay* in force; raises `DocumentError`, and keeps the one before."""
        ...


class Feed:
    """The overlay of one guard: where it stands, and whether it can still be relied on.

    Args:
        namespace, module: for whom messages have to be.
        core_namespace: whose service may sign them.
        max_staleness: seconds after the last sign of life for which the overlay counts.
        alone: be ready, and decide, before the first message came; as long as an overlay would count without another.
        clock: seconds since the epoch.
        rising: seconds that only rise; what is stale is told by these alone.
    """

    def __init__(
        self,
        guard: Enforcer,
        *,
        namespace: str,
        module: str,
        core_namespace: str,
        max_staleness: float,
        alone: bool = False,
        clock: Callable[[], float] = time.time,
        rising: Callable[[], float] = elapsed,
    ) -> None:
        self.place = (namespace, module)
        self.overlay: Overlay | None = None
        self.connected = False
        self.error: str | None = None
        self._guard = guard
        self._seals = Seals(lambda: guard.trust, namespace=core_namespace, clock=clock, rising=rising)
        self._max_staleness = max_staleness
        self._alone = alone
        self._clock = clock
        self._rising = rising
        self._fresh_until = rising() + max_staleness if alone else float("-inf")
        self._alive_at: float | None = None
        self._last = (-1, -1)
        self._received_at: str | None = None

    # ---- asked by the guard

    def check(self) -> None:
        """Raise `Unavailable` if nobody knows whether tokens still count."""
        if self._rising() >= self._fresh_until:
            raise Unavailable(
                "The service does not know the newest policy.",
                code="policy_stale",
                retry_after=5,
                reason=self.error or "no sign of life of the policy stream",
            )

    @property
    def stale(self) -> bool:
        """Whether `check` raises."""
        return self._rising() >= self._fresh_until

    @property
    def age(self) -> float | None:
        """Seconds since the last sign of life; ``None``: there was none."""
        return None if self._alive_at is None else self._rising() - self._alive_at

    @property
    def waiting(self) -> str:
        """Why the process is not ready yet; empty: it is, and stays so."""
        if self._alone or self.overlay is not None:
            return ""
        return f"the policy stream was not in sync yet{f': {self.error}' if self.error else ''}"

    @property
    def degraded(self) -> str:
        """What does not work at the moment; empty: all does."""
        if self.stale:
            return f"stale: rules that need a token answer 503{f'; {self.error}' if self.error else ''}"
        return "" if self.connected else self.error or "not connected yet"

    def status(self) -> dict[str, Any]:
        """The part ``overlay`` of the guard's status. Nothing in it is secret."""
        return {
            "sequence": self.sequence,
            "received_at": self._received_at,
            "stale": self.stale,
            "connected": self.connected,
            "error": self.error,
        }

    @property
    def sequence(self) -> int | None:
        """That of the overlay in force; ``None``: there is none."""
        return self.overlay.sequence if self.overlay is not None else None

    # ---- told by the stream

    def take(self, event: Event) -> bool:
        """`read` and `put`: False for what is nothing new."""
        document = self.read(event)
        return document is not None and self.put(document)

    def read(self, event: Event) -> Document | None:
        """What *event* says, if it is for us and sealed as it has to be; ``None``: it is of a kind that is left alone.

        Changes nothing, so that large ones can be read in another thread. Raises `Refused`.
        """
        kind = KINDS.get(event.name)
        if kind is None:
            return None
        try:
            document = parse(kind, self._seals.open(event.data))
        except SignatureError as exc:
            raise Refused(f"{event.name}: {exc}", "seal") from None
        except DocumentError as exc:
            raise Refused(f"{event.name}: {exc}", "form") from None
        if (document.namespace, document.module) != self.place:
            raise Refused(f"{event.name}: it is for {document.namespace}/{document.module}", "place")
        if event.id != str(document.sequence):
            raise Refused(f"{event.name}: the event's id is not its sequence {document.sequence}", "form")
        return document

    def put(self, document: Document) -> bool:
        """Let *document* count; False: it is nothing new. Raises `Refused` or `Gap`, and changes nothing then."""
        try:
            counts = self._counts(document)
        except DocumentError as exc:
            raise Refused(f"{document.kind}: {exc}", "content") from None
        if counts:
            self._last = (document.sequence, document.heartbeat_at)
            self._alive_at = self._rising()
            self._fresh_until = self._alive_at + self._max_staleness
            self.error = None
        return counts

    def _counts(self, document: Document) -> bool:
        """Put *document* in force if it is the next one; whether it is a sign of life."""
        now = self.overlay
        if isinstance(document, OverlayDocument):
            if now is None:
                self._not_old(document)
            if now is None or document.sequence > now.sequence:
                self._enforce(Overlay.of(document))
                return True
        elif now is None:
            raise Gap("there was no snapshot yet")
        elif isinstance(document, Change) and document.sequence == now.sequence + 1:
            self._enforce(now.after(document))
            return True
        elif document.sequence > now.sequence:
            raise Gap(f"sequence {document.sequence} came after {now.sequence}")
        assert now is not None
        return document.sequence == now.sequence and self._last < (document.sequence, document.heartbeat_at)

    def _not_old(self, document: OverlayDocument) -> None:
        """Refuse a recording as the first overlay: later ones are told by their order, but there is none yet."""
        old = self._clock() - document.heartbeat_at / 1000
        if old > self._max_staleness:
            raise Refused(f"snapshot: it was made {old:.0f} s ago by this machine's clock", "old")

    def _enforce(self, overlay: Overlay) -> None:
        self._guard.overlay(overlay)
        self.overlay = overlay
        self._received_at = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).isoformat(
            timespec="seconds"
        )
        logger.debug("overlay in force", extra={"sequence": overlay.sequence})

    def failed(self, error: str) -> None:
        """Note that the connection is gone, or was not made, and why."""
        self.connected = False
        if error != self.error:
            logger.warning("policy stream interrupted", extra={"error": error, "sequence": self.sequence})
        self.error = error
