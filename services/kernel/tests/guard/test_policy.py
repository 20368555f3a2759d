"""The document: strict, bounded, with one byte form; and fuzzed, no document lets in who should stay out."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage.errors import AppError
from moorage.guard.engine import Guard
from moorage.guard.policy import (
    MAX_DOCUMENT,
    BaseDocument,
    DocumentError,
    canonical_json,
    parse_document,
    strict_json,
)

Json = dict[str, Any]
SERVICE = "auth.moorage-system.svc"


@pytest.fixture
def plain(make_document: Callable[..., BaseDocument]) -> Json:
    """The blog's document as JSON."""
    found: Json = json.loads(make_document().canonical())
    return found


def test_a_document_survives_its_byte_form(make_document: Callable[..., BaseDocument]) -> None:
    document = make_document()
    assert parse_document(document.canonical()) == document
    assert parse_document(document.canonical()).canonical() == document.canonical()


def test_the_byte_form_is_canonical() -> None:
    assert canonical_json({"b": [1, None, True], "a": "é"}) == '{"a":"é","b":[1,null,true]}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


@pytest.mark.parametrize(
    "address",
    [
        "https://id.example.com",
        "https://id.example.com/.well-known/jwks.json",
        "https://id.example.com:8443/keys?client=a%20b&x=@",
        "https://192.0.2.1/keys",
        "https://[2001:db8::1]:8443/keys",
        f"http://{SERVICE}/keys",
        f"http://{SERVICE}.cluster.local:8080/keys",
        "http://localhost:8080/keys",
        "http://127.0.0.1:8080/keys",
        "http://127.8.8.8/keys",
        "http://[::1]:8080/keys",
    ],
)
def test_keys_are_fetched_from_elsewhere_by_https_and_from_near_by_http(plain: Json, address: str) -> None:
    plain["issuers"][0]["jwks_uri"] = address
    document = parse_document(canonical_json(plain))
    assert document.issuers[0].source == (document.issuers[0].issuer, address, ("ES256",))
    assert parse_document(document.canonical()) == document


@pytest.mark.parametrize(
    "address",
    [
        "",
        "id.example.com/keys",
        "ftp://id.example.com/keys",
        "file:///etc/passwd",
        "HTTPS://id.example.com/keys",
        "https://ID.example.com/keys",
        "https:///keys",
        "https://user:secret@id.example.com/keys",
        "https://id.example.com/keys#part",
        "https://id.example.com\\@evil.example/keys",
        "https://id.example.com/a b",
        "https://id.example.com/\n",
        "https://id.example.com:65536/",
        "https://id.example.com:x/",
        "https://-id.example.com/",
        f"https://id.example.com/{'x' * 1024}",
        "http://id.example.com/keys",
        "http://192.0.2.1/keys",
        "http://10.0.0.1/keys",
        "http://2130706433/keys",
        "http://127.1/keys",
        "http://[::ffff:192.0.2.1]/keys",
        "http://[127.0.0.1]/keys",
        "http://localhost.example.com/keys",
        f"http://{SERVICE}.example.com/keys",
        "http://svc/keys",
        "http://auth.svc/keys",
        "http://a.b.c.svc/keys",
        "http://127.0.0.1@evil.example/keys",
        7,
        ["https://id.example.com"],
    ],
    ids=repr,
)
def test_an_address_that_is_not_plainly_one_of_these_is_refused(plain: Json, address: Any) -> None:
    plain["issuers"][0]["jwks_uri"] = address
    with pytest.raises(DocumentError, match=r"issuers\.0\.jwks_uri"):
        parse_document(canonical_json(plain))


def test_without_an_address_the_document_has_the_bytes_that_older_guards_know(plain: Json) -> None:
    assert "jwks_uri" not in plain["issuers"][0]
    assert parse_document(canonical_json(plain)).issuers[0].source is None


