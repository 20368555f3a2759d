"""WebSockets through the proxy: messages, control frames, close codes, subprotocols, bounds, refusals."""

import asyncio
import struct

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from moorage_gateway.forward import websocket


async def echo(request):
    socket = web.WebSocketResponse(protocols=("chat.v2", "chat.v1"))
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT and message.data.startswith("close "):
            _, code, reason = message.data.split(" ", 2)
            await socket.close(code=int(code), message=reason.encode())
        elif message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def open_socket(net, handler=echo, **options):
    edge = await net.proxy(await net.serve(handler), timeout_s=options.pop("timeout_s", 5))
    client = await net.client()
    return edge, await client.ws_connect(edge.url + "/ws?x=%2F", **options)


async def test_text_and_binary_pass_both_ways(net):
    _, socket = await open_socket(net)
    await socket.send_str("grüße")
    assert (await socket.receive()).data == "grüße"
    await socket.send_bytes(b"\x00\xff" * 100_000)
    assert (await socket.receive()).data == b"\x00\xff" * 100_000
    await socket.close()


async def test_the_subprotocol_is_the_upstreams_choice(net):
    _, socket = await open_socket(net, protocols=("chat.v1", "other"))
    assert socket.protocol == "chat.v1"
    await socket.close()


async def test_no_subprotocol_in_common_is_none_at_all(net):
    _, socket = await open_socket(net, protocols=("other",))
    assert socket.protocol is None
    await socket.close()


async def test_pings_and_pongs_are_those_of_the_two_ends(net):
    heard = []

    async def handler(request):
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        heard.append(await socket.receive())
        await socket.pong(b"to you")
        heard.append(await socket.receive())
        return socket

    _, socket = await open_socket(net, handler, autoping=False)
    await socket.ping(b"to him")
    answer = await socket.receive()
    assert (answer.type, answer.data) == (WSMsgType.PONG, b"to you")
    await socket.pong(b"unasked")
    await socket.receive()
    assert [(m.type, m.data) for m in heard] == [(WSMsgType.PING, b"to him"), (WSMsgType.PONG, b"unasked")]


@pytest.mark.parametrize("code", [1000, 1001, 1008, 3000, 4999])
async def test_the_upstreams_close_code_and_reason_reach_the_client(net, code):
    _, socket = await open_socket(net)
    await socket.send_str(f"close {code} because of it")
    message = await socket.receive()
    assert message.type is WSMsgType.CLOSE
    assert (message.data, message.extra) == (code, "because of it")


@pytest.mark.parametrize("code", [1000, 1001, 4001])
async def test_the_clients_close_code_reaches_the_upstream(net, code):
    closed = asyncio.get_running_loop().create_future()

    async def handler(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        message = await socket.receive()
        closed.set_result((message.type, message.data, message.extra))
        return socket

    _, socket = await open_socket(net, handler)
    await socket.close(code=code, message=b"bye")
    assert await asyncio.wait_for(closed, 2) == (WSMsgType.CLOSE, code, "bye")
    assert socket.close_code == code


async def test_a_client_that_vanishes_is_going_away_for_the_upstream(net):
    closed = asyncio.get_running_loop().create_future()
    opened = asyncio.Event()

    async def handler(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        opened.set()
        message = await socket.receive()
        closed.set_result(message.data)
        return socket

    edge = await net.proxy(await net.serve(handler))
    _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(HANDSHAKE)
    await asyncio.wait_for(opened.wait(), 2)
    writer.transport.abort()
    assert await asyncio.wait_for(closed, 2) == 1001


async def test_an_upstream_that_vanishes_is_an_internal_error_for_the_client(net):
    async def handler(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        request.transport.abort()
        return socket

    _, socket = await open_socket(net, handler)
    await socket.send_str("go")
    message = await asyncio.wait_for(socket.receive(), 2)
    assert (message.type, message.data) == (WSMsgType.CLOSE, 1011)


async def test_a_message_beyond_the_bound_is_1009_as_soon_as_its_length_is_known(net):
    closed = asyncio.get_running_loop().create_future()

    async def handler(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        closed.set_result((await socket.receive()).data)
        return socket

    edge = await net.proxy(await net.serve(handler))
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"\x82\xff" + struct.pack("!Q", websocket.MAX_MESSAGE + 1) + b"mask")
    frame = await asyncio.wait_for(reader.readexactly(4), 2)
    assert (frame[0], frame[2:]) == (0x88, struct.pack("!H", 1009))
    assert await asyncio.wait_for(closed, 2) == 1001
    writer.close()


async def test_a_slow_reader_holds_the_sender_back(net):
    """Without back-pressure the proxy would take 200 MB here, whatever the client reads."""
    sent = 0

    async def handler(request):
        nonlocal sent
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for _ in range(200):
            await socket.send_bytes(b"x" * 1_000_000)
            sent += 1
        return socket

    edge = await net.proxy(await net.serve(handler))
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port, limit=1024)
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    before = -1
    while (
        not sent or sent != before
    ):  # until nothing goes on any more: neither its buffers fill, nor the rest comes
        before = sent
        await asyncio.sleep(0.5)
    assert sent < 50
    writer.transport.abort()


async def test_a_refused_handshake_is_answered_with_the_upstreams_own_words(net):
    async def handler(request):
        return web.json_response({"why": "no chat today"}, status=403, headers={"X-Why": "policy"})

    edge = await net.proxy(await net.serve(handler))
    client = await net.client()
    async with client.get(edge.url, headers=HANDSHAKE_FIELDS) as response:
        assert response.status == 403
        assert response.headers["X-Why"] == "policy"
        assert await response.json() == {"why": "no chat today"}


async def test_a_redirected_handshake_is_not_followed(net):
    async def handler(request):
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})

    edge = await net.proxy(await net.serve(handler))
    client = await net.client()
    async with client.get(edge.url, headers=HANDSHAKE_FIELDS, allow_redirects=False) as response:
        assert response.status == 302


