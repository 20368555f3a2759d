"""Tokens written in ways that two programs read differently: all are 401, in the verifier and in the whole guard.

The JSON in them, the compact form, the signature's form, and the header field around it.
"""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import assume, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from forger import CLUSTER, KINDS, NOW, USERS, World, attacks, b64, json_values, kinds, unb64
from moorage.errors import Unauthenticated
from moorage.guard.decision import receive
from moorage.guard.tokens import UserClaims

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The order of P-256: `(r, s)` and `(r, ORDER - s)` are both signatures of the same text."""


@pytest.fixture(scope="module")
def world() -> World:
    return World()


# ---- JSON that two programs read differently


def escaped(name: str, data: st.DataObject) -> str:
    """*name* as JSON may spell it, each character perhaps as ``\\uXXXX``."""
    return "".join(
        f"\\u{ord(char):04{data.draw(st.sampled_from('xX'))}}" if data.draw(st.booleans()) else char
        for char in name
    )


@attacks
@given(kinds, st.booleans(), st.booleans(), st.data())
def test_a_name_that_appears_twice(
    world: World, kind: str, in_header: bool, first: bool, data: st.DataObject
) -> None:
    """In either order, in the header or the claims, in any spelling, at any depth, and with the same value twice."""
    signer = world.signers[kind]
    part = signer.header if in_header else signer.claims
    name = data.draw(st.sampled_from(sorted(part)))
    again = f'"{escaped(name, data)}":{json.dumps(data.draw(st.just(part[name]) | json_values))}'
    inside = json.dumps(part)[1:-1]
    if data.draw(st.booleans()):
        again = data.draw(st.sampled_from(['"x":{{{0},{0}}}', '"x":[{{{0},"y":[{{{0},{0}}}]}}]'])).format(
            again
        )
    text = "{" + (f"{again},{inside}" if first else f"{inside},{again}") + "}"
    assert json.loads(text)  # most parsers take it
    raw = text.encode()
    world.refuses(signer.sign(header=raw) if in_header else signer.sign(payload=raw))


def odd_texts(text: str) -> dict[str, bytes]:
    """What is not the strict JSON of one object, made of the JSON *text* of one."""
    raw, inside = text.encode(), text[1:-1]
    numbers = {
        name: f'{{{inside},"x":{name}}}'.encode() for name in ("NaN", "Infinity", "-Infinity", "1" * 5000)
    }
    spelled = {
        odd: f"{{{inside},{odd}}}".encode()
        for odd in ('"x":01', '"x":.5', '"x":+1', '"x":0x1', "'x':1", "x:1", '"x":1,', '"x":"\t"', '"x":"\\q"', "/**/",
                    '"x":"\x00"', '"x":tru', "// x", '"x"')
    }  # fmt: skip
    return numbers | spelled | {
        "BOM": b"\xef\xbb\xbf" + raw,
        "UTF-16": text.encode("utf-16"),
        "UTF-16 without BOM": text.encode("utf-16-le"),
        "UTF-32": text.encode("utf-32-be"),
        "Latin-1": f'{{{inside},"x":"é"}}'.encode("latin-1"),
        "overlong": raw[:-1] + b',"x":"\xc0\xaf"}',
        "surrogates in UTF-8": raw[:-1] + b',"x":"\xed\xa0\x80"}',
        "cut": raw[:-1],
        "more": raw + b"}",
        "two": raw + raw,
        "two with NUL": raw + b"\x00" + raw,
        "trailing NUL": raw + b"\x00",
        "leading NUL": b"\x00" + raw,
        "in a list": b"[" + raw + b"]",
        "as a text": json.dumps(text).encode(),
        "deep lists": f'{{{inside},"x":{"[" * 2500}{"]" * 2500}}}'.encode(),
        "deep objects": ('{"a":' * 1000 + "1" + "}" * 1000).encode(),
        "unclosed": b"[" * 5000,
        **{other: other.encode() for other in ("null", "true", "0", '"x"', "[]", "{}", " ", "[[],{}]", "\x00")},
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_header", [True, False])
def test_what_is_no_strict_json_object(world: World, kind: str, in_header: bool) -> None:
    signer = world.signers[kind]
    for raw in odd_texts(json.dumps(signer.header if in_header else signer.claims)).values():
        world.refuses(signer.sign(header=raw) if in_header else signer.sign(payload=raw))


@attacks
@given(kinds, st.booleans(), st.data())
def test_any_bytes_in_place_of_json(world: World, kind: str, in_header: bool, data: st.DataObject) -> None:
    """Signed by the right key: bytes, and good JSON with a few bytes changed, end in 401 or in what was meant."""
    signer = world.signers[kind]
    raw = bytearray(json.dumps(signer.header if in_header else signer.claims).encode())
    for at, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), min_size=1, max_size=3)
    ):
        raw[at] = byte
    changed = data.draw(st.just(bytes(raw)) | st.binary(max_size=80))
    token = signer.sign(header=changed) if in_header else signer.sign(payload=changed)
    try:
        found = world.verifier.verify_header(f"Bearer {token}", NOW)
    except Unauthenticated:
        world.refuses(token)
        return
    said = json.loads(changed)
    if not in_header:
        assert said["iss"] in (USERS, CLUSTER)
        assert said["exp"] + 5 == found.expires > NOW
        subject = found.claims
        named = str(subject.id) if isinstance(subject, UserClaims) else f"{subject.namespace}:{subject.name}"
        assert said["sub"].endswith(named)


# ---- the compact form


def reshaped(token: str, other: str) -> dict[str, str]:
    """What *token* becomes if somebody takes it apart; *other* is a second good token of the same key."""
    head, body, signature = token.split(".")
    _, other_body, other_signature = other.split(".")
    general = {"payload": body, "signatures": [{"protected": head, "signature": signature}]}
    flattened = {"protected": head, "payload": body, "signature": signature}
    shapes = {
        "signature of another token": f"{head}.{body}.{other_signature}",
        "payload of another token": f"{head}.{other_body}.{signature}",
        "header without a signature": f"{head}..",
        "detached payload": f"{head}..{signature}",
        "no header": f".{body}.{signature}",
        "no signature": f"{head}.{body}.",
        "two segments": f"{head}.{body}",
        "one segment": head,
        "JWE": f"{head}.{body}.{signature}.{other_body}.{other_signature}",
        "JWE of five empty": "....",
        "nested": f"{b64(token.encode())}.{body}.{signature}",
        "JSON serialization": json.dumps(flattened),
        "general JSON serialization": json.dumps(general, separators=(",", ":")),
        "encoded JSON serialization": b64(json.dumps(flattened).encode()),
        "swapped header and payload": f"{body}.{head}.{signature}",
        "twice": f"{token}.{token}",
        "two tokens": f"{token},{other}",
        "two tokens, spaced": f"{token} {other}",
        "percent-encoded": token.replace(".", "%2e"),
        "fullwidth dots": token.replace(".", "．"),
        "standard base64": f"{head}.{body}.{signature[:-4]}+/{signature[-2:]}",
        "oversized": f"{head}.{body}{'A' * 8192}.{signature}",
        "oversized by its signature": f"{head}.{body}.{signature}{'A' * 8192}",
        "quoted": f'"{token}"',
        "in brackets": f"<{token}>",
    }
    for char in " \t\n\r\x00\x0b\xa0\ufeff\u200b.=é\ud800":
        for at in (0, 1, len(head), len(head) + 1, len(token) - 1, len(token)):
            if at or char != " ":  # any number of spaces may stand before a token
                shapes[f"{char!r} at {at}"] = token[:at] + char + token[at:]
    return shapes


@pytest.mark.parametrize("kind", KINDS)
def test_another_shape_is_no_token(world: World, kind: str) -> None:
    signer = world.signers[kind]
    token, other = signer.sign(), signer.sign(payload=signer.claims | {"jti": "other"})
    for shape in reshaped(token, other).values():
        world.refuses(shape)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_has_one_spelling_in_base64(world: World, kind: str) -> None:
    """The last character of a segment has bits that mean nothing: only one value of them is taken."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = world.signers[kind].sign()
    parts = token.split(".")
    for at, part in enumerate(parts):
        same = [last for last in alphabet if last != part[-1] and unb64(part[:-1] + last) == unb64(part)]
        for last in same:
            world.refuses(".".join([*parts[:at], part[:-1] + last, *parts[at + 1 :]]))
    # 64 and 256 bytes both leave some over, so the signature was among them.
    assert len(unb64(parts[2])) % 3


