"""Access tokens: made (ES256), checked strictly, and remembered once they were found good.

What is refused follows RFC 8725 and RFC 9068. Nothing that a token says is followed: all that may be fetched because
of one are the keys of its issuer, from where the policy says that they are, by who catches `UnknownKey` or `NoKeys`.
"""

import base64
import hashlib
import re
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeGuard
from uuid import UUID

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.api_jws import PyJWS

from moorage.errors import Unauthenticated, Unavailable
from moorage.guard.identity import Caller
from moorage.guard.policy import Issuer, KeySource, canonical_json, strict_json

MAX_TOKEN: Final = 8192
"""Characters. A service account's token has about 1,200, a user's with ten roles about 600."""
MAX_REMEMBERED: Final = 4096
LEEWAY: Final = 5
"""Seconds by which two clocks may differ."""
_MAX_ROLES: Final = 128
_MAX_CLAIM: Final = 320
"""Characters of a claim: the longest e-mail address."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +(\S+)")
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_REFUSED_HEADERS: Final = frozenset({"crit", "jku", "jwk", "x5u", "x5c", "b64", "zip", "enc", "cty"})
"""Names that make a verifier fetch, trust or decode something that the token itself brings."""
PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
"""Members of JWKs that only their owner may know (RFC 7518, 6.2.2, 6.3.2 and 6.4)."""
_MIN_RSA: Final = 2048
_MAX_TIME: Final = 253_402_300_800
"""The year 10000, in seconds since the epoch."""
_SERVICE_ACCOUNT = re.compile(
    r"system:serviceaccount:(?P<namespace>[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?):(?P<name>[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?)"
)


def new_es256_key() -> bytes:
    """Make a private key for ES256 (P-256), as unencrypted PKCS #8 PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_jwk(pem: bytes) -> dict[str, str]:
    """The public JWK of an ES256 key (private or public PEM), with its RFC 7638 thumbprint as ``kid``."""
    numbers = _public_key(pem).public_numbers()
    key = {
        "crv": "P-256",
        "kty": "EC",
        "x": _base64url(numbers.x.to_bytes(32, "big")),
        "y": _base64url(numbers.y.to_bytes(32, "big")),
    }
    thumbprint = _base64url(hashlib.sha256(canonical_json(key)).digest())
    return {**key, "alg": "ES256", "use": "sig", "kid": thumbprint}


def issue_user_token(
    pem: bytes,
    *,
    issuer: str,
    audience: str,
    user_id: UUID | str,
    email: str | None = None,
    roles: Sequence[str] = (),
    tenant_id: str | None = None,
    lifetime_s: int = 900,
    now: float | None = None,
) -> str:
    """Sign an access token for a user.

    Args:
        pem: the issuer's private ES256 key.
        user_id: the user's UUID.
        lifetime_s: seconds until it expires.
        now: seconds since the epoch; ``None``: the clock's.

    Raises:
        ValueError: *user_id* is no UUID, or *pem* no ES256 key.
    """
    issued = int(time.time() if now is None else now)
    claims: dict[str, object] = {
        "iss": issuer,
        "aud": audience,
        "sub": str(user_id if isinstance(user_id, UUID) else _uuid(user_id)),
        "sid": str(uuid.uuid4()),
        "jti": str(uuid.uuid4()),
        "ver": 1,
        "roles": list(roles),
        "iat": issued,
        "exp": issued + lifetime_s,
        "token_type": "access",
    }
    if email is not None:
        claims["email"] = email
    if tenant_id is not None:
        claims["tenant_id"] = tenant_id
    return _sign(claims, pem, "at+jwt")


def issue_module_token(
    pem: bytes,
    *,
    issuer: str,
    audience: str,
    namespace: str,
    module: str,
    lifetime_s: int = 3600,
    now: float | None = None,
) -> str:
    """Sign a token for a module, where no cluster gives it one for its service account.

    Args:
        pem: the issuer's private ES256 key.
        lifetime_s: seconds until it expires.
        now: seconds since the epoch; ``None``: the clock's.

    Raises:
        ValueError: *pem* is no ES256 key.
    """
    issued = int(time.time() if now is None else now)
    claims = {
        "iss": issuer,
        "aud": [audience],
        "sub": f"system:serviceaccount:{namespace}:{module}",
        "iat": issued,
        "exp": issued + lifetime_s,
    }
    return _sign(claims, pem, "JWT")


def _sign(claims: dict[str, object], pem: bytes, kind: str) -> str:
    return jwt.encode(claims, pem, algorithm="ES256", headers={"kid": public_jwk(pem)["kid"], "typ": kind})


