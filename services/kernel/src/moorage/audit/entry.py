"""One line of the audit record, with the fields that the audit service takes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Entry:
    """One request that met a rule with `audit`. Every text is bounded, and one line without control characters.

    ``id`` is made once: a trail that is given the same entry twice keeps it once, or keeps two lines that say so.
    ``user_id`` and ``resource_id`` are empty where there is none.
    """

    id: UUID
    timestamp: str
    """When it was answered: RFC 3339, UTC, microseconds."""
    user_id: str
    action: str
    """The permission's code, else ``<module>.<rule>``."""
    resource: str
    """``namespace/module`` with the rule's path, such as ``default/blog/posts/{id}``."""
    resource_id: str
    """The last segment that the path captured."""
    ip_address: str
    user_agent: str
    request_id: str
    metadata: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": str(self.id),
            "timestamp": self.timestamp,
            "user_id": self.user_id,
            "action": self.action,
            "resource": self.resource,
            "resource_id": self.resource_id,
            "ip_address": self.ip_address,
            "user_agent": self.user_agent,
            "request_id": self.request_id,
            "metadata": dict(self.metadata),
        }

    def encode(self) -> bytes:
        """The entry as JSON in ASCII, on one line without its end."""
        return json.dumps(self.as_dict(), separators=(",", ":")).encode("ascii")
