"""For whom the running code works, as logs and reports of errors tell it: which request, which user, which tenant.

One object for a request instead of structlog's variable for each name: a request binds three, which took longer than to
decide about it.
"""

from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, NamedTuple


class Asker(NamedTuple):
    """Whose request is being answered; ``user`` and ``tenant`` are known once the guard has let it in."""

    request_id: str
    user: object = None
    tenant: str | None = None


asker: ContextVar[Asker | None] = ContextVar("moorage_asker", default=None)
"""The request that the running code, and what it started, belongs to; ``None``: none."""


def log_fields(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For structlog: every line says which request and which user it is about."""
    who = asker.get()
    if who is not None:
        event.setdefault("request_id", who.request_id)
        if who.user is not None:
            event.setdefault("user_id", str(who.user))
        if who.tenant is not None:
            event.setdefault("tenant_id", who.tenant)
    return event
