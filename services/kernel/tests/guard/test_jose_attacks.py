"""Attacks on tokens, generated from good ones: all are 401, in the verifier and in the whole guard.

The signatures of most hold, so that what is refused is refused for what it says; the others are forged in
every way that a public key allows. How tokens are written is attacked in `test_jose_encodings`.
"""

import hmac
import json
import re
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from forger import (
    ADA,
    CLUSTER,
    KINDS,
    NOW,
    USERS,
    Json,
    Signer,
    World,
    attacks,
    b64,
    json_values,
    kinds,
    unb64,
)
from moorage.guard.identity import ModuleCaller, User
from moorage.guard.tokens import ModuleClaims, UserClaims


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_that_are_attacked_are_good(world: World, kind: str) -> None:
    """The control: unchanged, and with what may be there besides, each of them is taken."""
    signer = world.signers[kind]
    for token in (
        signer.sign(),
        signer.sign(signer.header | {"note": 1}, signer.claims | {"note": {"a": [1]}}),
    ):
        found = world.verifier.verify_header(f"Bearer {token}", NOW)
        caller = world.caller(token)
        if kind == "user":
            assert isinstance(found.claims, UserClaims)
            assert isinstance(caller, User)
            assert (str(caller.id), caller.roles) == (ADA, ("author",))
        else:
            assert found.claims == ModuleClaims("default", "shop")
            assert caller == ModuleCaller("default", "shop")
    assert world.caller(token, "/optional") == caller


# ---- what the header asks for


def cased(word: str) -> st.SearchStrategy[str]:
    """*word* in any mix of cases."""
    return st.lists(st.booleans(), min_size=len(word), max_size=len(word)).map(
        lambda upper: "".join(
            char.upper() if up else char.lower() for char, up in zip(word, upper, strict=True)
        )
    )


algorithms = st.one_of(
    cased("none"),
    st.sampled_from(
        ["", "NONE ", "HS256", "HS384", "HS512", "RS384", "RS512", "PS256", "ES384", "ES512", "ES256K", "EdDSA",
         "es256", "rs256", " ES256", "ES256\x00", "dir", "RSA-OAEP", "A256GCM", "ECDH-ES", "RS256,ES256"]
    ),
    json_values.filter(lambda value: value not in ("ES256", "RS256")),
)  # fmt: skip
kids = st.one_of(
    st.sampled_from(
        ["", "../../../../dev/null", "/dev/null", "file:///etc/passwd", "https://evil.test/keys", "kid' OR '1'='1",
         "x'; SELECT 'key", "| sleep 9", "\x00", "*", "..", "${jndi:ldap://evil.test}", "\ud800"]
    ),
    json_values,
)  # fmt: skip
types = st.one_of(
    st.sampled_from(
        ["", "JOSE", "jose+json", "id_token+jwt", "rt+jwt", "refresh+jwt", "logout+jwt", "secevent+jwt", "dpop+jwt",
         "at+JWT ", "application/jwt", "application/application/at+jwt", "at+jwt\x00", "entity-statement+jwt"]
    ),
    json_values.filter(lambda value: str(value).lower() not in ("jwt", "at+jwt")),
)  # fmt: skip
keys_of_the_attacker = st.sampled_from(["jku", "x5u", "jwk", "x5c", "crit", "zip", "b64", "enc", "cty"])
header_changes = st.one_of(
    st.fixed_dictionaries({"alg": algorithms}),
    st.fixed_dictionaries({"kid": kids}),
    st.fixed_dictionaries({"typ": types}),
    st.dictionaries(keys_of_the_attacker, json_values, min_size=1, max_size=2),
    st.sampled_from(
        [{"jku": "https://evil.test/jwks.json"}, {"jku": USERS}, {"x5u": "file:///dev/null"}, {"x5c": ["MIIB"]},
         {"jwk": {"kty": "oct", "k": ""}}, {"crit": ["exp"]}, {"crit": ["b64"], "b64": False}, {"b64": True},
         {"crit": ["b64"], "b64": True}, {"zip": "DEF"}, {"alg": "none", "crit": []}, {"enc": "A128CBC-HS256"}]
    ),
)  # fmt: skip


