"""Plain requests through the proxy: what arrives, what comes back, what happens when a side misbehaves."""

import asyncio
import gzip

import aiohttp
import pytest
import structlog
from aiohttp import web


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "path": request.raw_path,
            "headers": [[name, value] for name, value in request.headers.items()],
            "body": body.decode("latin-1"),
        }
    )


async def seen(net, path="/", **request):
    """What the upstream saw of one request."""
    edge = await net.proxy(await net.serve(echo), trusted=request.pop("trusted", ()))
    client = await net.client()
    method = request.pop("method", "GET")
    async with client.request(method, edge.url + path, **request) as response:
        assert response.status == 200, await response.text()
        return await response.json()


def field(message, name):
    values = [value for key, value in message["headers"] if key.lower() == name.lower()]
    assert len(values) <= 1, values
    return values[0] if values else None


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
async def test_every_method_passes_with_its_body(net, method):
    message = await seen(net, method=method, data=b"some body")
    assert message["method"] == method
    assert message["body"] == "some body"
    assert field(message, "Content-Length") == "9"


@pytest.mark.parametrize(
    "path",
    [
        "/a/b",
        "/a/b/",
        "/posts/%7Bid%7D",
        "/caf%C3%A9?x=%2F&y=a+b&y=%20",
        "/a?x=1?2&&=&z",
        "/a:b@c,d=e~f!*'()",
        "/search?q=[1]{2}|3",
    ],
)
async def test_the_target_reaches_the_upstream_byte_for_byte(net, path):
    edge = await net.proxy(await net.serve(echo))
    answer = await edge.raw(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    assert f'"path": "{path}"'.encode() in answer


async def test_nothing_is_added_that_the_client_did_not_say(net):
    edge = await net.proxy(await net.serve(echo))
    answer = await edge.raw(b"GET / HTTP/1.1\r\nHost: shop.example:81\r\nConnection: close\r\n\r\n")
    headers = dict(await _json_headers(answer))
    assert headers.pop("Host") == "shop.example:81"
    assert headers.pop("X-Forwarded-For") == "127.0.0.1"
    assert headers.pop("X-Forwarded-Proto") == "http"
    assert headers.pop("X-Forwarded-Host") == "shop.example:81"
    assert len(headers.pop("X-Request-ID")) == 32
    assert headers.pop("traceparent").startswith("00-")
    assert headers == {}


async def _json_headers(answer: bytes):
    import json

    return json.loads(answer.partition(b"\r\n\r\n")[2])["headers"]


async def test_hop_by_hop_fields_end_here_and_listed_ones_with_them(net):
    edge = await net.proxy(await net.serve(echo))
    answer = await edge.raw(
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close, X-Once, Authorization\r\nX-Once: 1\r\n"
        b"Authorization: Bearer t\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: Basic eA==\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nTrailer: X-T\r\nX-Stays: 1\r\n\r\n"
    )
    names = {name.lower() for name, _ in await _json_headers(answer)}
    assert "x-stays" in names
    assert "authorization" in names, "a client must not be able to have end-to-end fields dropped"
    assert names.isdisjoint(
        {
            "connection",
            "x-once",
            "keep-alive",
            "te",
            "proxy-authorization",
            "upgrade",
            "http2-settings",
            "trailer",
        }
    )


async def test_response_fields_pass_but_not_those_of_the_hop(net):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
            b"Connection: X-Once\r\nX-Once: 1\r\nKeep-Alive: timeout=5\r\nX-Name: caf\xe9\r\nServer: theirs\r\n\r\nok"
        )
        await writer.drain()

    edge = await net.proxy(await net.serve_raw(answer))
    client = await net.client()
    async with client.get(edge.url + "/") as response:
        assert (response.status, response.reason) == (200, "Fine")
        assert response.headers.getall("Set-Cookie") == ["a=1", "b=2"]
        assert response.headers["Server"] == "theirs"
        assert response.headers["X-Name"] == "café"
        assert "Content-Type" not in response.headers
        assert "X-Once" not in response.headers
        assert "Keep-Alive" not in response.headers
        assert await response.read() == b"ok"


async def test_compressed_bodies_pass_as_they_are(net):
    body = gzip.compress(b"text" * 1000)

    async def handler(request):
        assert await request.read() == body
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    edge = await net.proxy(await net.serve(handler))
    client = await net.client()
    async with client.post(edge.url, data=body, headers={"Content-Encoding": "gzip"}) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert await response.read() == body


async def test_redirects_are_the_clients_business(net):
    async def handler(request):
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/elsewhere"})

    edge = await net.proxy(await net.serve(handler))
    client = await net.client()
    async with client.get(edge.url, allow_redirects=False) as response:
        assert response.status == 302
        assert response.headers["Location"] == "http://127.0.0.1:1/elsewhere"


