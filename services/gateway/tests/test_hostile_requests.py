"""What a hostile client sends: forged fields, paths with two readings, messages with two lengths."""

import json
import re

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from moorage import errors
from moorage.guard import paths
from moorage_gateway.forward.headers import passes_inward, printable


async def show(request):
    return web.json_response(
        {"path": request.raw_path, "headers": [[n, v] for n, v in request.headers.items()]}
    )


async def refuse(request):
    raise AssertionError(f"reached the upstream: {request.method} {request.raw_path}")


def fields_of(answer: bytes):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), answer
    return {name.lower(): value for name, value in json.loads(body)["headers"]}


# --- forged fields

FORGED = [
    "X-Moorage-User",
    "x-moorage-user",
    "X_Moorage_User",
    "X-Moorage_User",
    "x.moorage.user",
    "X-Moorage-Roles",
    "X-Moorage-Anything",
    "X-User-Id",
    "x_user_id",
    "X-User",
    "X-USER-ROLES",
    "X_Forwarded_User",
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Groups",
    "X-Forwarded-Prefix",
    "X-Forwarded-Port",
    "X-Forwarded-Client-Cert",
    "X-Auth-Request-User",
    "X-Remote-User",
    "Remote-User",
    "REMOTE_USER",
    "X-Real-IP",
    "X_Real_IP",
    "X-Client-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Cluster-Client-IP",
    "Forwarded",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-Original-Host",
    "X-HTTP-Method-Override",
    "X-HTTP-Method",
    "X-Method-Override",
    "X_HTTP_Method_Override",
    "Proxy",
    "SSL-Client-Cert",
    "X-SSL-Client-CN",
    "X-Webauth-User",
    "X-Tenant-Id",
    "X_Tenant_ID",
    "X-Envoy-External-Address",
    "X-Host",
    "Content_Length",
    "Transfer_Encoding",
    "X!User",
]


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_field_never_reaches_the_upstream(net, name):
    edge = await net.proxy(await net.serve(show))
    answer = await edge.raw(
        f"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{name}: forged-1\r\n{name.upper()}: forged-2\r\n"
        f"X-Honest: 1\r\n\r\n".encode()
    )
    fields = fields_of(answer)
    assert fields["x-honest"] == "1"
    assert not any("forged" in value for value in fields.values()), fields


async def test_forwarded_fields_from_a_stranger_do_not_count(net):
    edge = await net.proxy(await net.serve(show))
    answer = await edge.raw(
        b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nX-Forwarded-For: 8.8.8.8\r\n"
        b"X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n\r\n"
    )
    fields = fields_of(answer)
    assert fields["x-forwarded-for"] == "127.0.0.1"
    assert fields["x-forwarded-proto"] == "http"
    assert fields["x-forwarded-host"] == "shop"


