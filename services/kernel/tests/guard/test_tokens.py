"""Tokens: RFC 8725 as a table of attacks, and as generated ones; what is good is remembered, but never too long."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from moorage.errors import Unauthenticated
from moorage.guard import tokens
from moorage.guard.policy import Issuer
from moorage.guard.tokens import ModuleClaims, TokenVerifier, UserClaims

Json = dict[str, Any]
CLUSTER = "https://kubernetes.default.svc"


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def es256(pem: bytes, header: str, payload: str) -> str:
    """Sign exactly these JSON texts, as no library would."""
    signing_input = f"{b64(header.encode())}.{b64(payload.encode())}"
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(key.sign(signing_input.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signing_input}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@pytest.fixture(scope="session")
def header(token_key: bytes) -> Json:
    """A good token's header."""
    return {"alg": "ES256", "kid": tokens.public_jwk(token_key)["kid"], "typ": "at+jwt"}


@pytest.fixture
def claims(now: float, ada: UUID) -> Json:
    """A good token's claims."""
    return {
        "iss": "https://moorage.test",
        "aud": "test",
        "sub": str(ada),
        "iat": int(now),
        "exp": int(now) + 900,
        "token_type": "access",
        "roles": ["author"],
    }


@pytest.fixture
def sign(token_key: bytes, header: Json, claims: Json) -> Callable[..., str]:
    """A token signed with the right key, whatever it says."""

    def make(header_changes: Json | None = None, **changes: Any) -> str:
        merged = {**claims, **changes}
        body = {name: value for name, value in merged.items() if value is not ...}
        return es256(token_key, json.dumps({**header, **(header_changes or {})}), json.dumps(body))

    return make


@pytest.fixture
def verifier(issuer: Issuer) -> TokenVerifier:
    return TokenVerifier([issuer])


def refused(verifier: TokenVerifier, token: str, now: float) -> Unauthenticated:
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(token, now)
    assert caught.value.reason
    assert caught.value.message in ("The access token is not valid.", "The access token has expired.")
    return caught.value


def test_an_issued_token_is_verified_with_all_it_says(
    make_token: Callable[..., str], verifier: TokenVerifier, now: float, ada: UUID
) -> None:
    token = make_token("author", "editor", email="ada@moorage.test", tenant_id="acme")
    found = verifier.verify(token, now)
    assert isinstance(found.claims, UserClaims)
    assert (found.claims.id, found.claims.roles) == (ada, ("author", "editor"))
    assert (found.claims.email, found.claims.tenant_id) == ("ada@moorage.test", "acme")
    assert found.claims.session_id is not None
    assert found.claims.version == 1
    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"


def test_an_issued_token_has_the_claims_of_the_design(make_token: Callable[..., str], now: float) -> None:
    body = jwt.decode(make_token("author", email="a@b", tenant_id="t"), options={"verify_signature": False})
    names = "iss aud sub email sid ver tenant_id roles iat exp jti token_type"
    assert sorted(body) == sorted(names.split())
    assert body["exp"] - body["iat"] == 900


@pytest.mark.parametrize(
    "user_id", ["ada", "", "3F0C8A52-6F0E-4F0B-9D53-0D7C5B1A2E11", "3f0c8a526f0e4f0b9d530d7c5b1a2e11"]
)
def test_a_user_is_named_by_a_uuid_in_its_one_spelling(make_token: Callable[..., str], user_id: str) -> None:
    with pytest.raises(ValueError, match="is not a UUID of the form"):
        make_token(user_id=user_id)


def test_the_kid_is_the_thumbprint_of_rfc_7638(token_key: bytes) -> None:
    jwk = tokens.public_jwk(token_key)
    required = {name: jwk[name] for name in ("crv", "kty", "x", "y")}
    text = json.dumps(required, sort_keys=True, separators=(",", ":"))
    assert jwk["kid"] == b64(hashlib.sha256(text.encode()).digest())
    assert "d" not in jwk
    private = serialization.load_pem_private_key(token_key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert tokens.public_jwk(pem) == jwk


@pytest.mark.parametrize("curve", [ec.SECP384R1(), None])
def test_a_key_for_another_algorithm_is_not_taken(curve: ec.EllipticCurve | None) -> None:
    key = ec.generate_private_key(curve) if curve else rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="not an ES256"):
        tokens.public_jwk(pem)


