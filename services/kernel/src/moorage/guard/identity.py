"""Who calls: a person with an access token, or a module with its service account's token."""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class User:
    """A person, as the access token and the policy describe him.

    ``permissions`` are the codes that the roles hold by grant; a permission's condition is not part of it.
    """

    id: UUID
    email: str | None = None
    roles: tuple[str, ...] = ()
    permissions: frozenset[str] = frozenset()
    tenant_id: str | None = None
    session_id: str | None = None

    def has(self, permission: str) -> bool:
        """Whether a role of the user holds the code *permission* (its condition aside)."""
        return permission in self.permissions


@dataclass(frozen=True, slots=True)
class ModuleCaller:
    """A module that calls with its own service account."""

    namespace: str
    name: str
    permissions: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """The form in which policies name a module: ``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    def has(self, permission: str) -> bool:
        """Whether the module holds the code *permission* by grant (its condition aside)."""
        return permission in self.permissions


Caller = User | ModuleCaller