@pytest.mark.parametrize(
    ("said", "passed"),
    [
        ("203.0.113.7", "203.0.113.7, 127.0.0.1"),
        ("1.2.3.4, 203.0.113.7", "203.0.113.7, 127.0.0.1"),
        ("203.0.113.7, 10.0.0.9", "203.0.113.7, 127.0.0.1"),
        ("nonsense", "127.0.0.1"),
        ("203.0.113.7, nonsense", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
async def test_a_trusted_proxys_word_counts_from_the_right(net, said, passed):
    edge = await net.proxy(await net.serve(show), trusted=("127.0.0.0/8", "10.0.0.0/8"))
    answer = await edge.raw(
        f"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\nX-Forwarded-For: {said}\r\n"
        f"X-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n\r\n".encode()
    )
    fields = fields_of(answer)
    assert fields["x-forwarded-for"] == passed
    assert fields["x-forwarded-proto"] == "https"
    assert fields["x-forwarded-host"] == "shop.example"


async def test_of_several_forwarded_hosts_the_last_one_is_the_proxys(net):
    edge = await net.proxy(await net.serve(show), trusted=("127.0.0.0/8",))
    answer = await edge.raw(
        b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\nX-Forwarded-For: 203.0.113.7\r\n"
        b"X-Forwarded-Host: evil\r\nX-Forwarded-Host: evil, shop.example\r\n\r\n"
    )
    assert fields_of(answer)["x-forwarded-host"] == "shop.example"


async def test_a_request_id_of_the_client_is_kept_and_echoed_if_it_is_harmless(net):
    edge = await net.proxy(await net.serve(show))
    for given_id, kept in (("abc-1", True), ("a b", False), ("x" * 200, False), ('"><script>', False)):
        answer = await edge.raw(
            f"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-Request-ID: {given_id}\r\n\r\n".encode()
        )
        passed = fields_of(answer)["x-request-id"]
        assert (passed == given_id) is kept
        assert f"X-Request-ID: {passed}\r\n".encode() in answer


async def test_a_trace_is_continued_with_a_span_of_the_proxy(net):
    edge = await net.proxy(await net.serve(show))
    trace_id, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    answer = await edge.raw(
        f"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\ntraceparent: 00-{trace_id}-{span}-01\r\n"
        f"tracestate: a=1\r\n\r\n".encode()
    )
    fields = fields_of(answer)
    assert fields["traceparent"].split("-")[1] == trace_id
    assert fields["traceparent"].split("-")[2] != span
    assert fields["tracestate"] == "a=1"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40))
@settings(max_examples=200)
def test_no_spelling_of_an_identity_field_passes(noise):
    """Whatever stands between the words, if anything folds it to the name it is dropped."""
    for parts in (("x", "moorage", "user"), ("x", "forwarded", "for"), ("x", "user", "id")):
        for separator in ("-", "_", ".", noise[:1]):
            name = separator.join(parts)
            if name.replace("-", "").isalnum() and separator != "-":
                continue  # a letter or digit between the words makes another name
            assert not passes_inward(name)
            assert not passes_inward(name.upper())


@given(st.binary(max_size=60))
def test_field_values_survive_aiohttps_writer(raw):
    """Every value can be encoded afterwards, and one that is UTF-8 already is left as it is."""
    value = raw.decode("utf-8", "surrogateescape")
    kept = printable(value)
    kept.encode()
    try:
        raw.decode()
    except UnicodeDecodeError:
        assert kept == raw.decode("iso-8859-1")
    else:
        assert kept == value


# --- paths with two readings

CONFUSING = [
    "//admin",
    "/a//b",
    "/a/../admin",
    "/a/./b",
    "/a/%2e%2e/admin",
    "/a/%2E%2e/admin",
    "/a/.%2e/admin",
    "/a%2fadmin",
    "/a%2Fadmin",
    "/a%5cadmin",
    "/a\\admin",
    "/a;x=1/admin",
    "/a/..;/admin",
    "/a%00",
    "/a%0a",
    "/a%0d%0aX:1",
    "/a%252fadmin",
    "/a%",
    "/a%zz",
    "/a%ff",
    "/caf\xe9",
    "/a...//",
    "/.../admin",
    "/a#fragment",
    "/a?x#fragment",
    "/a?caf\xe9",
    "a",
    "*",
    "?x",
    "http:admin",
    "http:///admin",
    "ftp://h/admin",
    "http://user@h/admin",
    "/a\tb",
    '/a"b',
    "/a<b>",
]


@pytest.mark.parametrize("path", CONFUSING)
async def test_a_path_that_two_programs_could_read_differently_is_refused(net, path):
    edge = await net.proxy(await net.serve(refuse))
    answer = await edge.raw(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode("latin-1"))
    assert answer.split(b" ", 2)[1] == b"400", answer
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["error"]["code"] in ("bad_path", "bad_request")


async def test_the_absolute_form_says_host_and_path(net):
    edge = await net.proxy(await net.serve(show))
    answer = await edge.raw(
        b"GET http://shop.example/a?b HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n"
    )
    assert fields_of(answer)["host"] == "shop.example"
    assert b'"path": "/a?b"' in answer


@pytest.mark.parametrize("host", ["a b", "a/b", "a,b", "user@a", "", "a:port", "[::1", "a\x80"])
async def test_a_malformed_host_is_refused_or_absent(net, host):
    edge = await net.proxy(await net.serve(show))
    answer = await edge.raw(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1"))
    if host:
        assert answer.split(b" ", 2)[1] == b"400", answer
    else:
        assert fields_of(answer)["host"].startswith("127.0.0.1:")


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
async def test_methods_that_tunnel_or_echo_are_refused(net, method):
    edge = await net.proxy(await net.serve(refuse))
    target = "h:80" if method == "CONNECT" else "/"
    answer = await edge.raw(f"{method} {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    assert answer.split(b" ", 2)[1] in (b"405", b"400"), answer


# --- messages with two lengths

SMUGGLING = {
    "both lengths": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, other order": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "two equal lengths": b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of lengths": b"Content-Length: 4, 4\r\n\r\nabcd",
    "a signed length": b"Content-Length: +4\r\n\r\nabcd",
    "a hexadecimal length": b"Content-Length: 0x4\r\n\r\nabcd",
    "a negative length": b"Content-Length: -1\r\n\r\n",
    "an underscored length": b"Content-Length: 1_0\r\n\r\nabcdefghij",
    "an enormous length": b"Content-Length: 99999999999999999999\r\n\r\n",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding before chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding after chunked": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a quoted coding": b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "a tab before the coding": b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded field": b"X-A: 1\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bare line feed": b"X-A: 1\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bare carriage return": b"X-A: 1\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a NUL in a value": b"X-A: 1\x00\r\n\r\n",
    "an empty name": b": 1\r\n\r\n",
    "a name with a space": b"X A: 1\r\n\r\n",
    "two hosts": b"Host: other\r\n\r\n",
    "a bad chunk size": b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "a chunk size with a sign": b"Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
    "a chunk that is longer than it says": b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
    "a bare line feed after a chunk": b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    "an enormous chunk": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
}


@pytest.mark.parametrize("rest", SMUGGLING.values(), ids=SMUGGLING.keys())
async def test_a_message_with_two_readings_ends_the_connection(net, rest):
    """One answer at most, an error of the 400s or 501, and nothing after it is taken for a second request."""
    reached = []

    async def handler(request):
        reached.append(request.raw_path)
        await request.read()
        return web.Response(text="reached")

    edge = await net.proxy(await net.serve(handler))
    answer = await edge.raw(
        b"POST /first HTTP/1.1\r\nHost: h\r\n" + rest + b"GET /second HTTP/1.1\r\nHost: h\r\n\r\n", within=15
    )
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 501")), answer
    assert len(re.findall(rb"HTTP/1\.\d \d{3} ", answer)) == 1, answer
    assert "/second" not in reached
    assert b'"error"' in answer


@pytest.mark.parametrize(
    "line", [b"GET /x", b"GET /x HTTP/0.9", b"GET /x HTTP/1.2", b"GET /x HTTP/2.0", b"GET /x HTTP/3.0"]
)
async def test_only_http_10_and_11_are_spoken(net, line):
    edge = await net.proxy(await net.serve(refuse))
    answer = await edge.raw(line + b"\r\nHost: h\r\n\r\n")
    assert answer.split(b" ", 2)[1] in (b"400", b"505"), answer


async def test_a_length_in_http_10_with_a_coding_is_refused(net):
    edge = await net.proxy(await net.serve(refuse))
    answer = await edge.raw(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert answer.split(b" ", 2)[1] == b"400", answer


async def test_pipelined_requests_are_answered_in_order(net):
    edge = await net.proxy(await net.serve(show))
    answer = await edge.raw(
        b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    )
    assert answer.index(b'"path": "/1"') < answer.index(b'"path": "/2"')


async def test_trailers_are_not_taken_for_fields(net):
    edge = await net.proxy(await net.serve(show))
    answer = await edge.raw(
        b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\na\r\n0\r\nX-Moorage-User: forged\r\nX-Late: 1\r\n\r\n"
    )
    fields = fields_of(answer)
    assert "x-moorage-user" not in fields
    assert "x-late" not in fields


LARGE = {
    "a long address": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", (b"414", b"431")),
    "a long field": (b"GET / HTTP/1.1\r\nHost: h\r\nX-A: " + b"a" * 9000 + b"\r\n\r\n", (b"431",)),
    "many fields": (
        b"GET / HTTP/1.1\r\nHost: h\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(200)) + b"\r\n",
        (b"400", b"431"),
    ),
    "large fields together": (
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
        + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 8000) for n in range(9))
        + b"\r\n",
        (b"431",),
    ),
}


@pytest.mark.parametrize(("request_", "statuses"), LARGE.values(), ids=LARGE.keys())
async def test_heads_are_bounded(net, request_, statuses):
    edge = await net.proxy(await net.serve(refuse))
    answer = await edge.raw(request_)
    assert answer.split(b" ", 2)[1] in statuses, answer[:200]
    assert b'"error"' in answer


@pytest.mark.parametrize("expectation", ["200-ok", "100-continue, 100-continue"])
async def test_an_unknown_expectation_is_417(net, expectation):
    edge = await net.proxy(await net.serve(refuse))
    answer = await edge.raw(
        f"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 0\r\n"
        f"Expect: {expectation}\r\n\r\n".encode()
    )
    assert answer.split(b" ", 2)[1] == b"417"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60))
@settings(max_examples=500)
def test_what_the_guard_judges_is_what_the_upstream_gets(rest):
    """Any target that is let in is written to the upstream as it came, but for the `?` of an empty query."""
    target = "/" + rest
    if "#" in target:
        return
    try:
        paths.parse_target(target)
    except errors.BadRequest:
        return
    sent = URL("http://127.0.0.1:8081" + target, encoded=True)
    assert sent.raw_path_qs in (target, target.removesuffix("?"))
    assert (sent.host, sent.port) == ("127.0.0.1", 8081)