@attacks
@given(kinds, header_changes)
def test_a_header_that_asks_for_something_else(world: World, kind: str, changes: Json) -> None:
    signer = world.signers[kind]
    assume(changes != {"kid": signer.header["kid"]})
    world.refuses(signer.sign(signer.header | changes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["alg", "kid"])
def test_a_header_without_algorithm_or_key(world: World, kind: str, name: str) -> None:
    signer = world.signers[kind]
    world.refuses(signer.sign({key: value for key, value in signer.header.items() if key != name}))


@attacks
@given(
    kinds, cased("none") | st.sampled_from(["", "none\x00", "null"]), st.binary(max_size=40), st.booleans()
)
def test_no_signature_is_no_token(world: World, kind: str, alg: str, trailer: bytes, keep: bool) -> None:
    signer = world.signers[kind]
    head, body, signature = signer.sign(signer.header | {"alg": alg}).split(".")
    for last in ("", b64(trailer), signature if keep else "AA"):
        world.refuses(f"{head}.{body}.{last}")
    world.refuses(f"{head}.{body}")


# ---- keys taken for other keys


def secrets_of(signer: Signer) -> Iterator[bytes]:
    """Every form in which somebody may know the public key, to be tried as an HMAC secret."""
    subject_info = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = signer.public(serialization.Encoding.PEM, subject_info)
    yield from (pem, pem.rstrip(), pem.replace(b"\n", b"\r\n"), b"".join(pem.splitlines()[1:-1]))
    yield signer.public(serialization.Encoding.DER, subject_info)
    if isinstance(signer.key, ec.EllipticCurvePrivateKey):
        for form in (
            serialization.PublicFormat.UncompressedPoint,
            serialization.PublicFormat.CompressedPoint,
        ):
            yield signer.public(serialization.Encoding.X962, form)
    else:
        yield signer.public(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
    bare = {name: signer.jwk[name] for name in signer.jwk if name not in ("kid", "alg", "use")}
    for jwk in (signer.jwk, bare, {"keys": [signer.jwk]}):
        for separators in ((",", ":"), (", ", ": ")):
            yield json.dumps(jwk, separators=separators).encode()
            yield json.dumps(jwk, separators=separators, sort_keys=True).encode()
    for value in signer.jwk.values():
        yield value.encode()
        yield unb64(re.sub(r"[^A-Za-z0-9_-]", "", value)[: len(value) // 4 * 4])
    yield from (b"", b"\0", b"secret", str(signer.jwk).encode())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [256, 384, 512])
def test_the_public_key_is_no_hmac_secret(world: World, kind: str, size: int) -> None:
    """HS/RS confusion (RFC 8725, 2.1), with the header's algorithm and with the right one."""
    signer = world.signers[kind]
    for secret in secrets_of(signer):
        for algorithm in (f"HS{size}", signer.header["alg"]):
            for typ in ("JWT", "at+jwt"):
                header = signer.header | {"alg": algorithm, "typ": typ}
                text = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(signer.claims).encode())}"
                mac = hmac.new(secret, text.encode(), f"sha{size}").digest()
                world.refuses(f"{text}.{b64(mac)}")


@attacks
@given(kinds, kinds, kinds, kinds, st.sampled_from(["ES256", "RS256"]))
def test_no_key_stands_for_another(
    world: World, signs: str, key_of: str, says: str, issued_by: str, alg: str
) -> None:
    """Signed by one key, naming another's kid or algorithm, with the claims of a third, as of a fourth issuer."""
    header = world.signers[key_of].header | {"alg": alg}
    claims = world.signers[says].claims | {"iss": world.signers[issued_by].claims["iss"]}
    consistent = signs == key_of and alg == world.signers[signs].header["alg"]
    of_one = world.signers[signs].claims["iss"] == world.signers[says].claims["iss"] == claims["iss"]
    assume(not (consistent and of_one))
    world.refuses(world.signers[signs].sign(header, claims))


def test_a_stranger_with_our_kid_is_refused(world: World) -> None:
    strangers = {
        "user": ec.generate_private_key(ec.SECP256R1()),
        "module-es": ec.generate_private_key(ec.SECP256R1()),
        "module-rs": rsa.generate_private_key(65537, 2048),
    }
    for kind, key in strangers.items():
        ours = world.signers[kind]
        world.refuses(Signer(key, ours.jwk, ours.header, ours.claims).sign())
        world.refuses(Signer(key, ours.jwk, ours.header | {"jwk": ours.jwk}, ours.claims).sign())


# ---- what the claims say

not_a_time = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(max_value=-1),
    st.integers(min_value=253_402_300_801),
    st.floats(min_value=1e12, allow_nan=False),
    st.text(max_size=12),
    st.lists(st.integers(0, 2 * NOW), max_size=2),
    st.sampled_from(
        [str(NOW + 60), f"{NOW + 60}.0", "0x7fffffff", float("inf"), float("nan"), float("-inf")]
    ),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)