class Wanted(NamedTuple):
    """A key that a token names and nobody knows here: its issuer may have published it since."""

    source: KeySource
    kid: str


class UnknownKey(Unauthenticated):
    """401: a token names a key that its issuer is not known to have. *wanted* ``None``: nobody can be asked for it."""

    code = "invalid_token"
    default_message = "The access token is not valid."

    def __init__(self, wanted: Wanted | None) -> None:
        super().__init__(reason="the token names no key that its issuer has")
        self.wanted = wanted


class NoKeys(Unavailable):
    """503: there is no key at all to check the token with; *wanted* as in `UnknownKey`."""

    code = "no_keys"
    default_message = "The service has no keys to check tokens with."

    def __init__(self, wanted: Wanted | None = None) -> None:
        super().__init__(retry_after=5)
        self.wanted = wanted


@dataclass(frozen=True, slots=True)
class UserClaims:
    """What a user's access token says, once it is verified."""

    id: UUID
    email: str | None
    roles: tuple[str, ...]
    tenant_id: str | None
    session_id: str | None
    version: int | None


@dataclass(frozen=True, slots=True)
class ModuleClaims:
    """What a service account's token says, once it is verified: the module is named like its service account."""

    namespace: str
    name: str


class Verified:
    """A token that was found good, and until when it stays so; ``caller`` is a slot for the engine's own
    result, ``basis`` what it was found good by.
    """

    __slots__ = ("basis", "caller", "claims", "expires", "issuer", "key_id", "not_before")

    def __init__(
        self,
        claims: UserClaims | ModuleClaims,
        *,
        issuer: str,
        key_id: str,
        not_before: float,
        expires: float,
        basis: "_Basis",
    ) -> None:
        self.basis = basis
        self.claims = claims
        self.issuer = issuer
        self.key_id = key_id
        self.not_before = not_before
        self.expires = expires
        self.caller: tuple[object, Caller] | None = None


_Basis = tuple[Issuer, Mapping[str, Any]]
"""An issuer without its keys, and one of them."""


class TokenVerifier:
    """Checks tokens against one set of issuers and their keys; made anew when that set changes.

    Raises:
        ValueError: a key that cannot verify the issuer's algorithms (at construction).
    """

    def __init__(self, issuers: Sequence[Issuer], *, remember: int = MAX_REMEMBERED) -> None:
        self.issuers = list(issuers)
        self._issuers = {issuer.issuer: _Issuer(issuer) for issuer in issuers}
        self._remember = remember
        self._known: dict[str, Verified] = {}
        self.has_keys = any(issuer.keys for issuer in self._issuers.values())

    @classmethod
    def following(cls, issuers: Sequence[Issuer], before: "TokenVerifier | None") -> "TokenVerifier":
        """One for *issuers* that remembers of *before* whatever those still stand for; raises `ValueError`."""
        if before is None:
            return cls(issuers)
        if before.issuers == list(issuers):
            return before
        verifier = cls(issuers, remember=before._remember)
        # Many tokens share a basis: each is compared once.
        good: dict[int, bool] = {}
        for text, verified in before._known.items():
            mark = id(verified.basis)
            if mark not in good:
                good[mark] = verifier.stands_for(verified)
            if good[mark]:
                verifier._known[text] = verified
        return verifier

    def kids(self, issuer: str) -> Collection[str]:
        """The names of the keys by which tokens of *issuer* count."""
        known = self._issuers.get(issuer)
        return () if known is None else known.keys.keys()

    def stands_for(self, verified: Verified) -> bool:
        """Whether the issuer and the key by which *verified* was found good are still what they were."""
        issuer = self._issuers.get(verified.issuer)
        return issuer is not None and issuer.bases.get(verified.key_id) == verified.basis

    def verify_header(self, authorization: str, now: float) -> Verified:
        """Check an ``Authorization`` header's value; *now* in seconds since the epoch. Raises what `verify` does."""
        known = self._known.get(authorization)
        if known is None:
            match = _BEARER.fullmatch(authorization)
            if match is None:
                raise _invalid("the Authorization header is not of the form `Bearer <token>`")
            # One token takes one place, however the field is spelled: else the holder of one could fill them all.
            authorization = f"Bearer {match[1]}"
            known = self._known.get(authorization)
        if known is not None:
            if known.not_before <= now < known.expires:
                return known
            del self._known[authorization]
        verified = self.verify(authorization.removeprefix("Bearer "), now)
        if len(self._known) >= self._remember:
            # The oldest goes: access tokens live 15 minutes, so the oldest is also the first to expire.
            del self._known[next(iter(self._known))]
        self._known[authorization] = verified
        return verified

    def knows(self, authorization: str) -> bool:
        """Whether this header's value was found good before, so that checking it again costs next to nothing."""
        return authorization in self._known

    def verify(self, token: str, now: float) -> Verified:
        """Check *token* from scratch.

        Raises:
            Unauthenticated: it does not count; ``reason`` (for logs) says what was wrong.
            UnknownKey: one of these, which another key set may change.
            NoKeys: its issuer publishes keys, and none was fetched yet.
        """
        if len(token) > MAX_TOKEN:
            raise _invalid(f"the token has {len(token)} characters, more than {MAX_TOKEN}")
        if _TOKEN.fullmatch(token) is None:
            raise _invalid("the token is not a signed JWT in compact form")
        head, body, _ = token.split(".")
        header = _part(head, "header")
        issuer, claims = self._issuer(_part(body, "payload"))
        key_id, key = issuer.key_for(header)
        try:
            # The key is bound to its algorithm; the header was checked to name the same one.
            issuer.jws.decode_complete(token, key, algorithms=[key.algorithm_name])
        except (jwt.PyJWTError, ValueError) as exc:
            raise _invalid(f"the signature does not hold: {exc}") from None
        return issuer.judge(claims, key_id, now)

    def _issuer(self, claims: dict[str, Any]) -> tuple["_Issuer", dict[str, Any]]:
        name = claims.get("iss")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise _invalid("the token's issuer is not one that this policy names")
        return issuer, claims