async def test_the_handshakes_cookies_reach_the_client(net):
    async def handler(request):
        socket = web.WebSocketResponse()
        socket.headers["Set-Cookie"] = "seen=1"
        await socket.prepare(request)
        return socket

    edge = await net.proxy(await net.serve(handler))
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(HANDSHAKE)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    writer.close()
    assert head.startswith(b"http/1.1 101")
    assert b"set-cookie: seen=1" in head
    assert b"permessage-deflate" not in head
    assert head.count(b"sec-websocket-accept") == 1


async def test_an_upstream_without_an_answer_to_the_handshake_is_504(net):
    async def handler(reader, writer):
        await reader.read()

    edge = await net.proxy(await net.serve_raw(handler), timeout_s=0.2)
    client = await net.client()
    with pytest.raises(aiohttp.WSServerHandshakeError) as failure:
        await client.ws_connect(edge.url)
    assert failure.value.status == 504


async def test_an_upstream_that_is_down_is_502(net, unused_tcp_port):
    edge = await net.proxy(unused_tcp_port)
    edge.target.answered = True
    client = await net.client()
    with pytest.raises(aiohttp.WSServerHandshakeError) as failure:
        await client.ws_connect(edge.url)
    assert failure.value.status == 502


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=!"}, 400),
    ],
)
async def test_a_bad_handshake_never_reaches_the_upstream(net, change, status):
    async def handler(request):
        raise AssertionError("reached")

    edge = await net.proxy(await net.serve(handler))
    client = await net.client()
    async with client.get(edge.url, headers=HANDSHAKE_FIELDS | change) as response:
        assert response.status == status
        assert (await response.json())["error"]["code"] == "bad_request"


async def test_another_upgrade_is_ignored(net):
    async def handler(request):
        assert "Upgrade" not in request.headers
        return web.Response(text="plain")

    edge = await net.proxy(await net.serve(handler))
    client = await net.client()
    for protocol in ("h2c", "tcp", "TLS/1.2"):
        headers = {"Connection": "Upgrade", "Upgrade": protocol}
        async with client.get(edge.url, headers=headers) as response:
            assert response.status == 200
            assert await response.text() == "plain"


async def test_a_drain_closes_both_sides_with_1001(net):
    closed = asyncio.get_running_loop().create_future()

    async def handler(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        message = await socket.receive()
        closed.set_result(message.data)
        return socket

    edge, socket = await open_socket(net, handler)
    assert len(edge.proxy.sockets) == 1
    edge.proxy.sockets.close_all()
    message = await socket.receive()
    assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
    assert await asyncio.wait_for(closed, 2) == 1001
    assert len(edge.proxy.sockets) == 0


HANDSHAKE_FIELDS = {
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Extensions": "permessage-deflate",
}
HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: h\r\n" + "".join(f"{k}: {v}\r\n" for k, v in HANDSHAKE_FIELDS.items()) + "\r\n"
).encode()
