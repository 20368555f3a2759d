"""The overlay: what changes by the minute beside the base policy; made by the authz service, only ever sent by stream.

Three signed documents, each for one (namespace, module) and each with the overlay's ``sequence``:

| kind | is |
| --- | --- |
| ``overlay`` | the whole overlay, as of that sequence |
| ``change`` | the step from the sequence before to this one |
| ``heartbeat`` | nothing has changed since |

Every one of them says when its maker was alive (``heartbeat_at``). How they are signed and sent: `sealing`.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moorage.errors import Unauthenticated
from moorage.guard import policy
from moorage.guard.policy import DocumentError, Grant, Name, Role, canonical_json
from moorage.guard.tokens import UserClaims

HEARTBEAT_S: Final = 5.0
"""Seconds between two heartbeats of a stream on which nothing else happens."""
MAX_DOCUMENT: Final = 4 * 1024 * 1024
"""Bytes of one document, as it is signed."""
MAX_ROLES: Final = 4096
MAX_USERS: Final = 20_000
MAX_SESSIONS: Final = 50_000
MAX_KEYS: Final = 32

_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
UserId = Annotated[str, Field(pattern=_UUID)]
SessionId = Annotated[str, Field(min_length=1, max_length=320)]
Keys = Annotated[list[dict[str, Any]], Field(max_length=MAX_KEYS)]
Roles = Annotated[
    dict[Role, Annotated[list[Grant], Field(max_length=MAX_ROLES)]], Field(max_length=MAX_ROLES)
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class UserState(_Part):
    """What counts for a user instead of what older tokens say. ``ver`` rises with every change to him."""

    ver: Annotated[int, Field(ge=1, le=2**53)]
    roles: Annotated[list[Role], Field(max_length=128)]
    disabled: bool = False


class _Document(_Part):
    v: Literal[1] = 1
    namespace: Name
    module: Name
    sequence: Annotated[int, Field(ge=0, le=2**53)]
    heartbeat_at: Annotated[int, Field(ge=0, le=2**53, description="milliseconds since the epoch")]

    def canonical(self) -> bytes:
        """The document's one byte form, which is signed."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))


class OverlayDocument(_Document):
    """The whole overlay.

    ``roles`` are custom roles with what they hold, in addition to base grants; ``users`` those about whom older
    tokens are wrong; ``sessions`` the revoked ones. What is older than the longest token needs to be in neither.
    ``keys`` are the only ones with which users' tokens count; absent: the base policy's.
    """

    kind: Literal["overlay"] = "overlay"
    roles: Roles = Field(default_factory=dict)
    users: Annotated[dict[UserId, UserState], Field(max_length=MAX_USERS)] = Field(default_factory=dict)
    sessions: Annotated[list[SessionId], Field(max_length=MAX_SESSIONS)] = Field(default_factory=list)
    keys: Keys | None = None


class Change(_Document):
    """One step: what is new or different, and what is there no longer. ``keys``, if they are there, replace all."""

    kind: Literal["change"] = "change"
    roles: Roles = Field(default_factory=dict)
    roles_removed: Annotated[list[Role], Field(max_length=MAX_ROLES)] = Field(default_factory=list)
    users: Annotated[dict[UserId, UserState], Field(max_length=MAX_USERS)] = Field(default_factory=dict)
    users_removed: Annotated[list[UserId], Field(max_length=MAX_USERS)] = Field(default_factory=list)
    sessions: Annotated[list[SessionId], Field(max_length=MAX_SESSIONS)] = Field(default_factory=list)
    sessions_removed: Annotated[list[SessionId], Field(max_length=MAX_SESSIONS)] = Field(default_factory=list)
    keys: Keys | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        _apart("roles", self.roles, self.roles_removed)
        _apart("users", self.users, self.users_removed)
        _apart("sessions", self.sessions, self.sessions_removed)
        return self


class Heartbeat(_Document):
    """The overlay is still the one of this sequence."""

    kind: Literal["heartbeat"] = "heartbeat"


D = TypeVar("D", bound=_Document)


def parse(kind: type[D], content: bytes) -> D:
    """Read one of the stream's documents, as `policy.parse` does; raises `DocumentError`."""
    return policy.parse(kind, content, MAX_DOCUMENT)


@dataclasses.dataclass(frozen=True, slots=True)
class Overlay:
    """An overlay as it is in force. Never changed: a change makes another one."""

    sequence: int
    roles: Mapping[str, tuple[str, ...]]
    users: Mapping[str, UserState]
    sessions: frozenset[str]
    keys: tuple[Mapping[str, Any], ...] | None

    @classmethod
    def of(cls, document: OverlayDocument) -> Self:
        """The overlay that *document* describes."""
        return cls(
            document.sequence,
            _frozen(document.roles),
            document.users,
            frozenset(document.sessions),
            _keys(document.keys),
        )

    def after(self, change: Change) -> Self:
        """The overlay after *change*, which has to be the next one; raises `DocumentError` if it outgrows its bounds.

        What a change does not touch stays the same object, so that who compares it finds out at once.
        """
        roles, users = change.roles, change.users
        after = dataclasses.replace(
            self,
            sequence=change.sequence,
            roles=_merged(self.roles, _frozen(roles), change.roles_removed),
            users=_merged(self.users, users, change.users_removed),
            sessions=(self.sessions | set(change.sessions)) - set(change.sessions_removed),
            keys=self.keys if change.keys is None else _keys(change.keys),
        )
        for name, held, most in (
            ("roles", after.roles, MAX_ROLES),
            ("users", after.users, MAX_USERS),
            ("sessions", after.sessions, MAX_SESSIONS),
        ):
            if len(held) > most:
                raise DocumentError(f"{name}: more than {most} together with what is there")
        return after

    def roles_of(self, claims: UserClaims) -> tuple[str, ...]:
        """The roles that count for a verified token: its own, or those of a newer version of its user.

        Raises:
            Unauthenticated: its session was revoked, or its user disabled.
        """
        if claims.session_id is not None and claims.session_id in self.sessions:
            raise _revoked("the session was revoked")
        user = self.users.get(str(claims.id))
        if user is None:
            return claims.roles
        if user.disabled:
            raise _revoked("the user is disabled")
        # A token that does not say its version may be older than any change: it is taken for the oldest.
        return tuple(user.roles) if user.ver > (claims.version or 0) else claims.roles


def _revoked(reason: str) -> Unauthenticated:
    return Unauthenticated("The access token was revoked.", code="token_revoked", reason=reason)


V = TypeVar("V")


def _merged(before: Mapping[str, V], changed: Mapping[str, V], removed: Collection[str]) -> Mapping[str, V]:
    if not changed and not removed:
        return before
    after = {**before, **changed}
    for name in removed:
        after.pop(name, None)
    return after


def _frozen(roles: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    return {role: tuple(codes) for role, codes in roles.items()}


def _keys(keys: list[dict[str, Any]] | None) -> tuple[Mapping[str, Any], ...] | None:
    return None if keys is None else tuple(keys)


def _apart(field: str, changed: Iterable[str], removed: Iterable[str]) -> None:
    if both := sorted(set(changed).intersection(removed)):
        raise ValueError(f"{field}: {both[0]} is changed and removed at once")