def rule(**changes: Any) -> Json:
    return {"name": "x", "path": "/x", **changes}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"v": 2}, "v"), ({"v": "1"}, "v"), ({"kind": "overlay"}, "kind"), ({"extra": 1}, "extra"),
        ({"namespace": "../etc"}, "namespace"), ({"module": ""}, "module"), ({"module": None}, "module"),
        ({"sequence": -1}, "sequence"), ({"sequence": 1.5}, "sequence"), ({"sequence": "7"}, "sequence"),
        ({"sequence": True}, "sequence"), ({"sequence": 2**60}, "sequence"), ({"issued_at": 7}, "issued_at"),
        ({"rules": [rule(path="posts")]}, "rules.0.path"), ({"rules": [rule(path="/é")]}, "rules.0.path"),
        ({"rules": [rule(auth="maybe")]}, "rules.0.auth"), ({"rules": [rule(auth=None)]}, "rules.0.auth"),
        ({"rules": [rule(auth="none", permission="blog.post.create")]}, "rules.0"),
        ({"rules": [rule(auth="optional", permission="blog.post.create")]}, "rules.0"),
        ({"rules": [rule(methods=["get"])]}, "rules.0.methods.0"), ({"rules": [rule(hosts=["*"])]}, "rules.0.hosts.0"),
        ({"rules": [rule(hosts=["Blog.test"])]}, "rules.0.hosts.0"),
        ({"rules": [rule(max_body=-1)]}, "rules.0.max_body"),
        ({"rules": [rule(timeout_ms=0)]}, "rules.0.timeout_ms"), ({"rules": [rule(limits=[])]}, "rules.0.limits"),
        ({"rules": [rule(), rule(path="/y")]}, "document"), ({"rules": {}}, "rules"),
        ({"permissions": {"Blog": {}}}, "permissions.Blog"),
        ({"permissions": {"a.b.c": {"condition": ""}}}, "permissions"),
        ({"permissions": {"a.b.c": {"condition": "x" * 2049}}}, "permissions"),
        ({"grants": {"author": "blog.post.create"}}, "grants.author"), ({"grants": {"": []}}, "grants"),
        ({"module_grants": {"shop": []}}, "module_grants.shop"), ({"module_grants": {"a/b/c": []}}, "module_grants"),
        ({"issuers": [{"issuer": "i"}]}, "issuers.0.audiences"),
    ],
)  # fmt: skip
def test_a_document_that_is_not_right_is_refused_with_its_field(
    plain: Json, changes: Json, field: str
) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_document(json.dumps({**plain, **changes}).encode())
    assert str(caught.value).startswith(field)


def test_two_issuers_of_one_name_are_refused(plain: Json) -> None:
    with pytest.raises(DocumentError, match="appears twice"):
        parse_document(json.dumps({**plain, "issuers": plain["issuers"] * 2}).encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"v":1,"v":1}',
        b'{"v":NaN}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ],
)
def test_what_is_no_trustworthy_json_is_refused(content: bytes) -> None:
    with pytest.raises(DocumentError):
        parse_document(content)


def test_an_oversized_document_is_refused_unread() -> None:
    with pytest.raises(DocumentError, match="more than"):
        parse_document(b" " * (MAX_DOCUMENT + 1))


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":1}', '{"x":[{"a":1,"a":2}]}', "[NaN]", "[Infinity]", "[-Infinity]"]
)
def test_json_that_parsers_disagree_on_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"twice|not JSON"):
        strict_json(text.encode())


# ---- fuzzed documents

junk = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=6) | st.just([]) | st.just({})


def mutate(data: st.DataObject, value: Any) -> Any:
    """*value* with one part replaced, removed or doubled, at any depth."""
    here = data.draw(st.integers(0, 4)) == 0 or not isinstance(value, dict | list) or not value
    if here:
        return data.draw(junk)
    if isinstance(value, dict):
        key = data.draw(st.sampled_from(sorted(value)))
        rest = {name: part for name, part in value.items() if name != key}
        return rest if data.draw(st.booleans()) else {**rest, key: mutate(data, value[key])}
    at = data.draw(st.integers(0, len(value) - 1))
    return [*value[:at], *([] if data.draw(st.booleans()) else [mutate(data, value[at])]), *value[at + 1 :]]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_mutated_document_gives_a_stranger_what_needs_a_permission(
    data: st.DataObject, plain: Json, facts: Callable[..., Any], make_token: Callable[..., str], now: float
) -> None:
    """Whatever is broken in a document: it is refused, or still asks for a token and for a grant."""
    changed = plain
    for _ in range(data.draw(st.integers(1, 3))):
        changed = mutate(data, changed)
    try:
        document = parse_document(json.dumps(changed).encode())
        guard = Guard.from_document(document, clock=lambda: now)
    except DocumentError:
        return
    guard.bind({found.name: True for found in document.rules})
    guarded = {found.path for found in document.rules if found.permission is not None}
    stranger = {"Authorization": f"Bearer {make_token('visitor')}"}
    open_to = {path for found in document.rules if (path := found.path) and found.permission is None}
    for path in guarded - open_to:
        target = path.replace("{id}", "1")
        for method in ("GET", "POST"):
            for headers in ({}, stranger):
                with pytest.raises(AppError):
                    guard.decide(facts(method, target, headers))