past = st.integers(0, NOW - 5) | st.floats(0, NOW - 5)
future = st.integers(NOW + 6, 253_402_300_800) | st.floats(NOW + 5.001, 1e11)
ABSENT: Any = object()
strangers = json_values.filter(lambda value: value not in ("test", "moorage"))
not_a_name = st.integers() | st.none() | st.booleans()
other_audiences = st.one_of(
    st.sampled_from(["", "Test", "TEST", "test ", "test/", "https://test", "*", "moorage test", "test\x00", "tëst"]),
    strangers,
    st.lists(strangers, max_size=3),
    st.lists(not_a_name, min_size=1, max_size=2).map(lambda odd: ["test", "moorage", *odd]),
    st.sampled_from([[["test"]], [["moorage"]], {"test": True}, {"moorage": 1}]),
)  # fmt: skip
other_issuers = st.one_of(
    st.sampled_from([USERS, CLUSTER]).flatmap(
        lambda name: st.sampled_from(
            [name + "/", name + " ", " " + name, name.upper(), name.title(), name.replace("https", "http"), name + "#",
             name + ":443", name + "\x00", name[:-1], [name], {"iss": name}, name + "/../", name.replace("o", "ο")]
        )
    ),
    json_values,
)  # fmt: skip
claim_changes = st.one_of(
    st.fixed_dictionaries({"exp": not_a_time | past | st.just(ABSENT)}),
    st.fixed_dictionaries({"iat": not_a_time | future | st.just(ABSENT)}),
    st.fixed_dictionaries({"nbf": not_a_time.filter(lambda value: value is not None) | future}),
    st.fixed_dictionaries({"aud": other_audiences | st.just(ABSENT)}),
    st.fixed_dictionaries({"iss": other_issuers | st.just(ABSENT)}),
    st.fixed_dictionaries({"sub": json_values | st.just(ABSENT)}),
)


def assured(changes: Json, claims: Json) -> bool:
    """Whether *changes* are an attack at all: generated values may be the right ones."""
    return any(name not in claims or claims[name] != value for name, value in changes.items())


@settings(attacks, max_examples=300)
@given(kinds, claim_changes)
def test_claims_that_do_not_fit(world: World, kind: str, changes: Json) -> None:
    signer = world.signers[kind]
    assume(assured(changes, signer.claims))
    claims = {name: value for name, value in (signer.claims | changes).items() if value is not ABSENT}
    world.refuses(signer.sign(payload=claims))


ODD_CHARACTERS = "\x00\x01\t\n\r\x1b\x7f\x85\u2028\u2029\u202e\ufeff\ud800\udfff"
SPELLINGS = [
    ADA.upper(), f"{{{ADA}}}", f"urn:uuid:{ADA}", ADA.replace("-", ""), f" {ADA}", f"{ADA}\n", f"{ADA}\x00",
    ADA.replace("3", "３"), "system:serviceaccount:default:shop", "root", "0",
]  # fmt: skip
odd_texts = st.one_of(
    st.sampled_from(ODD_CHARACTERS).map(lambda char: f"a{char}b"),
    st.sampled_from(["", "x" * 321]),
    st.booleans() | st.integers() | st.floats(allow_nan=False),
    st.lists(st.text(max_size=2), max_size=2),
)
user_claims = st.one_of(
    st.fixed_dictionaries(
        {"token_type": json_values | st.sampled_from(["Access", "access ", "refresh", ["access"]])}
    ),
    st.fixed_dictionaries({"roles": st.sampled_from([{"author": 1}, "author", [["author"]], ["a"] * 129])}),
    st.fixed_dictionaries({"roles": odd_texts.map(lambda odd: ["author", odd])}),
    st.dictionaries(st.sampled_from(["email", "tenant_id", "sid"]), odd_texts, min_size=1),
    st.fixed_dictionaries(
        {"ver": st.booleans() | st.text(max_size=3) | st.floats(allow_nan=False) | st.just([])}
    ),
    st.fixed_dictionaries({"sub": st.sampled_from(SPELLINGS)}),
)


@attacks
@given(user_claims)
def test_claims_about_a_user_that_do_not_fit(world: World, changes: Json) -> None:
    signer = world.signers["user"]
    assume(assured(changes, signer.claims))
    world.refuses(signer.sign(payload=signer.claims | changes))


@attacks
@given(
    st.sampled_from(["module-es", "module-rs"]),
    st.sampled_from(
        ["system:serviceaccount:default", "system:serviceaccount:default:shop:admin", "system:serviceaccount::shop",
         "system:serviceaccount:a/b:shop", "System:ServiceAccount:default:shop", "system:serviceaccount:default:../x",
         "system:serviceaccount:default:shop\n", "system:serviceaccount:default:shop\x00", "system:node:n", ADA,
         "system:serviceaccount:default:ѕhop", "system:serviceaccount:" + "a" * 64 + ":shop"]
    )
    | st.text(max_size=12).map(lambda noise: f"system:serviceaccount:default:{noise.upper()}!"),
)  # fmt: skip
def test_subjects_that_are_no_service_account(world: World, kind: str, subject: str) -> None:
    signer = world.signers[kind]
    world.refuses(signer.sign(payload=signer.claims | {"sub": subject}))


def test_what_a_library_would_take_without_being_told_not_to(world: World) -> None:
    """That the attacks are real: PyJWT alone takes a duplicate claim and an audience of the wrong type."""
    signer = world.signers["user"]
    public = signer.key.public_key()
    twice = signer.sign(payload=(json.dumps(signer.claims)[:-1] + ',"roles":["admin"]}').encode())
    options: Any = {"verify_exp": False, "verify_iat": False, "verify_nbf": False, "verify_aud": False}
    assert jwt.decode(twice, public, algorithms=["ES256"], options=options)["roles"] == ["admin"]
    world.refuses(twice)
