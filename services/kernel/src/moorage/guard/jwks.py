"""Reads a JWK set (RFC 7517, 5) as an issuer publishes it: which of its keys count, or why none of it does. No I/O.

- A key **counts** if it is for signatures, by one of the issuer's algorithms: P-256, or RSA of at least 2048 bits.
- A key for anything else is **skipped**, as the RFC says: another ``kty``, ``alg``, curve, size, ``use`` or
  ``key_ops``, or a point that is not on its curve.
- The **whole set** is refused for what its publisher must not do, or cannot have meant: a private member, in any key; a
  key that would count without a ``kid`` or with that of another; too many bytes or keys; JSON that two readers could
  read differently; not one key that counts.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from moorage.guard.policy import strict_json
from moorage.guard.tokens import PRIVATE_MEMBERS, verification_key

MAX_BYTES: Final = 64 * 1024
MAX_KEYS: Final = 32
_MAX_KID: Final = 512
_MEMBERS: Final[tuple[str, ...]] = ("alg", "crv", "e", "kid", "kty", "n", "use", "x", "y")
"""What is kept of a key: a certificate beside it, say, is neither looked at nor remembered."""

KeySet = tuple[Mapping[str, Any], ...]
"""Public JWKs in the order of their ``kid``, so that equal sets are equal."""


class KeySetError(ValueError):
    """A set that cannot be used; the text says why and holds nothing of the set but names of keys and members."""


def read_keys(content: bytes, algorithms: Collection[str]) -> KeySet:
    """The keys in *content* by which tokens signed with *algorithms* can be checked: at least one.

    Raises:
        KeySetError
    """
    found: dict[str, Mapping[str, Any]] = {}
    for jwk in _listed(content):
        if secrets := PRIVATE_MEMBERS.intersection(jwk):
            raise KeySetError(f"a key has the private member {min(secrets)}")
        key: dict[str, Any] = {name: jwk[name] for name in _MEMBERS if name in jwk}
        if not _is_usable(jwk, key, frozenset(algorithms)):
            continue
        kid = _kid(jwk)
        if kid in found:
            raise KeySetError(f"two keys have the kid {kid!r}")
        found[kid] = key
    if not found:
        raise KeySetError(f"it has no key for {' or '.join(sorted(algorithms))}")
    return tuple(found[kid] for kid in sorted(found))


def _listed(content: bytes) -> list[dict[str, Any]]:
    if len(content) > MAX_BYTES:
        raise KeySetError(f"it has more than {MAX_BYTES} bytes")
    try:
        document = strict_json(content)
    except (ValueError, RecursionError) as exc:
        raise KeySetError(f"it is not strict JSON: {type(exc).__name__}") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise KeySetError("it is not an object with a list of keys")
    if len(keys) > MAX_KEYS:
        raise KeySetError(f"it has {len(keys)} keys, more than {MAX_KEYS}")
    return keys


def _is_usable(jwk: Mapping[str, Any], key: Mapping[str, Any], algorithms: frozenset[str]) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return False
    try:
        # By any name: whether it has one of its own is looked at only if it would count.
        verification_key({**key, "kid": "-"}, algorithms)
    except ValueError:
        return False
    return True


def _kid(jwk: Mapping[str, Any]) -> str:
    kid = jwk.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= _MAX_KID or not kid.isprintable():
        raise KeySetError(f"a key has no kid of 1 to {_MAX_KID} printable characters")
    return kid