@pytest.mark.parametrize("status", [204, 304])
async def test_bodiless_statuses_keep_the_connection(net, status):
    async def handler(request):
        return web.Response(status=status, headers={"ETag": '"1"'})

    edge = await net.proxy(await net.serve(handler))
    client = await net.client()
    for _ in range(2):
        async with client.get(edge.url) as response:
            assert response.status == status
            assert response.headers["ETag"] == '"1"'
            assert await response.read() == b""


async def test_head_has_the_length_and_no_body(net):
    async def handler(request):
        return web.Response(body=b"x" * 1234)

    edge = await net.proxy(await net.serve(handler))
    answer = await edge.raw(b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: 1234" in head
    assert body == b""


async def test_http_10_clients_get_an_answer_that_ends_with_the_connection(net):
    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one")
        await response.write(b"two")
        return response

    edge = await net.proxy(await net.serve(handler))
    answer = await edge.raw(b"GET / HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200")
    assert b"chunked" not in answer
    assert answer.endswith(b"\r\n\r\nonetwo")


async def test_a_stream_arrives_piece_by_piece_while_it_goes_on(net):
    more = asyncio.Event()

    async def handler(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await more.wait()
        await response.write(b"data: 2\n\n")
        return response

    edge = await net.proxy(await net.serve(handler), timeout_s=0.3)
    client = await net.client()
    async with client.get(edge.url) as response:
        assert await response.content.readany() == b"data: 1\n\n"
        await asyncio.sleep(0.5)  # longer than the timeout, which counts only until an answer begins
        more.set()
        assert await response.content.readany() == b"data: 2\n\n"


async def test_an_upload_arrives_piece_by_piece_and_resets_the_timeout(net):
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(request):
        async for piece in request.content.iter_any():
            arrived.put_nowait(piece)
        return web.Response(text="done")

    edge = await net.proxy(await net.serve(handler), timeout_s=0.4)
    client = await net.client()

    async def body():
        for number in range(4):
            yield str(number).encode()
            assert await arrived.get() == str(number).encode()
            await asyncio.sleep(0.2)

    async with client.post(edge.url, data=body()) as response:
        assert response.status == 200


async def test_an_answer_may_begin_before_the_request_ends(net):
    """Both directions are open at once, as gRPC-Web or `curl -T -` like it."""

    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece.upper())
        return response

    edge = await net.proxy(await net.serve(handler))
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    assert (await reader.readuntil(b"1\r\nA\r\n")).startswith(b"HTTP/1.1 200")
    writer.write(b"1\r\nb\r\n0\r\n\r\n")
    assert await reader.readuntil(b"0\r\n\r\n") == b"1\r\nB\r\n0\r\n\r\n"
    writer.close()


async def test_expect_continue_is_answered_when_the_upstream_is_there(net):
    edge = await net.proxy(await net.serve(echo))
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"hi")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    writer.close()


async def test_expect_continue_gets_the_refusal_instead_when_there_is_one(net):
    edge = await net.proxy(None)
    answer = await edge.raw(
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", within=10
    )
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"Connection: close" in answer


# --- failures


async def error_of(response: aiohttp.ClientResponse):
    body = await response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message", "details", "request_id"}
    assert body["error"]["request_id"] == response.headers["X-Request-ID"]
    return body["error"]


async def test_a_refused_connection_is_503_until_the_module_was_up_and_502_after(net, unused_tcp_port):
    edge = await net.proxy(unused_tcp_port)
    client = await net.client()
    async with client.get(edge.url) as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        error = await error_of(response)
        assert error["code"] == "module_not_up"
        assert "default/blog" in error["message"]
    edge.target.answered = True
    async with client.get(edge.url) as response:
        assert response.status == 502
        assert "127.0.0.1" not in (await error_of(response))["message"], "addresses are for the log"