class _Issuer:
    """One issuer with its keys made ready."""

    def __init__(self, issuer: Issuer) -> None:
        self.name = issuer.issuer
        self.audiences = frozenset(issuer.audiences)
        self.algorithms = frozenset(issuer.algorithms)
        self.subject: Literal["user", "module"] = issuer.subject
        self.source = issuer.source
        self.jws = PyJWS(algorithms=list(issuer.algorithms))
        self.keys: dict[str, jwt.PyJWK] = {}
        self.bases: dict[str, _Basis] = {}
        # Where a key came from is no part of what a token was found good by: the same key may come by another way.
        terms = issuer.model_copy(update={"keys": [], "jwks_uri": None})
        for jwk in issuer.keys:
            kid, key = verification_key(jwk, self.algorithms)
            if kid in self.keys:
                raise ValueError(f"issuer {self.name}: two keys have the kid {kid}")
            self.keys[kid] = key
            self.bases[kid] = (terms, jwk)

    def key_for(self, header: Mapping[str, Any]) -> tuple[str, jwt.PyJWK]:
        refused = _REFUSED_HEADERS.intersection(header)
        if refused:
            raise _invalid(f"the token's header carries {', '.join(sorted(refused))}")
        kind = header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise _invalid("the token's typ is not that of an access token")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self.algorithms:
            raise _invalid("the token's algorithm is not one that its issuer may use")
        kid = header.get("kid")
        if not isinstance(kid, str):
            raise _invalid("the token names no key")
        key = self.keys.get(kid)
        if key is None:
            raise self._missing(kid)
        if key.algorithm_name != algorithm:
            raise _invalid("the token's algorithm is not that of the key it names")
        return kid, key

    def _missing(self, kid: str) -> UnknownKey | NoKeys:
        wanted = Wanted(self.source, kid) if self.source is not None else None
        return UnknownKey(wanted) if wanted is None or self.keys else NoKeys(wanted)

    def judge(self, claims: Mapping[str, Any], key_id: str, now: float) -> Verified:
        """Check the claims of a token whose signature holds."""
        expires, not_before = self._times(claims, now)
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        if not all(isinstance(name, str) for name in named) or self.audiences.isdisjoint(named):
            raise _invalid("the token is meant for another audience")
        parsed = _user_claims(claims) if self.subject == "user" else _module_claims(claims)
        return Verified(
            parsed,
            issuer=self.name,
            key_id=key_id,
            not_before=not_before,
            expires=expires,
            basis=self.bases[key_id],
        )

    @staticmethod
    def _times(claims: Mapping[str, Any], now: float) -> tuple[float, float]:
        exp, iat, nbf = claims.get("exp"), claims.get("iat"), claims.get("nbf")
        nbf = iat if nbf is None else nbf
        if not (_is_number(exp) and _is_number(iat) and _is_number(nbf)):
            raise _invalid("exp, iat or nbf is missing or not a number")
        expires = float(exp) + LEEWAY
        not_before = max(float(iat), float(nbf)) - LEEWAY
        if not now < expires:  # so that a clock that is no number lets nobody in
            raise Unauthenticated(
                "The access token has expired.", code="token_expired", reason="the token has expired"
            )
        if not now >= not_before:
            raise _invalid("the token is not valid yet")
        return expires, not_before


