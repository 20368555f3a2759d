"""Headers by which a client says who or where he is: no spelling counts, and a chain of proxies is read one way.
Nor does anything else in a header make the guard fail.
"""

import ipaddress
import json
import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from forger import NOW, World
from moorage.errors import AppError, error_body
from moorage.guard import headers as h
from moorage.guard.decision import receive
from moorage.guard.engine import Guard
from moorage.guard.headers import TrustedProxies
from moorage.guard.policy import BaseDocument, PermissionPolicy, Rule

# ---- identity

CLAIMS = [
    "X-Moorage-User", "X-Moorage-Roles", "X-Moorage-Tenant", "X-Moorage-New", "X-User", "X-User-Id", "X-User-Claims",
    "X-UserId", "X-Username", "X-Forwarded-User", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host",
    "X-Forwarded-Client-Cert", "Forwarded", "X-Real-IP", "X-Auth-Request-User", "X-Remote-User", "Remote-User",
    "X-Tenant-Id", "X-Roles", "X-SSL-Client-Cert", "X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "Proxy",
]  # fmt: skip
HONEST = [
    ("Host", "blog.test"), ("Accept", "*/*"), ("Accept", "text/html"), ("Authorization", "Bearer a.b.c"),
    ("Cookie", "a=b"), ("X-Request-ID", "r-1"), ("traceparent", "00-1-2-3"), ("X-Requested-With", "x"),
    ("If-Match", '"1"'), ("X-Userland", "y"), ("X-Custom_Name", "z"), ("X-Moorages", "n"), ("Users", "u"),
]  # fmt: skip
LOOKALIKES = {"s": "ſ", "k": "K", "i": "ıİ", "u": "ｕ", "e": "е", "o": "ο", "-": "‐‑–−－﹣"}


def without_case_and_lookalikes(name: str) -> str:
    """*name* as somebody might compare it who is more tolerant than HTTP."""
    return unicodedata.normalize("NFKC", name).upper()


