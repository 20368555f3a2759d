"""Answers that are kept, so that a request that is sent again gets the same one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from moorage.scope import Scope


@dataclass(frozen=True)
class Kept:
    """An answer that was given; ``body`` is None if it was too large to keep."""

    fingerprint: bytes
    status: int
    headers: Mapping[str, str]
    body: bytes | None


class AnswerStore(Protocol):
    """Where answers are kept, in the transaction of the scope."""

    async def ready(self, scope: Scope) -> bool:
        """Whether answers can be kept: not in a schema that nobody has migrated."""
        ...

    async def claim(self, scope: Scope, key: bytes) -> Kept | None:
        """Hold *key* until the transaction ends; the answer that it has already, or None.

        Raises:
            Conflict: somebody else holds it.
        """
        ...

    async def keep(self, scope: Scope, key: bytes, kept: Kept) -> None:
        """Keep the answer, if the transaction commits."""
        ...
