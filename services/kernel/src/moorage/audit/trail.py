"""Where entries are stored: the port's interface."""

from typing import Protocol

from moorage.audit.entry import Entry


class Trail(Protocol):
    """Stores entries, one after the other. All calls come from one event loop."""

    async def record(self, entry: Entry) -> None:
        """Store *entry*: when this returns, it is where the trail keeps entries, and no end of this process loses it.

        May be asked for the same entry again after it has raised, or was cancelled.

        Raises:
            Exception: of any kind; it is not stored, or nobody knows.
        """

    async def ping(self) -> None:
        """Raise if an entry could not be stored now, as far as that can be told without storing one; cheap."""

    async def close(self) -> None:
        """Let go of what is open; nothing is asked of it afterwards."""