@pytest.mark.parametrize(
    "changes",
    [
        {"alg": "none"}, {"alg": "None"}, {"alg": ""}, {"alg": None}, {"alg": 1}, {"alg": ["ES256"]},
        {"alg": "HS256"}, {"alg": "RS256"}, {"alg": "ES384"}, {"alg": "es256"}, {"alg": "PS256"}, {"alg": "ES256K"},
        {"kid": "unknown"}, {"kid": None}, {"kid": 7}, {"kid": ""}, {"kid": "../../../dev/null"}, {"kid": ["a"]},
        {"typ": "JOSE"}, {"typ": "id_token+jwt"}, {"typ": "rt+jwt"}, {"typ": None}, {"typ": 7}, {"typ": "logout+jwt"},
        {"jku": "https://evil.test/keys"}, {"jwk": {"kty": "oct", "k": "AA"}}, {"x5u": "https://evil.test/c"},
        {"x5c": ["MII"]}, {"crit": ["exp"]}, {"crit": []}, {"b64": False}, {"b64": True}, {"zip": "DEF"},
        {"enc": "A256GCM"}, {"cty": "JWT"},
    ],
)  # fmt: skip
def test_a_header_that_asks_for_something_else_is_refused(
    changes: Json, sign: Callable[..., str], verifier: TokenVerifier, now: float
) -> None:
    """Though the signature holds: each would be an attack, or a token for another use (RFC 8725, 3.1 to 3.11)."""
    refused(verifier, sign(changes), now)


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.test"}, {"iss": ...}, {"iss": None}, {"iss": ["https://moorage.test"]},
        {"iss": "https://moorage.test/"},
        {"aud": "other"}, {"aud": ...}, {"aud": None}, {"aud": []}, {"aud": ["other"]}, {"aud": ["test", 7]},
        {"aud": {"test": 1}}, {"aud": "Test"},
        {"exp": ...}, {"exp": None}, {"exp": "1800000900"}, {"exp": True}, {"exp": 1e300}, {"exp": -1}, {"exp": [1]},
        {"exp": 1_799_999_990}, {"exp": 0},
        {"iat": ...}, {"iat": "1800000000"}, {"iat": 1_800_000_010}, {"iat": 10**30},
        {"nbf": 1_800_000_010}, {"nbf": "now"}, {"nbf": False},
        {"token_type": ...}, {"token_type": "refresh"}, {"token_type": "id"}, {"token_type": ["access"]},
        {"sub": ...}, {"sub": ""}, {"sub": "ada"}, {"sub": 7}, {"sub": "3F0C8A52-6F0E-4F0B-9D53-0D7C5B1A2E11"},
        {"sub": "{3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11}"}, {"sub": "system:serviceaccount:default:blog"},
        {"roles": "author"}, {"roles": [1]}, {"roles": {"author": 1}}, {"roles": ["a"] * 129}, {"roles": ["a\r\nX: b"]},
        {"roles": ["\ud800"]}, {"roles": [""]},
        {"email": 7}, {"email": "a\n"}, {"sid": ["s"]}, {"tenant_id": {}}, {"ver": "1"}, {"ver": True},
    ],
)  # fmt: skip
def test_claims_that_do_not_fit_are_refused(
    changes: Json, sign: Callable[..., str], verifier: TokenVerifier, now: float
) -> None:
    refused(verifier, sign(**changes), now)


