"""The base policy document: what the operator signs and every guard enforces.

One document per (namespace, module), as canonical JSON with a rising ``sequence``. The operator makes it from Routes
and Permissions; guards read it from the mounted policy folder together with its Ed25519 signature and the trust anchor.
"""

import json
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

BASE_FILE: Final = "base.json"
SIGNATURE_FILE: Final = "base.sig"
TRUST_FILE: Final = "trust.pem"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Issuer(_Part):
    """Whose tokens count, for which audiences, signed how. ``keys`` are public JWKs (RFC 7517)."""

    issuer: str
    audiences: list[str]
    algorithms: list[Literal["ES256", "RS256"]]
    keys: list[dict[str, Any]]
    subject: Literal["user", "module"]


class Rule(_Part):
    """One shape of request. ``path`` is absolute (the Route's prefix is in it); ``methods`` empty: all."""

    name: str
    hosts: list[str] = Field(default_factory=list)
    methods: list[str] = Field(default_factory=list)
    path: str
    auth: Literal["required", "optional", "none"] = "required"
    permission: str | None = None
    timeout_ms: Annotated[int, Field(gt=0)] | None = None
    max_body: Annotated[int, Field(ge=0, description="bytes")] | None = None


class PermissionPolicy(_Part):
    """The condition of one permission code; ``None``: none."""

    condition: str | None = None


class BaseDocument(_Part):
    """Everything a guard needs to decide without a network call, but for what changes by the minute."""

    v: Literal[1] = 1
    kind: Literal["base"] = "base"
    namespace: str
    module: str
    sequence: Annotated[int, Field(ge=0)]
    issued_at: str
    issuers: list[Issuer] = Field(default_factory=list)
    rules: list[Rule] = Field(default_factory=list)
    permissions: dict[str, PermissionPolicy] = Field(default_factory=dict)
    grants: dict[str, list[str]] = Field(default_factory=dict)
    module_grants: dict[str, list[str]] = Field(default_factory=dict)

    def canonical(self) -> bytes:
        """The document's one byte form: sorted keys, no spaces, UTF-8, absent fields left out."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))


def canonical_json(value: object) -> bytes:
    """Encode *value* so that equal values give equal bytes (after RFC 8785, without floats)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
