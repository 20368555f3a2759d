"""How the overlay's documents are signed and by whose leave: a chain of two Ed25519 signatures.

The policy signing key, whose public half is every guard's trust anchor, stays with the operator. The authz service
signs with a key of its own, for which the operator has issued a *certificate*: a small statement that this key may
sign overlays, until when, signed like a base policy. No X.509: there is one issuer, one purpose and one reader, and
what a parser of X.509 would have to refuse is not expressible here.

A sealed document is four lines, the data of one event of the stream: the document, its signature, the certificate,
the certificate's signature. So each message can be judged by itself, and a new key needs no new connection.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moorage.guard.policy import Name, canonical_json, strict_json
from moorage.guard.signing import SignatureError, public_pem, sign, verify

MAX_CERTIFICATE: Final = 2048
"""Bytes."""
_MAX_SIGNATURE: Final = 128
_REMEMBERED: Final = 8


elapsed: Final[Callable[[], float]] = (
    # Linux' monotonic clock stands while the machine sleeps, in which much may be revoked.
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""Seconds that only rise, whatever is done to the clock on the wall."""


class OverlayKey(BaseModel):
    """What a certificate says: this key may sign overlays.

    ``namespace`` is where the service that holds it runs: the core namespace. ``not_after`` in seconds since the epoch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    v: Literal[1] = 1
    kind: Literal["overlay-key"] = "overlay-key"
    namespace: Name
    public_key: Annotated[str, Field(max_length=512, description="PEM")]
    not_after: Annotated[int, Field(gt=0, le=2**53)]


@dataclass(frozen=True, slots=True)
class Certificate:
    """An `OverlayKey` in its canonical form, and its signature under the trust anchor."""

    content: bytes
    signature: bytes


def certify(public_key: bytes, policy_key: bytes, *, namespace: str, not_after: int) -> Certificate:
    """Let *public_key* (PEM) sign overlays: for who holds *policy_key*, the policy signing key (PEM).

    Args:
        namespace: where the service that signs runs, the core namespace.
        not_after: seconds since the epoch.
    """
    statement = OverlayKey(namespace=namespace, public_key=public_key.decode(), not_after=not_after)
    content = canonical_json(statement.model_dump(mode="json"))
    return Certificate(content, sign(content, policy_key))


def seal(document: bytes, key: bytes, certificate: Certificate) -> str:
    """*document* signed with *key* (PEM), as an event's data.

    Raises:
        SignatureError: *key* is none.
        ValueError: the document or certificate is not one line of UTF-8.
    """
    lines = [document, sign(document, key).strip(), certificate.content, certificate.signature.strip()]
    if any(end in line for line in lines for end in (b"\n", b"\r")):
        raise ValueError("a sealed document is one line: canonical JSON")
    return b"\n".join(lines).decode()


def certified(key: bytes, policy_key: bytes, *, namespace: str, not_after: int) -> Certificate:
    """`certify` the public half of the private *key*."""
    return certify(public_pem(key), policy_key, namespace=namespace, not_after=not_after)


class Seals:
    """Opens sealed documents; remembers which certificates were found good.

    Args:
        trust: the trust anchor in force (PEM); ``None``: there is none yet.
        namespace: the core namespace, for which certificates have to be.
        clock: seconds since the epoch, asked once for each certificate: when it expires is then counted by *rising*,
            so that a clock that is set meanwhile neither lengthens its life nor ends it.
    """

    def __init__(
        self,
        trust: Callable[[], bytes | None],
        *,
        namespace: str,
        clock: Callable[[], float] = time.time,
        rising: Callable[[], float] = elapsed,
    ) -> None:
        self._trust = trust
        self._namespace = namespace
        self._clock = clock
        self._rising = rising
        self._known: dict[tuple[bytes, bytes, bytes], tuple[bytes, float]] = {}

    def open(self, data: str) -> bytes:
        """The document in *data*, whose whole chain of signatures holds; raises `SignatureError`."""
        lines = data.encode().split(b"\n")
        if len(lines) != 4:
            raise SignatureError(f"a sealed document has 4 lines, not {len(lines)}")
        document, signature, certificate, issued = lines
        if max(len(signature), len(issued)) > _MAX_SIGNATURE:
            raise SignatureError("a signature is too long")
        key = self._key(certificate, issued)
        verify(
            document, signature, key, signature_name="the signature", name="it", trust_name="its certificate"
        )
        return document

    def _key(self, content: bytes, signature: bytes) -> bytes:
        """The public key (PEM) that a certificate vouches for."""
        trust = self._trust()
        if trust is None:
            raise SignatureError("there is no trust anchor before the first good base policy")
        mark = (content, signature, trust)
        if mark not in self._known:
            found = self._checked(content, signature, trust)
            if len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[mark] = found
        key, until = self._known[mark]
        if self._rising() >= until:
            raise SignatureError("the certificate of the overlay's key has expired")
        return key

    def _checked(self, content: bytes, signature: bytes, trust: bytes) -> tuple[bytes, float]:
        if len(content) > MAX_CERTIFICATE:
            raise SignatureError(f"the certificate has more than {MAX_CERTIFICATE} bytes")
        verify(content, signature, trust, signature_name="the certificate's signature", name="it")
        try:
            statement = OverlayKey.model_validate(strict_json(content))
        except (ValidationError, ValueError, RecursionError):
            raise SignatureError("what was signed is no certificate of an overlay's key") from None
        if statement.namespace != self._namespace:
            raise SignatureError(
                f"the certificate is for a service in {statement.namespace}, not in {self._namespace}"
            )
        return statement.public_key.encode(), self._rising() + (statement.not_after - self._clock())