def _user_claims(claims: Mapping[str, Any]) -> UserClaims:
    if claims.get("token_type") != "access":
        raise _invalid("token_type is not access")
    roles = claims.get("roles", [])
    if not isinstance(roles, list) or len(roles) > _MAX_ROLES or not all(map(_is_text, roles)):
        raise _invalid("roles is not a list of role names")
    version = claims.get("ver")
    if version is not None and type(version) is not int:
        raise _invalid("ver is not a whole number")
    subject = claims.get("sub")
    try:
        user_id = _uuid(subject) if isinstance(subject, str) else None
    except ValueError:
        user_id = None
    if user_id is None:
        raise _invalid("sub is not a user's UUID")
    return UserClaims(
        id=user_id,
        email=_text(claims, "email"),
        roles=tuple(roles),
        tenant_id=_text(claims, "tenant_id"),
        session_id=_text(claims, "sid"),
        version=version,
    )


def _module_claims(claims: Mapping[str, Any]) -> ModuleClaims:
    subject = claims.get("sub")
    match = _SERVICE_ACCOUNT.fullmatch(subject) if isinstance(subject, str) else None
    if match is None:
        raise _invalid("sub is not a service account")
    return ModuleClaims(namespace=match["namespace"], name=match["name"])


def verification_key(jwk: Mapping[str, Any], algorithms: frozenset[str]) -> tuple[str, jwt.PyJWK]:
    """The ``kid`` of a public JWK and the key, made ready; raises `ValueError` if no token of an issuer with these
    *algorithms* can be checked with it.
    """
    kid = jwk.get("kid")
    if not isinstance(kid, str) or not kid:
        raise ValueError("a key has no kid")
    if PRIVATE_MEMBERS.intersection(jwk) or jwk.get("kty") == "oct":
        raise ValueError(f"key {kid} holds a secret: only public keys belong into a policy")
    if jwk.get("use", "sig") != "sig":
        raise ValueError(f"key {kid} is not for signatures")
    algorithm = jwk.get("alg") or {"EC": "ES256", "RSA": "RS256"}.get(str(jwk.get("kty")))
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise ValueError(f"key {kid}: its algorithm {algorithm} is not one that its issuer may use")
    try:
        key = jwt.PyJWK(dict(jwk), algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as exc:
        raise ValueError(f"key {kid} is not a usable JWK") from exc
    public = key.key
    right_curve = isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1)
    right_size = isinstance(public, rsa.RSAPublicKey) and public.key_size >= _MIN_RSA
    if not (right_curve if algorithm == "ES256" else right_size):
        raise ValueError(f"key {kid} is not a P-256 key or an RSA key of at least {_MIN_RSA} bits")
    return kid, key


def _part(segment: str, name: str) -> dict[str, Any]:
    try:
        value = strict_json(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except (ValueError, RecursionError) as exc:
        raise _invalid(f"the token's {name} is not strict JSON: {exc}") from None
    if not isinstance(value, dict):
        raise _invalid(f"the token's {name} is not an object")
    return value


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is None:
        return None
    if not _is_text(value):
        raise _invalid(f"{name} is not a text of one line")
    return value


def _is_text(value: object) -> TypeGuard[str]:
    """Whether *value* can go into headers and logs: one printable line, no control characters or surrogates."""
    return isinstance(value, str) and 0 < len(value) <= _MAX_CLAIM and value.isprintable()


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_TIME


def _uuid(text: str) -> UUID:
    """Read a UUID in its canonical form only: other spellings of one user would be other users to a cache or
    log.
    """
    try:
        value = UUID(text)
    except ValueError:
        value = None
    if value is None or str(value) != text:
        raise ValueError(f"{text!r} is not a UUID of the form 3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11")
    return value


def _public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    key = (
        serialization.load_pem_private_key(pem, None).public_key()
        if b"PRIVATE KEY" in pem
        else serialization.load_pem_public_key(pem)
    )
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the token key is not an ES256 (P-256) key")
    return key


def _invalid(reason: str) -> Unauthenticated:
    return Unauthenticated("The access token is not valid.", code="invalid_token", reason=reason)


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
