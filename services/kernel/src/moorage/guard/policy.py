"""The base policy document: what the operator signs and every guard enforces.

One document per (namespace, module), as canonical JSON with a rising ``sequence``. The operator makes it from
Routes and Permissions; guards read it from the mounted policy folder together with its Ed25519 signature and
the trust anchor.
"""

import ipaddress
import json
import re
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from moorage.guard.cors import Cors
from moorage.guard.limits.document import Limits
from moorage.guard.transforms import RequestTransform, ResponseTransform

BASE_FILE: Final = "base.json"
SIGNATURE_FILE: Final = "base.sig"
TRUST_FILE: Final = "trust.pem"

MAX_DOCUMENT: Final = 900 * 1024
"""Bytes. A ConfigMap holds 1 MiB, with the signature and the trust anchor beside the document."""
MAX_CONDITION: Final = 2048
"""Characters of a condition, as in the Permission resource."""

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
Name = Annotated[str, Field(pattern=rf"^{_LABEL}$", max_length=63)]
Host = Annotated[str, Field(pattern=rf"^(\*\.)?{_LABEL}(\.{_LABEL})*$", max_length=253)]
Method = Annotated[str, Field(pattern=r"^[A-Z]+(-[A-Z]+)*$", max_length=32)]
Path = Annotated[str, Field(pattern=r"^/[!-~]*$", max_length=1024)]
Code = Annotated[str, Field(pattern=r"^[a-z0-9.-]+$", max_length=253)]
Grant = Annotated[str, Field(pattern=r"^[a-z0-9.-]+(\.\*)?$", max_length=253)]
"""A code, or all known codes of the module that begin with what stands before ``.*``."""
Role = Annotated[str, Field(min_length=1, max_length=128)]
ModuleKey = Annotated[str, Field(pattern=rf"^{_LABEL}/{_LABEL}$", max_length=128)]


_KEY_ADDRESS = re.compile(
    # One way to read it: no user, no fragment, no backslash, nothing that two parsers could take differently.
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9.-]*[a-z0-9])?)(:(?P<port>[0-9]{1,5}))?"
    r"(/[A-Za-z0-9._~%!$&'()*+,;=:@/-]*)?(\?[A-Za-z0-9._~%!$&'()*+,;=:@/?-]*)?"
)
_SERVICE = re.compile(rf"{_LABEL}\.{_LABEL}\.svc(\.cluster\.local)?")


def _checked_key_address(address: str) -> str:
    """*address*, if keys may be fetched from it; raises `ValueError`."""
    match = _KEY_ADDRESS.fullmatch(address)
    if match is None or int(match["port"] or 0) > 65535:
        raise ValueError(
            "is not of the form https://host[:port]/path in lower case, without user and fragment"
        )
    if match["scheme"] == "http" and not _is_near(match["host"]):
        raise ValueError(
            "http is for loopback and Services (name.namespace.svc) alone: who is on the way could give his own keys"
        )
    return address


def _is_near(host: str) -> bool:
    """Whether *host* is this machine, or a Service of the cluster by its DNS name."""
    if host == "localhost" or _SERVICE.fullmatch(host):
        return True
    try:
        address = ipaddress.IPv6Address(host[1:-1]) if host[0] == "[" else ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return address.is_loopback


KeyAddress = Annotated[str, Field(max_length=1024), AfterValidator(_checked_key_address)]
"""Where an issuer publishes its keys: https, or http on loopback or to a Service of the cluster."""


M = TypeVar("M", bound=BaseModel)


class DocumentError(ValueError):
    """A document that no guard may use; the text names the field."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class KeySource(NamedTuple):
    """Where an issuer's keys are fetched, and which of them can be used; another of these is another source."""

    issuer: str
    address: str
    algorithms: tuple[str, ...]


class Issuer(_Part):
    """Whose tokens count, for which audiences, signed how. ``keys`` are public JWKs (RFC 7517).

    ``jwks_uri`` names further keys: those that the issuer publishes there. Absent: there are none.
    """

    issuer: Annotated[str, Field(min_length=1, max_length=512)]
    audiences: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=512)]], Field(min_length=1, max_length=16)
    ]
    algorithms: Annotated[list[Literal["ES256", "RS256"]], Field(min_length=1, max_length=2)]
    keys: Annotated[list[dict[str, Any]], Field(max_length=32)]
    subject: Literal["user", "module"]
    jwks_uri: KeyAddress | None = None

    @property
    def source(self) -> KeySource | None:
        """Where its further keys are; ``None``: nowhere."""
        if self.jwks_uri is None:
            return None
        return KeySource(self.issuer, self.jwks_uri, tuple(sorted(self.algorithms)))


