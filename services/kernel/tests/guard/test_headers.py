"""Headers: who the caller is, where he is and what he asks for is never believed from a header."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from moorage.guard import headers as h
from moorage.guard.headers import TrustedProxies

CLAIMS = [
    "X-Moorage-User", "X-Moorage-Tenant", "X-Moorage-Roles", "X-Moorage-Anything", "X-User-Id", "x_user_id",
    "X_USER_ID", "X-User_Id", "X.User.Id", "X_Forwarded_User", "X-Forwarded-User", "X-Forwarded-Email",
    "X-Forwarded-Groups", "X-Forwarded-Access-Token", "X-Forwarded-For", "X-Forwarded-Host",
    "X-Forwarded-Proto", "X-Forwarded-Prefix", "Forwarded", "X-Real-IP", "x_real_ip", "True-Client-IP",
    "CF-Connecting-IP", "X-Client-IP", "X-Remote-User", "Remote-User", "REMOTE_USER", "X-Auth-Request-User",
    "X-WebAuth-User", "X-Tenant-Id", "X-Roles", "X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override",
    "X_HTTP_Method_Override", "X-Method-Override", "X-SSL-Client-Cert", "X-Forwarded-Client-Cert", "Proxy",
]  # fmt: skip
HONEST = [
    "Host", "Authorization", "Cookie", "Accept", "Content-Type", "Content-Length", "User-Agent", "X-Request-ID",
    "traceparent", "tracestate", "Origin", "If-Match", "Idempotency-Key", "X-Requested-With", "X-CSRF-Token",
    "Proxy-Authorization", "Via", "X-Custom", "api_key",
]  # fmt: skip


@pytest.mark.parametrize("name", CLAIMS)
def test_a_header_that_claims_an_identity_is_taken_off(name: str) -> None:
    given_headers = CIMultiDict(
        [(name, "root"), ("Accept", "*/*"), (name.lower(), "root2"), (name.upper(), "r")]
    )
    assert h.has_identity(given_headers)
    assert list(h.without_identity(CIMultiDictProxy(given_headers)).items()) == [("Accept", "*/*")]


@pytest.mark.parametrize("name", HONEST)
def test_other_headers_stay(name: str) -> None:
    given_headers = CIMultiDict({name: "1"})
    assert not h.has_identity(given_headers)
    assert h.without_identity(given_headers) == given_headers


@given(st.sampled_from(CLAIMS), st.data())
def test_no_spelling_of_a_claim_stays(name: str, data: st.DataObject) -> None:
    """Case, and each of `-`, `_` and `.` for another: CGI and frameworks read them as the same name."""
    spelled = "".join(
        data.draw(st.sampled_from("-_."))
        if char in "-_."
        else data.draw(st.sampled_from([char.lower(), char.upper()]))
        for char in name
    )
    assert h.is_identity_header(spelled)


@pytest.mark.parametrize(
    "value", ["a", "0b5a1c2d", "3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11", "req_1.2-3", "A" * 64]
)
def test_a_decent_request_id_is_kept(value: str) -> None:
    assert h.request_id(CIMultiDict({"x-request-id": value})) == value


@pytest.mark.parametrize(
    "value", ["", " ", "a b", "a" * 65, "-rf", "../x", "a\r\nX: b", "é", "${jndi:x}", "<a>", "a;b", "a,b"]
)
def test_another_request_id_is_replaced(value: str) -> None:
    made = h.request_id(CIMultiDict({"X-Request-ID": value}))
    assert made != value
    assert len(made) == 32


def test_request_ids_differ() -> None:
    assert len({h.request_id(CIMultiDict()) for _ in range(100)}) == 100


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", "01"),
        (f"00-{TRACE}-{SPAN}-00", "00"),
        (f"00-{TRACE}-{SPAN}-03", "03"),
        (f"00-{TRACE}-{SPAN}-ff", "03"),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", "01"),
    ],
)
def test_a_trace_is_continued(value: str, flags: str) -> None:
    found = h.trace(CIMultiDict([("Traceparent", value), ("tracestate", "a=1"), ("tracestate", "b=2")]))
    assert (found.trace_id, found.parent_id, found.flags, found.state) == (TRACE, SPAN, flags, "a=1,b=2")
    assert found.span_id != SPAN
    assert found.traceparent == f"00-{TRACE}-{found.span_id}-{flags}"


@pytest.mark.parametrize(
    "value",
    [
        "", "00", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more", f"00-{TRACE}-{SPAN}", f"00-{TRACE}{SPAN}-01",
        f" 00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-0g",
    ],
)  # fmt: skip
def test_a_malformed_trace_counts_as_none(value: str) -> None:
    found = h.trace(CIMultiDict({"traceparent": value, "tracestate": "a=1"}))
    assert found.parent_id is None
    assert found.state == ""
    assert found.trace_id != TRACE
    assert len(found.trace_id) == 32
    assert len(found.span_id) == 16


def test_a_long_tracestate_is_left_out() -> None:
    found = h.trace(CIMultiDict({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=" + "1" * 512}))
    assert (found.trace_id, found.state) == (TRACE, "")


PROXIES = TrustedProxies(["10.0.0.0/8", "127.0.0.1", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["10.0.0.1"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["203.0.113.9, 192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["127.0.0.1, 192.0.2.7, 10.0.0.2"], "192.0.2.7"),
        ("10.0.0.1", ["203.0.113.9", "192.0.2.7", "10.0.0.2"], "192.0.2.7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["192.0.2.7, garbage, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.7:4711"], "192.0.2.7"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["2001:DB8:0::1"], "2001:db8::1"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["::ffff:192.0.2.7"], "192.0.2.7"),
        ("::ffff:192.0.2.1", ["192.0.2.7"], "192.0.2.1"),
        ("fe80::1%eth0", [], "fe80::1"),
        (None, ["192.0.2.7"], None),
        ("not an address", ["192.0.2.7"], None),
    ],
)
def test_the_client_is_the_first_untrusted_hop_from_the_right(
    peer: str | None, forwarded_for: list[str], address: str | None
) -> None:
    sent = CIMultiDict([("X-Forwarded-For", value) for value in forwarded_for])
    sent.add("Forwarded", "for=198.51.100.1;proto=https")
    sent.add("X-Real-IP", "198.51.100.2")
    assert h.client(peer, "http", sent, PROXIES).address == address


@pytest.mark.parametrize(
    ("peer", "values", "scheme"),
    [
        ("10.0.0.1", ["https"], "https"),
        ("10.0.0.1", ["http, https"], "https"),
        ("10.0.0.1", ["https", "HTTP"], "http"),
        ("10.0.0.1", ["javascript"], "http"),
        ("10.0.0.1", [], "http"),
        ("192.0.2.1", ["https"], "http"),
    ],
)
def test_the_scheme_is_believed_of_trusted_peers_alone(peer: str, values: list[str], scheme: str) -> None:
    sent = CIMultiDict([("X-Forwarded-Proto", value) for value in values])
    assert h.client(peer, "http", sent, PROXIES).scheme == scheme


@given(st.lists(st.sampled_from(["1.1.1.1", "10.9.9.9", "x", "::1", "", "1.1.1.1, 2.2.2.2"]), max_size=5))
def test_an_untrusted_peer_is_itself_whatever_it_says(values: list[str]) -> None:
    sent = CIMultiDict([("X-Forwarded-For", value) for value in values])
    assert h.client("192.0.2.1", "http", sent, PROXIES).address == "192.0.2.1"


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        TrustedProxies(["proxy.test"])
    assert not TrustedProxies()
    assert PROXIES
