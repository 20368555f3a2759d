"""Key sets as issuers publish them: what counts, what is skipped, and what spoils the whole set."""

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.guard import tokens
from moorage.guard.jwks import MAX_BYTES, MAX_KEYS, KeySetError, read_keys
from moorage.guard.policy import Issuer
from moorage.guard.tokens import TokenVerifier, verification_key

BOTH = ("ES256", "RS256")
EC = [dict(tokens.public_jwk(tokens.new_es256_key())) for _ in range(3)]


def rsa_jwk(bits: int, **more: Any) -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits).public_key()
    return {**jwt.algorithms.RSAAlgorithm.to_jwk(key, as_dict=True), "kid": f"rsa-{bits}"} | more


RSA, SMALL_RSA = rsa_jwk(2048), rsa_jwk(1024)
P384 = {
    **jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True),
    "kid": "p384",
}
ED = {
    "kty": "OKP",
    "crv": "Ed25519",
    "kid": "ed",
    "x": base64.urlsafe_b64encode(
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    )
    .rstrip(b"=")
    .decode(),
}


def read(*keys: Any, algorithms: tuple[str, ...] = BOTH, **more: Any) -> list[str]:
    """The names of the keys that count."""
    return [key["kid"] for key in read_keys(json.dumps({"keys": list(keys), **more}).encode(), algorithms)]


def without(key: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name not in names}


def test_keys_for_the_issuers_algorithms_count_in_the_order_of_their_names() -> None:
    expected = sorted([EC[0]["kid"], EC[1]["kid"], RSA["kid"]])
    assert read(EC[0], RSA, EC[1]) == read(RSA, EC[1], EC[0]) == expected
    assert read(EC[0], RSA, algorithms=("ES256",)) == [EC[0]["kid"]]
    assert read(EC[0], RSA, algorithms=("RS256",)) == [RSA["kid"]]
    assert read(without(EC[0], "alg", "use")) == [EC[0]["kid"]]
    assert read(EC[0], issuer="somebody", more=[1]) == [EC[0]["kid"]]


def test_only_what_checks_signatures_is_kept_of_a_key() -> None:
    noise = {"x5c": ["MII…"], "x5u": "https://evil.example", "key_ops": ["verify"], "note": "x" * 1000}
    (key,) = read_keys(json.dumps({"keys": [EC[0] | noise]}).encode(), BOTH)
    assert key == EC[0]


@pytest.mark.parametrize(
    "other",
    [
        {"kty": "XYZ", "kid": "new", "use": "sig"},
        {"kid": "nothing"},
        {"kty": ["EC"], "kid": "odd"},
        {"kty": 7, "kid": "odd"},
        {"kty": "oct", "kid": "empty"},
        ED,
        P384,
        SMALL_RSA,
        RSA | {"use": "enc", "alg": "RSA-OAEP"},
        RSA | {"use": "enc"},
        RSA | {"use": ["sig"]},
        RSA | {"alg": "PS256"},
        RSA | {"alg": "none"},
        RSA | {"alg": 256},
        RSA | {"key_ops": ["encrypt"]},
        RSA | {"key_ops": "verify"},
        RSA | {"n": ""},
        RSA | {"e": "AA"},
        RSA | {"n": 7},
        RSA | {"n": None},
        without(RSA, "e"),
        EC[1] | {"y": EC[2]["y"]},
        EC[1] | {"x": "!"},
        EC[1] | {"x": ["a"]},
        EC[1] | {"x": "\ud800"},
        EC[1] | {"crv": "P-384"},
        EC[1] | {"alg": "RS256"},
        without(EC[1], "crv"),
        without(EC[1], "y"),
    ],
    ids=repr,
)
def test_a_key_for_anything_else_is_skipped(other: dict[str, Any]) -> None:
    assert read(EC[0], other) == [EC[0]["kid"]]
    assert read(other, without(EC[0])) == [EC[0]["kid"]]
    with pytest.raises(KeySetError, match="no key for ES256 or RS256"):
        read(other)


@pytest.mark.parametrize("member", sorted(tokens.PRIVATE_MEMBERS))
@pytest.mark.parametrize("key", [EC[1], RSA, ED, {"kty": "oct"}, {"kty": "XYZ"}], ids=lambda key: key["kty"])
def test_a_private_member_in_any_key_spoils_the_set(member: str, key: dict[str, Any]) -> None:
    with pytest.raises(KeySetError, match=f"private member {member}") as refused:
        read(EC[0], key | {member: "c2VjcmV0"})
    assert "c2VjcmV0" not in str(refused.value)


@pytest.mark.parametrize("kid", [None, "", 7, ["a"], "x" * 513, "two\nlines", "\ud800"], ids=repr)
def test_a_key_that_would_count_needs_a_name(kid: Any) -> None:
    with pytest.raises(KeySetError, match="no kid"):
        read(EC[0], EC[1] | {"kid": kid})
    with pytest.raises(KeySetError, match="no kid"):
        read(EC[0], without(EC[1], "kid"))
    assert read(EC[0], P384 | {"kid": kid}) == [EC[0]["kid"]], "what is skipped needs none"