class Rule(_Part):
    """One shape of request. ``path`` is absolute (the Route's prefix is in it); ``methods`` empty: all."""

    name: Name
    hosts: Annotated[list[Host], Field(max_length=64)] = Field(default_factory=list)
    methods: Annotated[list[Method], Field(max_length=16)] = Field(default_factory=list)
    path: Path
    auth: Literal["required", "optional", "none"] = "required"
    permission: Code | None = None
    limits: Limits | None = None
    timeout_ms: Annotated[int, Field(gt=0)] | None = None
    max_body: Annotated[int, Field(ge=0, description="bytes")] | None = None
    cors: Cors | None = None
    request: RequestTransform | None = None
    response: ResponseTransform | None = None
    rewrite: Path | None = None
    audit: Literal["failures", "all"] | None = None
    """Which requests are recorded. None of them is not said: guards older than the field take the document then."""

    @model_validator(mode="after")
    def _permission_needs_a_caller(self) -> Self:
        if self.permission is not None and self.auth != "required":
            raise ValueError(f"rule {self.name}: a permission needs auth: required, not {self.auth}")
        return self


class PermissionPolicy(_Part):
    """The condition of one permission code; ``None``: none."""

    condition: Annotated[str, Field(min_length=1, max_length=MAX_CONDITION)] | None = None


class BaseDocument(_Part):
    """Everything a guard needs to decide without a network call, but for what changes by the minute."""

    v: Literal[1] = 1
    kind: Literal["base"] = "base"
    namespace: Name
    module: Name
    sequence: Annotated[int, Field(ge=0, le=2**53)]
    issued_at: Annotated[str, Field(max_length=64)]
    replicas: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """How many processes enforce it, where there are several: limits are divided by it while these cannot count
    together.
    """
    issuers: Annotated[list[Issuer], Field(max_length=16)] = Field(default_factory=list)
    rules: Annotated[list[Rule], Field(max_length=4096)] = Field(default_factory=list)
    permissions: Annotated[dict[Code, PermissionPolicy], Field(max_length=4096)] = Field(default_factory=dict)
    grants: Annotated[dict[Role, list[Grant]], Field(max_length=4096)] = Field(default_factory=dict)
    module_grants: Annotated[dict[ModuleKey, list[Grant]], Field(max_length=4096)] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        _unique("rules", [rule.name for rule in self.rules])
        _unique("issuers", [issuer.issuer for issuer in self.issuers])
        return self

    def canonical(self) -> bytes:
        """The document's one byte form: sorted keys, no spaces, UTF-8, absent fields left out."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))


def canonical_json(value: object) -> bytes:
    """Encode *value* so that equal values give equal bytes (after RFC 8785, without floats)."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def parse_document(content: bytes) -> BaseDocument:
    """Read a base document, as `parse` does; raises `DocumentError`."""
    return parse(BaseDocument, content, MAX_DOCUMENT)


def parse(kind: type[M], content: bytes, most: int) -> M:
    """Read a document strictly: bounded, UTF-8, no duplicate keys, no unknown fields; raises `DocumentError`.

    Args:
        most: bytes.
    """
    if len(content) > most:
        raise DocumentError(f"the document has {len(content)} bytes, more than {most}")
    try:
        return kind.model_validate(strict_json(content))
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "document"
        raise DocumentError(f"{field}: {first['msg']} ({exc.error_count()} problem(s) in all)") from None
    except (ValueError, RecursionError) as exc:
        raise DocumentError(f"the document is not JSON that can be trusted: {exc}") from None


def strict_json(content: bytes) -> object:
    """Decode JSON that means the same to every reader: a repeated key, NaN or infinity is a `ValueError`.

    Parsers disagree on which of two equal keys wins, and that is a way around a check (RFC 8725, 2.6 and
    3.10).
    """
    return _decoder.decode(content.decode("utf-8"))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _unique(field: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{field}: {', '.join(twice)} appears twice")