@pytest.mark.parametrize(
    ("header_changes", "changes"),
    [
        ({}, {"aud": ["other", "test"]}),
        ({"typ": "JWT"}, {}),
        ({"typ": "AT+JWT"}, {}),
        ({"x-note": "unknown names mean nothing"}, {"unknown": {"a": [1]}}),
        ({}, {"exp": 1_800_000_000 - 4}),
        ({}, {"iat": 1_800_000_004}),
        ({}, {"nbf": 1_799_999_000.5}),
        ({}, {"roles": ...}),
        ({}, {"email": None}),
    ],
)
def test_what_is_unusual_but_right_is_taken(
    header_changes: Json, changes: Json, sign: Callable[..., str], verifier: TokenVerifier, now: float
) -> None:
    assert verifier.verify(sign(header_changes, **changes), now).claims


def test_an_expired_token_says_so_and_another_does_not_say_why(
    sign: Callable[..., str], verifier: TokenVerifier, now: float
) -> None:
    expired = refused(verifier, sign(exp=1_799_999_000), now)
    assert (expired.code, expired.message) == ("token_expired", "The access token has expired.")
    other = refused(verifier, sign(aud="other"), now)
    assert (other.code, other.message) == ("invalid_token", "The access token is not valid.")
    assert "audience" in other.reason


@pytest.mark.parametrize(
    ("header_text", "payload_text"),
    [
        ('{"alg":"none","alg":"ES256","kid":"KID"}', "CLAIMS"),
        ('{"alg":"ES256","kid":"KID","kid":"KID"}', "CLAIMS"),
        ("HEADER", 'CLAIMS,"exp":99999999999}'),
        ("HEADER", 'CLAIMS,"roles":["admin"]}'),
        ("HEADER", 'CLAIMS,"x":{"a":1,"a":2}}'),
        ("HEADER", 'CLAIMS,"x":NaN}'),
        ("HEADER", 'CLAIMS,"exp":Infinity}'),
        ("HEADER", "[]"),
        ("HEADER", '"text"'),
        ("HEADER", "null"),
        ("[]", "CLAIMS"),
        ("", "CLAIMS"),
        ("{", "CLAIMS"),
        ("HEADER", "{" + '"a":[' * 300),
    ],
)
def test_json_that_two_parsers_read_differently_is_refused(
    header_text: str,
    payload_text: str,
    token_key: bytes,
    header: Json,
    claims: Json,
    verifier: TokenVerifier,
    now: float,
) -> None:
    """PyJWT takes duplicate claims, the last one winning; here the signature holds and it still is refused."""
    header_text = header_text.replace("KID", header["kid"]).replace("HEADER", json.dumps(header))
    opened = json.dumps(claims)
    payload = payload_text.replace("CLAIMS,", opened[:-1] + ",").replace("CLAIMS", opened)
    refused(verifier, es256(token_key, header_text, payload), now)


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "...", "a", "a.b", "a.b.c", "a.b.c.d", "e30.e30.", "e30..e30", ".e30.e30", "e30.e30.e30",
        "{}.{}.{}", "e30=.e30.e30", "e30. e30.e30", "é.e30.e30", "e30.e30.e30\n", "bnVsbA.bnVsbA.bnVsbA", "gA.gA.gA",
    ],
)  # fmt: skip
def test_what_is_no_token_is_refused(text: str, verifier: TokenVerifier, now: float) -> None:
    refused(verifier, text, now)


def test_an_oversized_token_is_refused_unread(
    sign: Callable[..., str], verifier: TokenVerifier, now: float
) -> None:
    assert "more than" in refused(verifier, sign(padding="x" * 8192), now).reason


def test_a_token_signed_with_the_public_key_as_hmac_secret_is_refused(
    token_key: bytes, header: Json, claims: Json, verifier: TokenVerifier, now: float
) -> None:
    """HS/RS confusion, with every form in which the public key may be known."""
    jwk = tokens.public_jwk(token_key)
    for secret in (json.dumps(jwk).encode(), jwk["x"].encode(), base64.urlsafe_b64decode(jwk["x"] + "=")):
        head = b64(json.dumps({**header, "alg": "HS256"}).encode())
        body = b64(json.dumps(claims).encode())
        mac = hmac.new(secret, f"{head}.{body}".encode(), "sha256").digest()
        refused(verifier, f"{head}.{body}.{b64(mac)}", now)