@attacks
@given(kinds, st.data())
def test_a_changed_character(world: World, kind: str, data: st.DataObject) -> None:
    token = world.signers[kind].sign()
    at = data.draw(st.integers(0, len(token) - 1))
    char = data.draw(st.sampled_from("ABCxyz019-_.=+/%") | st.characters())
    changed = data.draw(
        st.sampled_from([token[:at] + char + token[at + 1 :], token[:at] + token[at + 1 :], token[:at], token[at:]])
    )  # fmt: skip
    assume(changed != token)
    world.refuses(changed)


@attacks
@given(kinds, st.binary(max_size=70), st.data())
def test_a_signature_of_another_form(world: World, kind: str, noise: bytes, data: st.DataObject) -> None:
    signer = world.signers[kind]
    head, body, signature = signer.sign().split(".")
    raw = unb64(signature)
    half = len(raw) // 2
    r, s, most = int.from_bytes(raw[:half]), int.from_bytes(raw[half:]), (1 << half * 8) - 1
    pairs = [
        (0, 0), (0, s), (r, 0), (s, r), (r, s ^ 1), (r ^ 1, s), (1, 1), (ORDER, s), (r, ORDER), (ORDER, ORDER), (r, r),
        (r, most), (most, s), (abs(ORDER - r) & most, s), (abs(ORDER - r) & most, abs(ORDER - s) & most),
    ]  # fmt: skip
    forms = [left.to_bytes(half) + right.to_bytes(half) for left, right in pairs]
    forms += [encode_dss_signature(r, s), encode_dss_signature(0, 0), raw[:-1], raw[1:], raw[:half], raw * 2]
    forms += [
        raw + b"\0",
        b"\0" + raw,
        raw[:half] + b"\0" + raw[half:],
        raw[::-1],
        bytes(len(raw)),
        b"",
        noise,
    ]
    wrong = data.draw(st.sampled_from([form for form in forms if form != raw]))
    world.refuses(f"{head}.{body}.{b64(wrong)}")


