"""What carries events from module to module: the interface of every bus.

A bus knows topics, partitions and bytes; it knows nothing of outbox, inbox or handlers. Its promises:

* what `Publisher.publish` returned from is durable;
* messages of one topic with one key come out in the order in which they were published, from one partition;
* a partition belongs to at most one member of a group *as far as the bus can know*: a member that was paused or cut off
  finds out with `PartitionLost` when it commits, and must be safe against having worked for nothing until then;
* what was fetched and not committed is fetched again, by this member after it opens anew or by another.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Partition = tuple[str, int]
"""Topic (without installation and namespace) and number of the partition."""

OnChange = Callable[[frozenset[Partition]], Awaitable[None]]
"""Called with *all* partitions that are this member's from now on. Awaited before any that is missing in the set is
given to another member, so that what is under way on it can be finished and its position committed.
"""


class BusUnavailable(Exception):  # noqa: N818 - says what happened, as NotReady does
    """The bus does not answer, or refused for now; the text says why and never holds a password. Try again later."""


class PartitionLost(Exception):  # noqa: N818 - says what happened
    """These partitions are another member's by now: nothing of the commit counts for them."""

    def __init__(self, partitions: Collection[Partition]) -> None:
        self.partitions = frozenset(partitions)
        named = ", ".join(f"{topic}/{number}" for topic, number in sorted(self.partitions))
        super().__init__(f"another member of the group has {named or 'these partitions'} now")


@dataclass(frozen=True, slots=True)
class Message:
    """Something to publish."""

    topic: str
    """Without installation and namespace; a bus adds both."""
    key: str
    """What order holds for."""
    body: bytes
    """CloudEvents 1.0 in JSON (structured mode)."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """``content-type``, ``traceparent``; only for who looks at the bus from outside: the body has all of it."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Something that came: a `Message` with its place."""

    topic: str
    partition: int
    position: int
    """Rises within the partition; ``position + 1`` is what to commit when this one is done."""
    key: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Publisher(Protocol):
    """The sending half of a bus."""

    async def open(self) -> None:
        """Connect; raises `BusUnavailable` if that cannot be done now."""

    async def close(self) -> None:
        """Let go of everything; never raises, and may be called twice."""

    async def publish(self, messages: Sequence[Message]) -> None:
        """Append *messages*, per topic and key in their order; returns when all of them are durable.

        Raises:
            BusUnavailable: some may be there and some not; the caller publishes all of them again, in the same order.
        """

    async def ping(self) -> None:
        """Raises what is wrong, if something is."""


class Subscriber(Protocol):
    """A member of a consumer group; the group is the module, members are its processes."""

    async def open(self, topics: Collection[str], on_change: OnChange) -> None:
        """Join the group; raises `BusUnavailable` if that cannot be done now."""

    async def fetch(self, limit: int, wait: float) -> Mapping[Partition, Sequence[Delivery]]:
        """What comes next on this member's partitions, at most *limit* in all; each partition's in its order.

        Returns as soon as there is something, and empty after *wait* seconds. Continues after what the last call
        returned, committed or not.

        Raises:
            BusUnavailable: not now.
        """

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Note the next position to read, per partition.

        Raises:
            PartitionLost: for some; the others' positions are committed.
            BusUnavailable: nothing may be committed.
        """

    async def pause(self, partitions: Collection[Partition]) -> None:
        """Fetch nothing of *partitions* until `resume`; they stay this member's."""

    async def resume(self, partitions: Collection[Partition]) -> None:
        """Fetch from *partitions* again."""

    async def lag(self) -> Mapping[Partition, int]:
        """How many messages are not committed yet, for each of this member's partitions."""

    async def close(self) -> None:
        """Leave the group; does not call `OnChange`; never raises, and may be called twice."""