def test_a_token_of_another_key_with_our_kid_is_refused(
    header: Json, claims: Json, verifier: TokenVerifier, now: float
) -> None:
    forged = es256(tokens.new_es256_key(), json.dumps(header), json.dumps(claims))
    assert "signature" in refused(verifier, forged, now).reason


def test_signatures_of_the_wrong_form_are_refused(
    sign: Callable[..., str], verifier: TokenVerifier, now: float
) -> None:
    head, body, signature = sign().split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    for wrong in (
        b"\0" * 64,
        raw[:63],
        raw + b"\0",
        raw[32:] + raw[:32],
        b"\0" * 32 + raw[32:],
        b"\xff" * 64,
    ):
        refused(verifier, f"{head}.{body}.{b64(wrong)}", now)
    # The last character of 86 carries four bits that mean nothing; one spelling is right.
    for last in "ABCD":
        if last != signature[-1]:
            refused(verifier, f"{head}.{body}.{signature[:-1]}{last}", now)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_changed_byte_leaves_a_token_good(
    data: st.DataObject, make_token: Callable[..., str], issuer: Issuer, now: float
) -> None:
    token = make_token("author")
    verifier = TokenVerifier([issuer])
    at = data.draw(st.integers(0, len(token) - 1))
    kind = data.draw(st.sampled_from(["replace", "insert", "delete", "cut", "swap"]))
    char = data.draw(st.sampled_from("ABCxyz019-_.=+/ \né"))
    changed = {
        "replace": token[:at] + char + token[at + 1 :],
        "insert": token[:at] + char + token[at:],
        "delete": token[:at] + token[at + 1 :],
        "cut": token[:at],
        "swap": ".".join(data.draw(st.permutations(token.split(".")))),
    }[kind]
    assume(changed != token)
    refused(verifier, changed, now)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    ["iss", "aud", "sub", "exp", "iat", "nbf", "token_type", "roles", "alg", "kid", "typ", "crit"]
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    header_changes=st.dictionaries(names, json_values, max_size=3),
    claim_changes=st.dictionaries(names, json_values, min_size=1, max_size=5),
)
def test_generated_tokens_end_in_a_refusal_or_in_what_was_signed(
    header_changes: Json,
    claim_changes: Json,
    token_key: bytes,
    header: Json,
    claims: Json,
    issuer: Issuer,
    now: float,
) -> None:
    """Signed with the right key, whatever is said: no other exception than 401 comes out, and no other user."""
    merged = {**claims, **claim_changes}
    token = es256(token_key, json.dumps({**header, **header_changes}), json.dumps(merged))
    try:
        found = TokenVerifier([issuer]).verify(token, now)
    except Unauthenticated:
        return
    assert isinstance(found.claims, UserClaims)
    assert str(found.claims.id) == merged["sub"]
    assert merged["token_type"] == "access"
    assert list(found.claims.roles) == merged["roles"]
    assert found.expires > now


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=70))
def test_garbage_is_a_401_and_nothing_else(head: bytes, body: bytes, signature: bytes) -> None:
    verifier = TokenVerifier([])
    with pytest.raises(Unauthenticated):
        verifier.verify(f"{b64(head)}.{b64(body)}.{b64(signature)}", 0)


# ---- remembering


def test_a_good_token_is_remembered_and_dropped_when_it_expires(
    sign: Callable[..., str], verifier: TokenVerifier, now: float
) -> None:
    value = f"Bearer {sign()}"
    first = verifier.verify_header(value, now)
    assert verifier.verify_header(value, now + 899) is first
    assert verifier.verify_header(value, now + 904) is first
    with pytest.raises(Unauthenticated, match="expired"):
        verifier.verify_header(value, now + 905)
    assert verifier.verify_header(value, now) is not first