def test_a_name_stands_for_one_key() -> None:
    with pytest.raises(KeySetError, match="two keys have the kid"):
        read(EC[0], EC[1] | {"kid": EC[0]["kid"]})
    with pytest.raises(KeySetError, match="two keys have the kid"):
        read(EC[0], EC[0])
    assert read(EC[0], P384 | {"kid": EC[0]["kid"]}) == [EC[0]["kid"]]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "JSON"),
        (b"no", "JSON"),
        (b"\xff\xfe{}", "JSON"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b'{"keys": [' + b"[" * 20_000, "JSON"),
        (b'{"keys": [NaN]}', "JSON"),
        (b'{"keys": [], "keys": []}', "JSON"),
        (json.dumps({"keys": [EC[0]]}).replace('"kid"', '"kid": "a", "kid"').encode(), "JSON"),
        (b"[]", "list of keys"),
        (b"7", "list of keys"),
        (b"{}", "list of keys"),
        (b'{"keys": {}}', "list of keys"),
        (b'{"keys": ["a"]}', "list of keys"),
        (json.dumps({"keys": [EC[0], None]}).encode(), "list of keys"),
        (b'{"keys": []}', "no key for"),
        (json.dumps({"keys": [ED] * (MAX_KEYS + 1)}).encode(), "33 keys"),
        (json.dumps({"keys": [EC[0]]}).encode().ljust(MAX_BYTES + 1), "bytes"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_what_cannot_be_read_in_one_way_only_is_no_set(content: bytes, why: str) -> None:
    with pytest.raises(KeySetError, match=why):
        read_keys(content, BOTH)


def test_as_many_bytes_and_keys_as_there_may_be() -> None:
    keys = [EC[0], *({"kty": "XYZ"} for _ in range(MAX_KEYS - 1))]
    content = json.dumps({"keys": keys}).encode().ljust(MAX_BYTES)
    assert [key["kid"] for key in read_keys(content, BOTH)] == [EC[0]["kid"]]


# ---- whatever a server may answer

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MEMBERS = ("kty", "crv", "x", "y", "n", "e", "kid", "alg", "use", "key_ops", "x5c")
telling = st.sampled_from(
    ["EC", "RSA", "OKP", "oct", "P-256", "P-384", "ES256", "RS256", "HS256", "none", "sig", "enc", "AQAB", ""]
)


@st.composite
def almost_keys(draw: st.DrawFn) -> dict[str, Any]:
    """A good key with some members changed, gone, or another key's."""
    key = dict(draw(st.sampled_from([*EC, RSA, SMALL_RSA, P384, ED, {}])))
    for name in draw(st.lists(st.sampled_from(MEMBERS), max_size=3, unique=True)):
        if draw(st.booleans()):
            key.pop(name, None)
        else:
            key[name] = draw(
                st.one_of(telling, values, st.sampled_from([k.get(name) for k in (*EC, RSA, P384)]))
            )
    if draw(st.integers(0, 19)) == 0:
        key[draw(st.sampled_from(sorted(tokens.PRIVATE_MEMBERS)))] = draw(values)
    return key


sets = st.builds(
    lambda keys, more: {**more, "keys": keys},
    st.lists(st.one_of(almost_keys(), values), max_size=5),
    st.dictionaries(st.text(max_size=4), scalars, max_size=1),
)


def survives(content: bytes, algorithms: tuple[str, ...]) -> None:
    """It is read or refused; and what was read is what a verifier can work with, public and with a name of its own."""
    try:
        found = read_keys(content, algorithms)
    except KeySetError:
        return
    assert found
    assert len({key["kid"] for key in found}) == len(found) <= MAX_KEYS
    for key in found:
        assert not tokens.PRIVATE_MEMBERS.intersection(key)
        assert verification_key(key, frozenset(algorithms))[1].algorithm_name in algorithms
    assert read_keys(json.dumps({"keys": found}).encode(), algorithms) == found


@settings(max_examples=600, deadline=None)
@given(sets, st.sampled_from([("ES256",), ("RS256",), BOTH]))
def test_a_set_of_almost_keys_is_read_or_refused(
    document: dict[str, Any], algorithms: tuple[str, ...]
) -> None:
    survives(json.dumps(document).encode(), algorithms)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), values.map(lambda value: json.dumps(value).encode())))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    survives(content, BOTH)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_set_with_some_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(json.dumps({"keys": [*EC, RSA, P384]}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(content), BOTH)


def test_a_verifier_takes_every_set_that_was_read() -> None:
    found = read_keys(json.dumps({"keys": [*EC, RSA, P384, ED]}).encode(), BOTH)
    issuer = Issuer(
        issuer="i", audiences=["a"], algorithms=list(BOTH), keys=[dict(k) for k in found], subject="user"
    )
    assert set(TokenVerifier([issuer]).kids("i")) == {key["kid"] for key in found}
