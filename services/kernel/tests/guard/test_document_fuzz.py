"""Documents that are signed by the right key, and still not right: refused as a whole, visibly, or in force with nobody
let in whom the document, read naively, keeps out.

As if the operator had been made to sign them: a mistake there must not open what it protects.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from bundles import HOSTS, MANY, OF_AN_AUTHOR, Installation, open_guard
from forger import b64
from moorage.guard.policy import MAX_DOCUMENT, BaseDocument, DocumentError
from moorage.guard.snapshot import Policy

Json = dict[str, Any]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("policies"))


def refused(site: Installation, content: bytes) -> None:
    """Assert that a guard keeps its policy in the face of *content*, signed by the right key, and takes the next."""
    directory = site.folder(site.old)
    guard = open_guard(directory)
    site.bundle(content).write(directory)
    assert not guard.refresh()
    site.stays(guard)
    site.bundle(site.new).write(directory)
    assert guard.refresh()


# ---- what is no document


def doubled(data: st.DataObject, value: Any) -> str:
    """*value* as JSON in which one name of one object appears twice."""
    if isinstance(value, list):
        at = data.draw(st.integers(0, len(value) - 1))
        parts = [
            doubled(data, part) if number == at else json.dumps(part) for number, part in enumerate(value)
        ]
        return f"[{','.join(parts)}]"
    name = data.draw(st.sampled_from(sorted(value)))
    inner = value[name]
    objects = isinstance(inner, dict) or (isinstance(inner, list) and inner and isinstance(inner[0], dict))
    if objects and inner and data.draw(st.booleans()):
        parts = [
            f"{json.dumps(key)}:{doubled(data, part) if key == name else json.dumps(part)}"
            for key, part in value.items()
        ]
        return f"{{{','.join(parts)}}}"
    spelled = data.draw(st.sampled_from([name, f"\\u{ord(name[0]):04x}{name[1:]}"]))
    again = f'"{spelled}":{json.dumps(data.draw(st.sampled_from([inner, None, [], {}, 7, "none"])))}'
    rest = json.dumps(value)[1:-1]
    return "{" + (f"{again},{rest}" if data.draw(st.booleans()) else f"{rest},{again}") + "}"  # fmt: skip


@settings(max_examples=100, deadline=None, print_blob=True)
@given(st.data())
def test_a_name_that_appears_twice_is_refused(site: Installation, data: st.DataObject) -> None:
    refused(site, doubled(data, site.document()).encode())


def deep(times: int) -> Any:
    value: Any = "x"
    for _ in range(times):
        value = [value]
    return value


BEYOND: dict[str, Json] = {
    "rules": {"rules": [{"name": f"r{number}", "path": f"/{number}"} for number in range(5000)]},
    "text": {"issued_at": "x" * 65},
    "grants": {"grants": {f"role-{number}": [] for number in range(5000)}},
    "role": {"grants": {"r" * 129: []}},
    "permissions": {"permissions": {f"a.b.c{number}": {} for number in range(5000)}},
    "condition": {"permissions": {"a.b.c": {"condition": "true || " * 300 + "true"}}},
    "number": {"sequence": 10**400},
    "nested": {"issued_at": deep(500)},
    "unknown": {"x": "y"},
}


@pytest.mark.parametrize("kind", sorted(BEYOND))
def test_a_document_beyond_its_bounds_is_refused(site: Installation, kind: str) -> None:
    refused(site, json.dumps(site.document(**BEYOND[kind])).encode())


def odd_bytes(text: str) -> dict[str, bytes]:
    """What is no document, made of the *text* of one."""
    return {
        "padded": text.encode() + b" " * MAX_DOCUMENT,
        "BOM": b"\xef\xbb\xbf" + text.encode(),
        "UTF-16": text.encode("utf-16"),
        "Latin-1": text.replace('"default"', '"défault"').encode("latin-1"),
        "two": text.encode() * 2,
        "list": f"[{text}]".encode(),
        "NaN": text.replace('"sequence": 6', '"sequence": NaN').encode(),
        "a number without end": text.replace('"sequence": 6', '"sequence": ' + "6" * 5000).encode(),
        "nested": b'{"a":' * 100_000,
        "nothing": b"",
        "surrogate": text.replace('"default"', '"\\ud800"', 1).encode(),
        "NUL": text.replace('"default"', '"default\\u0000"', 1).encode(),
    }


@pytest.mark.parametrize("kind", sorted(odd_bytes("")))
def test_bytes_that_are_no_document_are_refused(site: Installation, kind: str) -> None:
    refused(site, odd_bytes(json.dumps(site.document()))[kind])


# ---- keys


def bad_keys(good: Json, rsa_key: Json) -> dict[str, Any]:
    """Keys that verify nothing or too much, or that nobody may read in a policy."""
    small = rsa.generate_private_key(65537, 1024).public_key().public_numbers().n
    other = ec.generate_private_key(ec.SECP384R1()).public_key().public_numbers()
    zero = b64(bytes(32))
    return {
        **{f"private part {name}": good | {name: "AQAB"} for name in ("d", "p", "q", "dp", "dq", "qi", "oth", "k")},
        **{f"RSA with {name}": rsa_key | {name: "AQAB"} for name in ("d", "p", "q", "dp", "dq", "qi", "oth", "k")},
        "oct": {"kty": "oct", "k": "c2VjcmV0", "kid": "k", "alg": "HS256"},
        "oct as ES256": {"kty": "oct", "k": "c2VjcmV0", "kid": "k", "alg": "ES256"},
        "small RSA": rsa_key | {"n": b64(small.to_bytes(128))},
        "RSA of 1": rsa_key | {"n": "AQ"},
        "RSA with exponent 1": rsa_key | {"e": "AQ"},
        "RSA with exponent 0": rsa_key | {"e": "AA"},
        "RSA without modulus": rsa_key | {"n": ""},
        "P-384": good | {"crv": "P-384", "x": b64(other.x.to_bytes(48)), "y": b64(other.y.to_bytes(48))},
        "secp256k1": good | {"crv": "secp256k1"},
        "OKP": {"kty": "OKP", "crv": "Ed25519", "x": zero, "kid": "k", "alg": "EdDSA"},
        "off the curve": good | {"x": zero},
        "the point at infinity": good | {"x": zero, "y": zero},
        "short coordinates": good | {"x": "AA"},
        "for encryption": good | {"use": "enc"},
        "use of a wrong type": good | {"use": ["sig"]},
        **{f"alg {alg!r}": good | {"alg": alg} for alg in ("none", "HS256", "RS512", "es256", ["ES256"], 7, True)},
        **{f"kid {kid!r}": good | {"kid": kid} for kid in ("", None, 7, ["k"], {})},
        **{f"kty {kty!r}": good | {"kty": kty} for kty in ("", None, "RSA", "ec", ["EC"], 7)},
        **{f"x {x!r}": good | {"x": x} for x in (None, 7, "é", "\ud800", [1], {"x": 1})},
        "no kid": {name: good[name] for name in good if name != "kid"},
        "empty": {},
        "no object": "key",
        "null": None,
    }  # fmt: skip


def test_keys_that_verify_too_much_are_refused_with_the_document(site: Installation) -> None:
    """In the folder, and in a document by itself with the error that says so."""
    document = site.document()
    good, rsa_key = (site.world.signers[kind].jwk for kind in ("user", "module-rs"))
    for key in bad_keys(good, rsa_key).values():
        for keys in ([key], [*document["issuers"][1]["keys"], key]):
            issuers = [document["issuers"][0], document["issuers"][1] | {"keys": keys}]
            content = json.dumps(document | {"issuers": issuers}).encode()
            refused(site, content)
            if isinstance(key, dict):
                document_of_it = BaseDocument(**site.document(issuers=issuers))
                with pytest.raises(DocumentError):
                    Policy(document_of_it)


# ---- documents with some of their fields changed

OTHER_KEYS = "those of the other issuer"
LEFT_OUT = "left out"
SOUND: dict[str, list[Any]] = {
    "auth": ["none", "optional", "required", LEFT_OUT],
    "path": ["/**", "/", "/me", "/me/", "/{x}", "/{x}/**", "/posts/{id}", "/posts/**", "/posts/{id}/{x}"],
    "methods": [[], ["GET"], ["POST", "GET"], ["DELETE"], LEFT_OUT],
    "hosts": [[], ["*.test"], ["blog.test"], ["other.test"], LEFT_OUT],
    "permission": ["blog.post.create", "blog.post.nothing", "blog.post.search", None, LEFT_OUT],
    "condition": [
        "true", "(true)", "false", "1", "'true'", "user.id", OF_AN_AUTHOR, "'author' in user.roles", "tenant == tenant",
        "request.headers['authorization'] != ''", "-1", "resource.a.b.c == user.id", "user.email == resource.email",
        "size(user.roles) > 99", "1/0 == 1", "int('x') == 1", "timestamp('x') > timestamp('y')", None, LEFT_OUT,
    ],
    "subject": ["user", "module"],
    "issuer": ["https://moorage.test", "https://cluster.test", "https://evil.test", "*"],
    "audiences": [["test"], ["moorage"], ["*"], ["test", "moorage"]],
    "algorithms": [["ES256"], ["RS256"], ["ES256", "RS256"]],
    "keys": [[], OTHER_KEYS],
    "grants": [{}, {"author": ["*"]}, {"visitor": ["blog.post.create"]}, {"*": ["blog.post.create"]}, LEFT_OUT],
    "author": [[], ["blog.post.create"], ["blog.post.publish", "blog.post.x"], LEFT_OUT],
    "visitor": [[], ["blog.post.create", "blog.post.publish"], ["blog.post.*"], LEFT_OUT],
    "module_grants": [{}, {"other/shop": ["blog.post.create"]}, {"default/shop": []}, LEFT_OUT],
    "permissions": [{}, {"blog.post.create": {}}, LEFT_OUT],
    "blog.post.create": [{}, {"condition": "false"}, {"condition": OF_AN_AUTHOR}, LEFT_OUT],
    "blog.post.publish": [{}, {"condition": "false"}, LEFT_OUT],
    "rules": [[], [{"name": "all", "path": "/**", "auth": "none"}], [{"name": "all", "path": "/**"}]],
    "sequence": [6, 7, 2**53],
}  # fmt: skip
UNSOUND: dict[str, list[Any]] = {
    "auth": ["None", "any"],
    "path": ["//", "/a/**/b", "/%2e", "/..", "me", "/{x}/{x}"],
    "methods": [["get"], ["GET", "GET"], ["*"], "GET"],
    "hosts": [["*"], ["*.*"], ["Blog.test"], ["blog.test", "blog.test"], "blog.test"],
    "permission": ["*", "blog.post.*", ["blog.post.create"]],
    "condition": [
        "nobody == nobody", "true || nobody.id == 1", "'a'.matches('(')", ")", "true)", "(true", " ", "true // x",
        "TRUE", "true true", "true;", "!", "[true]", "{true}", "[1].map(x, x) == [1]", "resource == null", "x" * 2049,
        "\ud800",
        "user.roles.exists(r, user.roles.exists(q, true))", "true\x00", "b'x' == b'x'", "has(user)", "user", ["true"],
    ],
    "subject": ["admin"],
    "audiences": [[], [""], "test"],
    "algorithms": [["none"], ["HS256"], [], ["es256"]],
    "keys": [[{}], {}],
    "namespace": ["other", "Default", "default/blog", "../x"],
    "module": ["shop", "Blog"],
    "sequence": [5, 4, 0, 2**53 + 1, "7", 7.0, 7.5],
    "v": [2, 0, "1"],
    "kind": ["overlay", "Base"],
    "name": ["me", "Me", "../x"],
    "max_body": [-1, "1"],
}  # fmt: skip
JUNK = [None, True, False, 0, -1, 1.5, 10**30, "", "\x00", "é", "\ud800", "x", [], {}, [None], {"x": None}]
NAMES = ["x", "auth", "condition", "author", "visitor", "blog.post.create", ""]


def fields(value: Any) -> Iterator[tuple[Json, str]]:
    """Every place of a document for which there are other sound values."""
    for name, part in value.items() if isinstance(value, dict) else enumerate(value):
        if name in SOUND:
            yield value, name
        if isinstance(part, dict | list):
            yield from fields(part)


def soundly(data: st.DataObject, document: Json, site: Installation) -> Json:
    """*document* with one field put otherwise, each by itself as it may be."""
    places = list(fields(document))
    holder, name = places[data.draw(st.integers(0, len(places) - 1))]
    new = data.draw(st.sampled_from(SOUND[name]))
    if new == LEFT_OUT:
        del holder[name]
    elif new == OTHER_KEYS:
        holder[name] = site.document()["issuers"][data.draw(st.integers(0, 1))]["keys"]
    else:
        holder[name] = json.loads(json.dumps(new))
    return document


def unsoundly(data: st.DataObject, value: Any, name: str = "") -> Any:
    """*value*, the field *name*, with one thing in it that should not be: junk, left out, doubled or renamed."""
    if not isinstance(value, dict | list) or not value or data.draw(st.integers(0, 5)) == 0:
        return data.draw(st.sampled_from(UNSOUND.get(name, JUNK)) | st.sampled_from(JUNK))
    place = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    what = data.draw(st.sampled_from([*["inside"] * 5, "leave out", "double"]))
    copy = dict(value) if isinstance(value, dict) else list(value)
    if what == "inside":
        copy[place] = unsoundly(data, copy[place], place if isinstance(place, str) else name)
    elif what == "leave out":
        del copy[place]
    elif isinstance(copy, list):
        copy.append(copy[place])
    else:
        copy[data.draw(st.sampled_from(NAMES))] = copy[place]
    return copy


def test_no_changed_document_lets_in_whom_it_keeps_out(site: Installation) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=250, deadline=None, print_blob=True)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        document: Any = site.document()
        for _ in range(data.draw(st.integers(1, 4))):
            document = soundly(data, document, site)
        if data.draw(st.booleans()):
            document = unsoundly(data, document)
        directory = site.folder(site.old)
        guard = open_guard(directory)
        site.bundle(json.dumps(document).encode()).write(directory)
        if not guard.refresh():
            seen["refused"] += 1
            site.stays(guard)
            return
        seen["in force"] += 1
        assert (document["namespace"], document["module"], document.get("v", 1)) == ("default", "blog", 1)
        assert guard.status()["sequence"] == document["sequence"] > 5
        for method, host, target, who, answer in site.answers(guard, MANY, HOSTS):
            if isinstance(answer, str):
                seen["let in"] += 1
                assert naive.allows(document, method, host, target, who), (method, host, target, who, answer)

    check()
    assert min(seen[kind] for kind in ("refused", "in force", "let in")) > 20


def test_a_grant_of_what_is_not_declared_is_no_grant(site: Installation) -> None:
    """Its condition would be missing with it: what was the author's own would be everybody's."""
    for left_out in ("blog.post.create", "blog.post.publish"):
        document = site.document()
        del document["permissions"][left_out]
        guard = site.guard(document)
        let_in = [answer for *_, answer in site.answers(guard, MANY, HOSTS[:1]) if isinstance(answer, str)]
        assert "me" in let_in
        assert left_out.rpartition(".")[2] not in let_in