def test_the_second_form_of_an_ecdsa_signature_gives_nothing_that_the_first_does_not(world: World) -> None:
    """It holds, as ECDSA has it. So nothing may hang on a token's bytes: same caller and session, same end."""
    for kind in ("user", "module-es"):
        signer = world.signers[kind]
        for number in range(20):
            token = signer.sign(payload=signer.claims | {"jti": str(number)})
            head, body, signature = token.split(".")
            raw = unb64(signature)
            other = (ORDER - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
            twin = f"{head}.{body}.{b64(raw[:32] + other)}"
            found = [world.verifier.verify_header(f"Bearer {one}", NOW) for one in (token, twin)]
            assert found[0].claims == found[1].claims
            assert (found[0].expires, found[0].not_before) == (found[1].expires, found[1].not_before)
            assert world.caller(token) == world.caller(twin)
            for when in (NOW + 905, NOW - 6):
                with pytest.raises(Unauthenticated):
                    world.verifier.verify_header(f"Bearer {twin}", when)


# ---- the header field around it

SCHEMES = [
    "Basic", "Digest", "DPoP", "Token", "JWT", "", "Bearer,", "Bearer:", "Ｂearer", "Bеarer", "Bearer=", "BearerBearer",
]  # fmt: skip
FORMS = ["{0}", " {0}", "\t{0}", " {0} ", " {0},", " {0}, Bearer {1}", " token={0}", ' "{0}"', " Bearer {0}"]


@attacks
@given(kinds, st.sampled_from(SCHEMES), st.sampled_from(FORMS))
def test_another_authorization(world: World, kind: str, scheme: str, form: str) -> None:
    signer = world.signers[kind]
    value = scheme + form.format(signer.sign(), signer.sign(payload=signer.claims | {"jti": "other"}))
    with pytest.raises(Unauthenticated):
        world.verifier.verify_header(value, NOW)
    headers = CIMultiDict({"Authorization": value})
    for target in ("/required", "/optional"):
        with pytest.raises(Unauthenticated):
            world.guard.decide(receive("GET", target, headers, peer=None))


@attacks
@given(kinds, st.lists(st.sampled_from(["good", "bad", "basic"]), min_size=2, max_size=4), st.data())
def test_several_authorizations(world: World, kind: str, several: list[str], data: st.DataObject) -> None:
    """Whichever of them another program would take, and however the fields are spelled."""
    good = f"Bearer {world.signers[kind].sign()}"
    values = {"good": good, "bad": "Bearer a.b.c", "basic": "Basic YTpi"}
    headers: CIMultiDict[str] = CIMultiDict()
    for one in several:
        headers.add(
            data.draw(st.sampled_from(["Authorization", "authorization", "AUTHORIZATION"])), values[one]
        )
    for target in ("/required", "/optional"):
        with pytest.raises(Unauthenticated):
            world.guard.decide(receive("GET", target, headers, peer=None))
