"""Tokens to attack with: two issuers, their keys, and what takes their tokens.

What is signed is exactly what the test says, as no library would do it.
"""

import base64
import json
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from moorage.errors import Unauthenticated
from moorage.guard import tokens
from moorage.guard.decision import receive
from moorage.guard.engine import Guard
from moorage.guard.identity import ModuleCaller, User
from moorage.guard.policy import BaseDocument, Issuer, Rule
from moorage.guard.tokens import TokenVerifier

Json = dict[str, Any]
NOW = 1_800_000_000
USERS, CLUSTER = "https://moorage.test", "https://cluster.test"
ADA = "3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11"
KINDS = ["user", "module-es", "module-rs"]

attacks = settings(max_examples=200, deadline=None, print_blob=True)
kinds = st.sampled_from(KINDS)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass
class Signer:
    """A private key with what its tokens say."""

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    jwk: Json
    header: Json
    claims: Json

    def signature(self, text: str) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        r, s = decode_dss_signature(self.key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def sign(self, header: bytes | Json | None = None, payload: bytes | Json | None = None) -> str:
        """A token whose signature holds, of exactly these bytes or of JSON."""
        parts = [self.header if header is None else header, self.claims if payload is None else payload]
        raw = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts]
        text = ".".join(map(b64, raw))
        return f"{text}.{b64(self.signature(text))}"

    def public(self, encoding: serialization.Encoding, form: serialization.PublicFormat) -> bytes:
        return self.key.public_key().public_bytes(encoding, form)


class World:
    """Two issuers (users with ES256; modules with both algorithms), their tokens, and what takes them."""

    def __init__(self) -> None:
        es, rs = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
        user_key = ec.generate_private_key(ec.SECP256R1())
        user = {
            "iss": USERS,
            "aud": "test",
            "sub": ADA,
            "sid": "s-1",
            "token_type": "access",
            "roles": ["author"],
        }
        module = {"iss": CLUSTER, "aud": ["moorage"], "sub": "system:serviceaccount:default:shop"}
        times = {"iat": NOW, "nbf": NOW, "exp": NOW + 900}
        self.signers = {
            "user": _signer(user_key, "ES256", "at+jwt", user | times),
            "module-es": _signer(es, "ES256", "JWT", module | times),
            "module-rs": _signer(rs, "RS256", "JWT", module | times),
        }
        keys = {kind: signer.jwk for kind, signer in self.signers.items()}
        self.document = BaseDocument(
            namespace="default",
            module="blog",
            sequence=1,
            issued_at="",
            issuers=[
                Issuer(
                    issuer=USERS,
                    audiences=["test"],
                    algorithms=["ES256"],
                    keys=[keys["user"]],
                    subject="user",
                ),
                Issuer(
                    issuer=CLUSTER,
                    audiences=["moorage"],
                    algorithms=["ES256", "RS256"],
                    keys=[keys["module-es"], keys["module-rs"]],
                    subject="module",
                ),
            ],
            rules=[
                Rule(name="required", path="/required"),
                Rule(name="optional", path="/optional", auth="optional"),
                Rule(name="public", path="/public", auth="none"),
            ],
        )
        self.guard = Guard.from_document(self.document, clock=lambda: NOW)
        self.guard.bind_proxy()
        self.verifier = TokenVerifier(self.document.issuers)

    def caller(self, token: str, target: str = "/required") -> User | ModuleCaller | None:
        headers = CIMultiDict({"Host": "blog.test", "Authorization": f"Bearer {token}"})
        return self.guard.decide(receive("GET", target, headers, peer="192.0.2.1")).caller

    def refuses(self, token: str) -> None:
        """Assert that *token* is 401 wherever a token counts, never anything else, and is not remembered."""
        with pytest.raises(Unauthenticated) as caught:
            self.verifier.verify_header(f"Bearer {token}", NOW)
        assert caught.value.code in ("invalid_token", "token_expired")
        assert caught.value.message in ("The access token is not valid.", "The access token has expired.")
        for target in ("/required", "/optional"):
            with pytest.raises(Unauthenticated):
                self.caller(token, target)
        assert self.caller(token, "/public") is None
        assert f"Bearer {token}" not in self.verifier._known


def _signer(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, algorithm: str, kind: str, claims: Json
) -> Signer:
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        jwk = {"kty": "RSA", "n": b64(numbers.n.to_bytes(256, "big")), "e": "AQAB", "kid": "rsa-1"}
    else:
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        jwk = dict(tokens.public_jwk(pem))
    return Signer(key, jwk, {"alg": algorithm, "kid": jwk["kid"], "typ": kind}, claims)