BROKEN = {
    "closes at once": b"",
    "is not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "breaks off in the fields": b"HTTP/1.1 200 OK\r\nContent-",
    "has a bad length": b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n",
    "has length and coding": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "has two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "has an unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "has endless fields": b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n",
    "has a control character": b"HTTP/1.1 200 OK\r\nX-A: \x01\r\nContent-Length: 0\r\n\r\n",
    "switches protocols unasked": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
async def test_an_unusable_answer_is_502(net, answer):
    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    edge = await net.proxy(await net.serve_raw(handler))
    client = await net.client()
    async with client.post(edge.url) as response:
        assert response.status == 502
        assert (await error_of(response))["code"] == "bad_gateway"


async def test_a_silent_upstream_is_504_after_the_timeout_and_let_go(net):
    gone = asyncio.Event()

    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read() == b""
        gone.set()

    edge = await net.proxy(await net.serve_raw(handler), timeout_s=0.2)
    client = await net.client()
    async with client.get(edge.url) as response:
        assert response.status == 504
        assert (await error_of(response))["code"] == "timeout"
    await asyncio.wait_for(gone.wait(), 2)


async def test_a_client_that_stops_in_mid_body_is_408(net):
    edge = await net.proxy(await net.serve(echo), timeout_s=0.2)
    answer = await edge.raw(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nonly", within=10)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer


async def test_a_body_that_turns_malformed_in_the_middle_never_becomes_a_whole_one(net):
    """aiohttp's parser does not tell the reader of the body (3.14), so that it ends with the timeout: 408, not 400."""
    received = asyncio.get_running_loop().create_future()

    async def handler(reader, writer):
        received.set_result(await reader.read())

    edge = await net.proxy(await net.serve_raw(handler), timeout_s=0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
    await asyncio.sleep(0.1)
    writer.write(b"nonsense\r\nGET /second HTTP/1.1\r\nHost: h\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 408")), answer
    assert answer.count(b"HTTP/1.1 ") == 1
    passed = await asyncio.wait_for(received, 2)
    assert passed.endswith(b"5\r\nfirst\r\n"), "without the last chunk, and without the second request"


async def test_an_unexpected_error_is_500_without_a_word_about_it(net, caplog):
    edge = await net.proxy(None)

    def broken(host, path):
        raise RuntimeError("secret detail")

    edge.proxy._find = broken
    client = await net.client()
    async with client.get(edge.url) as response:
        assert response.status == 500
        assert "secret" not in await response.text()
        assert (await error_of(response))["code"] == "internal"


async def test_requests_are_logged_once_with_what_is_needed_to_find_them(net):
    edge = await net.proxy(await net.serve(echo))
    with structlog.testing.capture_logs() as lines:
        await edge.raw(
            b"GET /a?token=x HTTP/1.1\r\nHost: h\r\nX-Request-ID: id-1\r\nConnection: close\r\n\r\n"
        )
        edge.target.upstream = None
        await edge.raw(b"GET /b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    good, bad = (line for line in lines if line["event"] == "request")
    assert (good["path"], good["status"], good["module"], good["request_id"]) == (
        "/a",
        200,
        "default/blog",
        "id-1",
    )
    assert (bad["status"], bad["code"], bad["log_level"]) == (503, "module_not_up", "warning")


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_an_answer_cut_short_is_never_taken_for_a_whole_one(net, framing):
    head = {
        "length": b"Content-Length: 100000\r\n\r\n",
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n186a0\r\n",
        "close": b"Transfer-Encoding: chunked\r\n\r\n186a0\r\n",
    }[framing]

    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"x" * 50_000)
        await writer.drain()
        await asyncio.sleep(0.1)

    edge = await net.proxy(await net.serve_raw(handler))
    version = b"1.0" if framing == "close" else b"1.1"
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"GET / HTTP/" + version + b"\r\nHost: h\r\n\r\n")
    received = b""
    ended = "cleanly"
    try:
        while piece := await reader.read(65536):
            received += piece
    except ConnectionResetError:
        ended = "reset"
    writer.close()
    if framing == "close":
        assert ended == "reset"
    else:
        assert b"0\r\n\r\n" not in received[-8:]
        assert len(received) < 60_000


@pytest.mark.parametrize("phase", ["before the answer", "in mid-answer", "in mid-upload"])
async def test_a_client_that_goes_away_takes_the_upstreams_request_with_it(net, phase):
    started, gone = asyncio.Event(), asyncio.Event()

    async def handler(request):
        try:
            if phase == "in mid-answer":
                response = web.StreamResponse()
                await response.prepare(request)
                await response.write(b"x")
            started.set()
            if phase == "in mid-upload":
                await request.read()
            await asyncio.sleep(30)
        except (asyncio.CancelledError, ConnectionError):
            gone.set()
            raise

    edge = await net.proxy(await net.serve(handler), timeout_s=20)
    _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nonly")
    if phase != "in mid-upload":
        writer.write(b" more")
    await asyncio.wait_for(started.wait(), 2)
    writer.transport.abort()
    await asyncio.wait_for(gone.wait(), 2)


async def test_a_request_that_may_be_repeated_survives_a_stale_connection(net):
    """The pool may hold a connection that the upstream is just closing; a GET is then sent once more."""
    connections = 0

    async def handler(reader, writer):
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        if connections == 1:
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    edge = await net.proxy(await net.serve_raw(handler))
    client = await net.client()
    async with client.get(edge.url) as response:
        assert response.status == 200
    assert connections == 2


async def test_connections_to_the_upstream_are_kept(net):
    peers = set()

    async def handler(request):
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response(text="ok")

    edge = await net.proxy(await net.serve(handler))
    for _ in range(5):
        assert b"200 OK" in await edge.raw(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert len(peers) == 1