@st.composite
def spellings(draw: st.DrawFn) -> str:
    """A claim's name as CGI, frameworks, careless parsers or Unicode might still take it for the claim."""
    name = draw(st.sampled_from(CLAIMS))
    ways = draw(st.integers(0, 4 ** len(name) - 1))
    found = ""
    for char in name:
        ways, way = divmod(ways, 4)
        other = "-_.!~*"[way] if char == "-" else char.swapcase()
        found += (char, char.lower(), char.upper(), other)[way]
    if draw(st.booleans()):
        char = draw(st.sampled_from(sorted(set(found.lower()) & set(LOOKALIKES)) or ["-"]))
        if char in found.lower():
            at = found.lower().index(char)
            found = found[:at] + draw(st.sampled_from(LOOKALIKES[char])) + found[at + 1 :]
    if draw(st.booleans()):
        odd = draw(
            st.sampled_from(
                [" ", "\t", "  ", "\x00", "\r", "\n", ":", "\xa0", "\u200b", "\xad", "\ufeff", "\x7f"]
            )
        )
        at = draw(st.sampled_from([0, len(found), len(found) // 2]))
        found = found[:at] + odd + found[at:]
    return found


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.lists(spellings(), min_size=1, max_size=4), st.integers(0, len(HONEST)))
def test_no_spelling_of_a_claim_survives_and_all_else_does(names: list[str], at: int) -> None:
    """Also sent twice, and among others."""
    sent = CIMultiDict([*HONEST[:at], *((name, "root") for name in [*names, *names]), *HONEST[at:]])
    assert h.has_identity(sent)
    assert list(h.without_identity(sent).items()) == HONEST
    assert list(h.without_identity(CIMultiDictProxy(sent)).items()) == HONEST


@settings(max_examples=150, deadline=None, print_blob=True)
@given(st.text(min_size=1, max_size=30) | st.sampled_from(CLAIMS).map(quote), st.sampled_from(CLAIMS))
def test_no_name_at_all_survives_that_somebody_folds_to_a_claim(noise: str, claim: str) -> None:
    for name in (noise, f"{claim}{noise}", f"{noise}{claim}", claim.replace("-", noise[:1])):
        folded = without_case_and_lookalikes(name).strip().replace("_", "-").replace(".", "-")
        if folded == claim.upper():
            assert h.is_identity_header(name)
        assert h.has_identity(CIMultiDict({name: "x"})) == (not h.without_identity(CIMultiDict({name: "x"})))


# ---- addresses

TRUSTED = TrustedProxies(["10.0.0.0/8", "127.0.0.1", "fd00::/8", "2001:db8:ffff::1"])
PROXIES = ["10.0.0.1", "10.255.255.255", "127.0.0.1", "fd00::1", "fdff:ffff::9", "2001:db8:ffff::1"]
OTHERS = [
    "192.0.2.1",
    "11.0.0.0",
    "9.255.255.255",
    "127.0.0.2",
    "2001:db8::1",
    "fc00::1",
    "fe00::1",
    "::1",
    "8.8.8.8",
]
GARBAGE = [
    "", "unknown", "_hidden", "for=10.0.0.1", "10.0.0", "10.0.0.1.2", "10.0.0.256", "010.0.0.1", "0x0a.0.0.1", "10.1",
    "167772161", "localhost", "10.0.0.1.evil.test", "::g", ":::", "10.0.0.1:", "10.0.0.1:x", "10.0.0.1:80:80", ":80",
    "[fd00::1", "fd00::1]", "[10.0.0.1", "[10.0.0.1]", "[fd00::1]x", "[fd00::1]:", "[fd00::1]:x", "[[fd00::1]]", "[]",
    "10.0.0.1 10.0.0.1", "10.0.0.1;x", '"10.0.0.1"', "10.0.0.1\x00", "１0.0.0.1", "10.0.0.1/8", "10.0.0.1%eth0", "-1",
    "10.0.0.1:-1", "10.0.0.1:123456", "10.0.0.1#", "10。0。0。1", "fd00::1::", "fd00:::1", "%", "null",
]  # fmt: skip


def written(address: str, way: int) -> str:
    """One of the forms in which proxies write *address*."""
    value = ipaddress.ip_address(address)
    if isinstance(value, ipaddress.IPv4Address):
        return (address, f"{address}:4711", f"::ffff:{address}", f"[::FFFF:{address}]:1", f" {address}\t")[
            way
        ]
    return (address, value.exploded.upper(), f"[{address}]", f"[{value.exploded}]:65535", f"\t{address} ")[
        way
    ]


known = st.tuples(st.sampled_from(PROXIES + OTHERS), st.integers(0, 4)).map(
    lambda given_: (written(*given_), given_[0])
)
proxies = st.tuples(st.sampled_from(PROXIES), st.integers(0, 4)).map(
    lambda given_: (written(*given_), given_[0])
)
hops = st.lists(
    proxies | proxies | known | st.sampled_from(GARBAGE).map(lambda text: (text, None)), max_size=8
)


def naive_client(peer: str, chain: list[tuple[str, str | None]]) -> str:
    """The first address from the right that is no trusted proxy's; what cannot be read ends the chain."""
    client = peer
    for _, address in reversed(chain):
        if client not in PROXIES or address is None:
            break
        client = address
    return client


@st.composite
def fields(draw: st.DrawFn, name: str, values: list[str]) -> list[tuple[str, str]]:
    """*values* as one list, in one field or over several."""
    found: list[tuple[str, str]] = []
    for value in values:
        if found and draw(st.booleans()):
            separator = draw(st.sampled_from([",", ", ", " ,\t"]))
            found[-1] = (found[-1][0], found[-1][1] + separator + value)
        else:
            found.append((draw(st.sampled_from([name, name.lower(), name.upper()])), value))
    return found


@settings(max_examples=300, deadline=None, print_blob=True)
@given(known, hops, st.data())
def test_the_client_is_the_one_of_the_naive_reading(
    peer: tuple[str, str], chain: list[tuple[str, str | None]], data: st.DataObject
) -> None:
    """Read from the right, past trusted proxies alone; IPv6, ports, brackets, several fields, garbage."""
    sent = CIMultiDict(data.draw(fields("X-Forwarded-For", [text for text, _ in chain])))
    sent.extend({"Forwarded": "for=203.0.113.1", "X-Real-IP": "203.0.113.2", "X-Client-IP": "203.0.113.3"})
    found = h.client(peer[0].strip(), "http", sent, TRUSTED)
    expected = naive_client(peer[1], chain)
    assert found.address == str(ipaddress.ip_address(expected))
    assert found.scheme == "http"


@settings(max_examples=100, deadline=None, print_blob=True)
@given(
    st.sampled_from([*OTHERS, None, "", "unix:", "garbage", "10.0.0.1x"]),
    st.sampled_from(["http", "https"]),
    hops,
    st.lists(st.sampled_from(["http", "https", "HTTPS", "wss", ""]), max_size=3),
    st.data(),
)
def test_nothing_that_a_stranger_says_changes_where_he_is(
    peer: str | None,
    scheme: str,
    chain: list[tuple[str, str | None]],
    schemes: list[str],
    data: st.DataObject,
) -> None:
    sent = CIMultiDict(data.draw(fields("X-Forwarded-For", [text for text, _ in chain])))
    sent.extend(data.draw(fields("X-Forwarded-Proto", schemes)))
    alone = h.client(peer, scheme, CIMultiDict(), TRUSTED)
    for trusted in (TRUSTED, TrustedProxies()):
        assert h.client(peer, scheme, sent, trusted) == alone
    assert alone.scheme == scheme
    assert alone.address == (peer if peer in OTHERS else None)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(
    st.sampled_from(["http", "https"]),
    st.lists(
        st.sampled_from(["http", "https", "HTTPS", " https ", "wss", "", "javascript", "https;x"]), max_size=4
    ),
    st.data(),
)
def test_the_scheme_is_the_last_that_a_trusted_proxy_names(
    scheme: str, said: list[str], data: st.DataObject
) -> None:
    sent = CIMultiDict(data.draw(fields("x-forwarded-proto", said)))
    last = said[-1].strip().lower() if said else ""
    expected = last if last in ("http", "https") else scheme
    assert h.client("10.0.0.1", scheme, sent, TRUSTED).scheme == expected


@pytest.mark.parametrize("length", [31, 32, 33, 1000])
def test_a_chain_has_an_end(length: int) -> None:
    """Of more hops than anybody has, only the last count: what is left of them is not read."""
    sent = CIMultiDict({"X-Forwarded-For": ",".join(["192.0.2.1", *["10.0.0.2"] * (length - 1)])})
    assert h.client("10.0.0.1", "http", sent, TRUSTED).address == (
        "192.0.2.1" if length <= 32 else "10.0.0.2"
    )


# ---- whatever they say

READ = [
    "Host", "Content-Length", "Transfer-Encoding", "Authorization", "X-Forwarded-For", "X-Forwarded-Proto",
    "traceparent", "tracestate", "X-Request-ID", "Cookie", "X-Any",
]  # fmt: skip
ODD = [
    "-1", "0" * 30, "chunked", "Bearer ", "Bearer a.b.c", "[", "[::1]:x", "\ud800", "00-" * 20, ",", "\x00",
]  # fmt: skip
CONDITION = "request.headers['x-any'] != 'x' && request.query.q != 'y'"


@pytest.fixture(scope="module")
def guarded() -> tuple[Guard, str]:
    """A guard that reads all of a request, and a token for whom it lets in."""
    world = World()
    rules = [
        Rule(name="open", path="/open", auth="none", max_body=10),
        Rule(name="optional", path="/optional", auth="optional"),
        Rule(name="shop", path="/shop", hosts=["*.shop.test"], max_body=10),
        Rule(name="held", path="/held/{id}", permission="blog.post.read"),
    ]
    document = BaseDocument(
        namespace="default",
        module="blog",
        sequence=1,
        issued_at="",
        issuers=world.document.issuers,
        rules=rules,
        permissions={"blog.post.read": PermissionPolicy(condition=CONDITION)},
        grants={"author": ["blog.post.read"]},
    )
    guard = Guard.from_document(document, clock=lambda: NOW)
    guard.bind_proxy()
    return guard, f"Bearer {world.signers['user'].sign()}"


@settings(max_examples=300, deadline=None, print_blob=True)
@given(
    st.sampled_from(
        ["/open", "/optional", "/shop", "/held/1?q=x", "/held/1?q=x&q=y", "/held/%FF", "/held/1?%ff"]
    ),
    st.lists(
        st.tuples(st.sampled_from(READ), st.text(max_size=20) | st.sampled_from(ODD))
        | st.just(("Content-Length", "9" * 5000)),
        max_size=6,
    ),
    st.sampled_from(["192.0.2.1", "10.0.0.1", None, "", "[", "\ud800", "%"]),
    st.booleans(),
)
def test_no_header_makes_the_guard_fail(
    guarded: tuple[Guard, str], target: str, said: list[tuple[str, str]], peer: str | None, with_token: bool
) -> None:
    """Whatever they say, the request is let in, or refused with an error of the 400s that a client can be told."""
    guard, token = guarded
    sent = CIMultiDict([*said, *([("Authorization", token)] if with_token else [])])
    facts = receive("GET", target, sent, peer=peer, trusted=TRUSTED)
    refused: AppError | None = None
    try:
        decision = guard.decide(facts)
    except AppError as error:
        refused = error
    if refused is not None:
        told = error_body(refused, facts.request_id)
        assert (refused.status // 100, json.loads(json.dumps(told))) == (4, told)
        return
    assert decision.user is not None or decision.name in ("open", "optional")
    assert "".join(decision.upstream_headers().values()).isprintable()