def test_a_remembered_token_does_not_count_before_its_time(
    sign: Callable[..., str], verifier: TokenVerifier, now: float
) -> None:
    """A clock that jumps back does not make a token good that is not yet valid."""
    value = f"Bearer {sign()}"
    verifier.verify_header(value, now)
    with pytest.raises(Unauthenticated):
        verifier.verify_header(value, now - 60)


def test_remembered_tokens_are_bounded(sign: Callable[..., str], issuer: Issuer, now: float) -> None:
    verifier = TokenVerifier([issuer], remember=3)
    values = [f"Bearer {sign(jti=str(at))}" for at in range(5)]
    found = [verifier.verify_header(value, now) for value in values]
    assert len(verifier._known) == 3
    assert verifier.verify_header(values[4], now) is found[4]
    assert verifier.verify_header(values[0], now) is not found[0]


def test_a_refused_token_is_not_remembered(
    sign: Callable[..., str], verifier: TokenVerifier, now: float
) -> None:
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            verifier.verify_header(f"Bearer {sign(aud='other')}", now)
    assert not verifier._known


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER  {}"])
def test_the_scheme_is_read_without_case(
    form: str, sign: Callable[..., str], verifier: TokenVerifier, now: float
) -> None:
    assert verifier.verify_header(form.format(sign()), now)


@pytest.mark.parametrize(
    "form", ["{}", "Basic {}", "Bearer", "Bearer ", "Bearer{}", "Bearer {} x", "Bearer {},{}", "Token {}"]
)
def test_another_form_of_authorization_is_refused(
    form: str, sign: Callable[..., str], verifier: TokenVerifier, now: float
) -> None:
    with pytest.raises(Unauthenticated):
        verifier.verify_header(form.format(sign(), sign()), now)


# ---- service accounts


@pytest.fixture(scope="session")
def cluster_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def rsa_jwk(key: rsa.RSAPrivateKey, kid: str = "cluster-1") -> Json:
    jwk: Json = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    return {**{name: jwk[name] for name in ("kty", "n", "e")}, "kid": kid, "alg": "RS256", "use": "sig"}


@pytest.fixture
def cluster_issuer(cluster_key: rsa.RSAPrivateKey) -> Issuer:
    """The cluster's issuer of service accounts' tokens."""
    return Issuer(
        issuer=CLUSTER,
        audiences=["moorage"],
        algorithms=["RS256"],
        keys=[rsa_jwk(cluster_key)],
        subject="module",
    )


@pytest.fixture
def service_token(cluster_key: rsa.RSAPrivateKey, now: float) -> Callable[..., str]:
    def make(**changes: Any) -> str:
        claims = {
            "iss": CLUSTER,
            "aud": ["moorage"],
            "sub": "system:serviceaccount:default:shop",
            "iat": int(now),
            "nbf": int(now),
            "exp": int(now) + 3600,
        }
        return jwt.encode({**claims, **changes}, cluster_key, algorithm="RS256", headers={"kid": "cluster-1"})

    return make


def test_a_service_accounts_token_names_a_module(
    service_token: Callable[..., str], issuer: Issuer, cluster_issuer: Issuer, now: float
) -> None:
    found = TokenVerifier([issuer, cluster_issuer]).verify(service_token(), now)
    assert found.claims == ModuleClaims("default", "shop")
    assert found.issuer == CLUSTER


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": "system:serviceaccount:default"}, {"sub": "system:serviceaccount:default:shop:x"},
        {"sub": "system:serviceaccount:Default:shop"}, {"sub": "system:serviceaccount::shop"},
        {"sub": "system:serviceaccount:a/b:shop"}, {"sub": "system:serviceaccount:default:shop\n"},
        {"sub": "3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11"}, {"sub": "system:node:x"}, {"sub": None},
        {"aud": ["https://kubernetes.default.svc"]}, {"exp": 1}, {"iss": "https://moorage.test"},
    ],
)  # fmt: skip
def test_other_tokens_of_the_cluster_are_refused(
    changes: Json, cluster_key: rsa.RSAPrivateKey, issuer: Issuer, cluster_issuer: Issuer, now: float
) -> None:
    good = {"iss": CLUSTER, "aud": ["moorage"], "sub": "system:serviceaccount:default:shop"}
    claims = {**good, "iat": int(now), "exp": int(now) + 60, **changes}
    body = b64(json.dumps(claims).encode())
    head = b64(json.dumps({"alg": "RS256", "kid": "cluster-1"}).encode())
    signature = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(
        f"{head}.{body}".encode(), cluster_key
    )
    refused(TokenVerifier([issuer, cluster_issuer]), f"{head}.{body}.{b64(signature)}", now)


def test_an_issuer_of_modules_cannot_make_users_nor_the_other_way_round(
    sign: Callable[..., str], token_key: bytes, issuer: Issuer, now: float
) -> None:
    modules_only = issuer.model_copy(update={"subject": "module"})
    refused(TokenVerifier([modules_only]), sign(), now)
    token = sign(sub="system:serviceaccount:default:shop")
    refused(TokenVerifier([issuer]), token, now)
    assert TokenVerifier([modules_only]).verify(token, now).claims == ModuleClaims("default", "shop")


def test_a_key_verifies_only_by_its_own_algorithm(
    sign: Callable[..., str], issuer: Issuer, cluster_key: rsa.RSAPrivateKey, now: float
) -> None:
    """An issuer with keys of both kinds: a header cannot choose the algorithm for a key."""
    both = issuer.model_copy(
        update={"algorithms": ["ES256", "RS256"], "keys": [*issuer.keys, rsa_jwk(cluster_key)]}
    )
    verifier = TokenVerifier([both])
    assert verifier.verify(sign(), now)
    assert "not that of the key" in refused(verifier, sign({"kid": "cluster-1"}), now).reason
    assert "not that of the key" in refused(verifier, sign({"alg": "RS256"}), now).reason


# ---- keys in a policy


def test_keys_that_verify_nothing_or_too_much_are_not_taken(
    issuer: Issuer, cluster_issuer: Issuer, token_key: bytes, cluster_key: rsa.RSAPrivateKey
) -> None:
    good = dict(tokens.public_jwk(token_key))
    small = rsa_jwk(rsa.generate_private_key(65537, 1024))
    for where, keys, message in [
        (issuer, [{**good, "kid": ""}], "has no kid"),
        (issuer, [{name: good[name] for name in good if name != "kid"}], "has no kid"),
        (issuer, [good, good], "two keys have the kid"),
        (issuer, [{**good, "d": "AA"}], "holds a secret"),
        (issuer, [{"kty": "oct", "k": "AAAA", "kid": "k"}], "holds a secret"),
        (issuer, [{**good, "use": "enc"}], "not for signatures"),
        (issuer, [{**good, "alg": "HS256"}], "not one that its issuer may use"),
        (issuer, [rsa_jwk(cluster_key)], "not one that its issuer may use"),
        (issuer, [{**good, "crv": "P-384"}], "not a usable JWK"),
        (issuer, [{**good, "x": "AA"}], "not a usable JWK"),
        (issuer, [{**good, "x": 7}], "not a usable JWK"),
        (issuer, [{**good, "kty": "RSA"}], "not a usable JWK"),
        (cluster_issuer, [small], "at least 2048 bits"),
        (cluster_issuer, [{**good, "alg": "RS256"}], "not a usable JWK"),
    ]:
        with pytest.raises(ValueError, match=message):
            TokenVerifier([where.model_copy(update={"keys": keys})])


def test_an_issuer_without_keys_verifies_nothing(
    issuer: Issuer, sign: Callable[..., str], now: float
) -> None:
    empty = TokenVerifier([issuer.model_copy(update={"keys": []})])
    assert not empty.has_keys
    refused(empty, sign(), now)
