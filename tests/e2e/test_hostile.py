"""Whatever peers send, to whichever port: the others chat on, memory stays, the log is clean."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from tests.integration.gateway.certificate import write_certificate
from tests.integration.gateway.kit import client_context
from tests.kit.server import ServerProcess, running_server
from tests.kit.wkclient import ConnectionLostError, TestClient
from wkhost.link.contract import API_WORKER, LINK_PROTOCOL, OPERATOR
from wkhost.link.framing import Hello
from wkhost.link.runtime import find_link_socket
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.connection import Form
from wkhost.protocol.packets import Send

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

PERSON = 1
GROUP = 2
LIMIT_S = 60
PROBE_S = 1.0
TRIES = 3
GROWTH_BYTES = 64 << 20
"""How much larger an attack may make the server and its worker, even for a moment."""
MANAGER_TOKEN = "manager-secret"
HALF_OPEN = 2000
DRIPPING = 50
CONNECT_TIMEOUT_S = 2.0
AUTH_FAIL = 2

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


class Target:
    """A server under attack, and two users whose chat must always be quick."""

    def __init__(self, server: ServerProcess, a: TestClient, b: TestClient) -> None:
        self.server = server
        self._a = a
        self._b = b
        self._sent = 0
        self._peak_memory_bytes = server.peak_memory_bytes()

    async def probe(self) -> None:
        """A message, a new login and an API request, each within a second; memory as before.

        A try that is too slow may be the fault of other work on the machine; `TRIES` are not.
        """
        for step in (self._chat, self._log_in, self._ask):
            took_s: list[float] = []
            while not took_s or (took_s[-1] >= PROBE_S and len(took_s) < TRIES):
                begin = trio.current_time()
                await step()
                took_s.append(trio.current_time() - begin)
            assert took_s[-1] < PROBE_S, (step.__name__, took_s)
        assert self.server.peak_memory_bytes() < self._peak_memory_bytes + GROWTH_BYTES

    async def _chat(self) -> None:
        self._sent += 1
        payload = b'{"type":1,"content":"%d"}' % self._sent
        ack = await self._a.send("probe-b", PERSON, payload)
        assert (ack.reason_code, ack.message_seq) == (1, self._sent)
        got = await self._b.recv()
        assert (got.message_id, got.payload) == (ack.message_id, payload)

    async def _log_in(self) -> None:
        async with await TestClient.connect(*self.server.address(), "newcomer") as client:
            assert client.connack.reason_code == 1

    async def _ask(self) -> None:
        async with self.http() as client:
            assert (await client.get("/health")).json() == {"status": "ok"}

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.server.api, trust_env=False, headers={"token": MANAGER_TOKEN}, timeout=30
        )


@asynccontextmanager
async def target(folder: Path, **settings: Any) -> AsyncIterator[Target]:
    certificate = folder / "server.pem"
    write_certificate(certificate, "hostile")
    tree = {
        "wssAddr": "wss://127.0.0.1:0",
        "wssConfig": {"certFile": str(certificate), "keyFile": str(certificate)},
        "managerToken": MANAGER_TOKEN,
        "connectTimeout": f"{CONNECT_TIMEOUT_S:g}s",
        **settings,
    }
    with trio.fail_after(LIMIT_S):
        async with (
            running_server(folder / "server", tree) as server,
            await TestClient.connect(*server.address(), "probe-a") as a,
            await TestClient.connect(*server.address(), "probe-b") as b,
        ):
            found = Target(server, a, b)
            await found.probe()
            yield found
            await found.probe()
        assert server.trouble() == []


async def assault(stream: trio.abc.Stream, *pieces: bytes) -> bytes:
    """Send, say that no more comes, and read what the server says until it closes."""
    said = b""
    async with stream:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for piece in pieces:
                await stream.send_all(piece)
            if isinstance(stream, trio.SocketStream):
                await stream.send_eof()
        with suppress(trio.BrokenResourceError), trio.move_on_after(PROBE_S):
            while chunk := await stream.receive_some(65536):
                said += chunk
    return said


def garbage() -> Iterator[bytes]:
    """Bytes that are no login in any form."""
    rng = random.Random(5100)
    for size in (1, 2, 7, 100, 4_000, 70_000):
        yield rng.randbytes(size)
    for kind in range(16):
        yield bytes([kind << 4 | 15])
        yield bytes([kind << 4, 0])
        yield bytes([kind << 4, 3]) + b"abc"
        yield bytes([kind << 4]) + b"\xff\xff\xff\x7f" + b"x" * 1000
        yield bytes([kind << 4]) + b"\xff\xff\xff\xff\xff\xff"
    yield b"\x10\x0b\x05\x01\x00\x02\xff\xfe\x00\x02\xc3\x28\x00"  # no UTF-8
    yield b"PROXY TCP4 " + b"1" * 10_000
    yield b"\r\n\r\n\x00\r\nQUIT\n" + b"\x21\x11\xff\xff" + b"\x00" * 66_000
    yield b"GET / HTTP/1.1\r\n\r\n"
    yield b"\x16\x03\x01\xff\xff" + b"\x01" * 3000  # a broken TLS hello
    yield from json_bombs("connect")


def json_bombs(method: str) -> Iterator[bytes]:
    head = f'{{"method":"{method}","id":"1","params":'.encode()
    yield head + b'{"a":' * 50_000
    yield head + b"[" * 60_000
    yield head + b"[" * 30_000 + b"]" * 30_000 + b"}"
    yield head + b'{"uid":' + b"[{}," * 5_000 + b"{}" + b"]" * 5_000 + b"}}"
    yield b'{"' + b"\\" * 60_000
    yield b"{}" * 20_000
    yield b'{"method":"%s","id":%s,"params":{}}' % (method.encode(), b"9" * 5000)
    yield b'{"method":"%s","id":1e999,"params":null}' % method.encode()
    yield b'{"method":"%s","id":"\\ud800","params":{"uid":"\\udfff"}}' % method.encode()
    yield b'{"jsonrpc":"9","method":[],"id":{},"params":true}'
    yield b"[" * 60_000
    yield b"{\xff\xfe}"


def websocket_frames() -> Iterator[bytes]:
    """What a peer may send once the upgrade is done; masks are zero."""
    mask = b"\x00" * 4
    yield b"\x82\xff" + struct.pack(">Q", 2**63 - 1) + mask + b"x"
    yield b"\x82\xff" + b"\xff" * 8 + mask + b"x"
    yield b"\x82\x05hello"  # not masked
    yield b"\xf2\x80" + mask  # reserved bits
    yield b"\x83\x80" + mask  # reserved opcode
    yield b"\x80\x80" + mask  # a continuation of nothing
    yield (b"\x02\x80" + mask) + (b"\x00\x80" + mask) * 20_000  # empty fragments for ever
    yield (b"\x89\xfd" + mask + b"p" * 125) * 2_000  # pings
    yield b"\x09\x80" + mask  # a fragmented ping
    yield b"\x88\x81" + mask + b"\x03"  # half a close code
    yield b"\x82\xfe\xff\xff" + mask + bytes(65_535)
    yield from (
        b"\x82\xfe" + struct.pack(">H", len(each)) + mask + each
        for each in garbage()
        if 125 < len(each) < 65_536
    )


async def test_garbage_on_the_client_ports_harms_nobody(tmp_path: Path) -> None:
    async with target(tmp_path) as found:
        server = found.server

        async def tls() -> trio.SSLStream[trio.SocketStream]:
            stream = await trio.open_tcp_stream(*server.address("wss"))
            return trio.SSLStream(stream, client_context(), https_compatible=True)

        for data in garbage():
            await assault(await trio.open_tcp_stream(*server.address("tcp")), data)
        await found.probe()
        for kind in ("ws", "wss"):
            for data in garbage():
                await assault(await trio.open_tcp_stream(*server.address(kind)), data)
        await found.probe()
        for data in websocket_frames():
            stream = await trio.open_tcp_stream(*server.address("ws"))
            await stream.send_all(UPGRADE + b"\r\n")
            assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 101")
            await assault(stream, data)
        await found.probe()
        for head in (b"X: " + b"y" * 1_000_000, b"a: b\r\n" * 50_000, b"\x00\xff: \x01\r\n\r\n"):
            await assault(await trio.open_tcp_stream(*server.address("ws")), UPGRADE, head)
        for data in (UPGRADE + b"X: " + b"y" * 100_000, b"\x00" * 70_000):
            await assault(await tls(), data)


def bad_frames() -> Iterator[bytes]:
    """What an enemy may send after a login, in the binary form."""
    rng = random.Random(5200)
    for size in (3, 100, 5_000):
        yield rng.randbytes(size)
    for kind in range(1, 13):
        yield bytes([kind << 4]) + b"\x00"
        yield bytes([kind << 4 | 15]) + b"\x14" + b"\xff" * 20
        yield bytes([kind << 4]) + b"\x14" + b"\x00" * 20
    yield b"\x30\x81\x80\x80\x80\x00"
    yield b"\x30\xff\xff\x7f" + b"\x00" * 1000  # announced, never sent
    yield b"\x62\x0c" + struct.pack(">qI", -1, 0xFFFFFFFF)  # a negative message_id
    yield b"\x62\x0c" + struct.pack(">qI", -(2**63), 0)
    yield b"\xa0\x0d\x00\x00\x00\x00\x01g\x02\xff\x00\x00\x00\x00\x00"
    yield b"\x70" * 20_000


def bad_sends(conn: ClientConnection) -> Iterator[bytes]:
    """SENDs that decode and are wrong in what they say."""
    for channel_id in (
        "",
        "@",
        "a@",
        "@a",
        "a@b@c",
        "x____cmd",
        "\x00",
        "\u202e" * 300,
        "c" * 32_767,
    ):
        for channel_type in (0, 1, 2, 3, 5, 6, 10, 11, 255):
            yield conn.send(Send(1, "", channel_id, channel_type, b"{}", flags=15))
    yield conn.send(Send(2**32 - 1, "n" * 32_767, "u", 1, b"", expire=2**32 - 1))
    yield conn.send(Send(1, "n", "u", 1, b"x" * 600_000))
    good = conn.send(Send(1, "n", "u", 1, b"hello"))
    yield good[:-1]
    yield good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    yield good * 200


async def test_enemies_that_are_logged_in_harm_only_themselves(tmp_path: Path) -> None:
    async with target(tmp_path) as found:
        address = found.server.address()
        for data in bad_frames():
            await assault((await TestClient.connect(*address, "enemy")).stream, data)
        await found.probe()
        enemy = await TestClient.connect(*address, "enemy")
        data = b"".join(bad_sends(enemy.conn))
        await assault(enemy.stream, data)
        await found.probe()
        for method in ("send", "ping", "recvack", "subscribe", "disconnect", "nothing"):
            for data in json_bombs(method):
                client = await TestClient.connect(*address, "enemy", form=Form.JSONRPC)
                await assault(client.stream, data)
        await found.probe()
        nested = (
            b'{"method":"send","id":"%d","params":{"channelId":"u","channelType":1,"payload":%s}}'
        )
        client = await TestClient.connect(*address, "enemy", form=Form.JSONRPC)
        await assault(
            client.stream,
            b"".join(
                nested % (i, b"[" * depth + b"]" * depth) for i, depth in enumerate((50, 900))
            ),
            nested % (3, b"[" * 100_000),
        )


async def test_reserved_names_are_refused_and_the_manager_needs_its_token(tmp_path: Path) -> None:
    async with target(tmp_path) as found:
        address = found.server.address()
        for form in (Form.BINARY, Form.JSONRPC):
            for token in ("", "guess", "\x00", MANAGER_TOKEN.upper()):
                client = await TestClient.connect(*address, "____manager", token, form=form)
                assert client.connack.reason_code == AUTH_FAIL
                await client.close()
            manager = await TestClient.connect(*address, "____manager", MANAGER_TOKEN, form=form)
            assert manager.connack.reason_code == 1
            # It has no right of its own: it is no member of the group.
            assert (await manager.send("g", GROUP, b"{}")).reason_code == 3
            await manager.close()
            for uid, device_id in (("____system", "d"), ("enemy", "____device"), ("a@b", "d")):
                with suppress(ConnectionLostError):
                    client = await TestClient.connect(*address, uid, device_id=device_id, form=form)
                    async with client:
                        assert client.connack.reason_code != 1
            await found.probe()


async def test_half_open_and_dripping_connections_are_closed_at_the_connect_timeout(
    tmp_path: Path,
) -> None:
    async with target(tmp_path) as found:
        server = found.server

        async def until_closed(stream: trio.SocketStream, at_least: float) -> None:
            async with stream:
                with suppress(trio.BrokenResourceError):
                    assert await stream.receive_some(1) == b""
            assert trio.current_time() - at_least > CONNECT_TIMEOUT_S - 1

        async def drip(kind: str, data: bytes) -> None:
            stream = await trio.open_tcp_stream(*server.address(kind))
            begin = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_closed, stream, begin)
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    for i in range(len(data)):
                        await stream.send_all(data[i : i + 1])
                        await trio.sleep(0.1)
            assert trio.current_time() - begin < CONNECT_TIMEOUT_S + 2

        connect = ClientConnection("slow" * 50).connect(0)
        async with trio.open_nursery() as nursery:
            for i in range(DRIPPING):
                kind, data = (("tcp", connect), ("ws", UPGRADE), ("wss", b"\x16\x03\x01\x02\x00"))[
                    i % 3
                ]
                nursery.start_soon(drip, kind, data + bytes(100))
            for i in range(HALF_OPEN):
                kind = ("tcp", "ws", "wss")[i % 3]
                stream = await trio.open_tcp_stream(*server.address(kind))
                nursery.start_soon(until_closed, stream, trio.current_time())
            await found.probe()


def deadly_requests() -> Iterator[tuple[str, dict[str, Any], int | None]]:
    """(path, body, status): what ends other servers, and its neighbours."""
    big = base64.b64encode(b"x" * 1_048_500).decode()
    long = "x" * 32_768
    target: dict[str, Any] = {"channel_id": "g", "channel_type": GROUP}
    for uids in ([""], ["", "u"], [" "], [None], ["u"] * 1000):
        yield "/channel/subscriber_remove", {**target, "subscribers": uids}, None
        yield "/channel/subscriber_add", {**target, "subscribers": uids}, None
        yield "/channel/blacklist_add", {**target, "uids": uids}, None
        yield "/channel/whitelist_add", {**target, "uids": uids}, None
        yield "/user/systemuids_add", {"uids": uids}, None
    person: dict[str, Any] = {"channel_id": "u", "channel_type": PERSON, "from_uid": "v"}
    yield "/message/send", {**person, "payload": big}, 400
    yield "/message/send", {**person, "payload": "e30=", "client_msg_no": long}, 400
    yield "/message/send", {**person, "payload": "e30=", "from_uid": long}, 400
    yield "/message/send", {**person, "payload": "e30=", "channel_id": long}, 400
    yield "/message/sendbatch", {"from_uid": "v", "subscribers": [""], "payload": "e30="}, None
    yield "/message/sendbatch", {"from_uid": long, "subscribers": ["u"], "payload": "e30="}, 400
    yield "/message/sendbatch", {"from_uid": "v", "subscribers": ["u"], "payload": big}, None
    yield "/user/token", {"uid": long, "token": "t"}, 400
    yield "/user/token", {"uid": "u", "token": long}, 400
    yield "/channel", {"channel_id": long, "channel_type": GROUP}, 400
    yield "/channel/messagesync", {**person, "login_uid": "v", "limit": 2**62}, 200
    yield "/channel/messagesync", {**person, "login_uid": "v", "limit": -(2**63)}, 200
    yield "/channel/messagesync", {**person, "login_uid": "v", "start_message_seq": 2**64 - 1}, None
    yield "/channel/messagesync", {**person, "login_uid": "v", "end_message_seq": 2**70}, 400
    yield "/conversation/sync", {"uid": "v", "msg_count": 2**62}, None


def raw_requests() -> Iterator[bytes]:
    head = f"POST /message/send HTTP/1.1\r\nHost: x\r\ntoken: {MANAGER_TOKEN}\r\n".encode()
    yield b"\x00" * 70_000
    yield b"GET " + b"/" * 200_000
    yield head + b"X: " + b"y" * 1_000_000
    yield head + b"a: b\r\n" * 50_000
    yield head + b"Content-Length: 99999999999999999999\r\n\r\n{}"
    yield head + b"Content-Length: -1\r\n\r\n{}"
    yield head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}"
    yield head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}"
    yield head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 20_000
    yield head + b"Content-Length: 100000\r\n\r\n{"
    yield head + b"Content-Length: 67108864\r\n\r\n" + bytes(64 << 20)
    yield b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2_000
    yield UPGRADE + b"\r\n"
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100)


def deep_bodies() -> Iterator[bytes]:
    yield b"[" * 1_000_000
    yield b'{"a":' * 300_000
    yield b'{"payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield b'{"payload":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}"
    yield b'{"channel_type":' + b"9" * 1_000_000 + b"}"
    yield b'{"channel_id":"' + b"\\ud800" * 100_000 + b'"}'
    yield b"\xff" * 1_000_000
    yield b'{"subscribers":[' + b'"u",' * 200_000 + b'"u"]}'


async def test_no_http_request_stops_the_server(tmp_path: Path) -> None:
    async with target(tmp_path) as found:
        async with found.http() as client:
            for path, body, status in deadly_requests():
                answer = await client.post(path, json=body)
                assert answer.status_code < 500, (path, answer.text)
                assert status in (None, answer.status_code), (path, str(body)[:200], answer.text)
            await found.probe()
            for value in (b"0", b"{}", b"[]", b'"u"'):
                content = b'{"subscribers":[' + (value + b",") * 2_500_000 + b"0]}"
                answer = await client.post("/message/send", content=content)
                assert answer.status_code == 400
            for content in deep_bodies():
                for path in ("/message/send", "/channel/subscriber_add", "/channel/messagesync"):
                    answer = await client.post(path, content=content)
                    assert answer.status_code == 400, (path, content[:50], answer.text)
            await found.probe()
        await found.probe()
        for data in raw_requests():
            await assault(await trio.open_tcp_stream(*found.server.address("http")), data)
        await found.probe()


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def link_garbage() -> Iterator[bytes]:
    rng = random.Random(5001)
    yield from (rng.randbytes(size) for size in (1, 4, 100, 10_000))
    yield b"\xff" * 8
    yield from (frame(body) for body in (b"", b"\x91" * 4000, b"\xc1" * 100))
    yield frame(msgspec.msgpack.encode(Hello(LINK_PROTOCOL, API_WORKER, "guess")))
    yield frame(msgspec.msgpack.encode(Hello(LINK_PROTOCOL + 1, OPERATOR)))


def batch_garbage() -> Iterator[bytes]:
    """What an accepted peer may send instead of a batch."""
    yield from map(
        frame,
        (
            b"",
            b"\x91" * 1_000_000,
            b"\xdd\xff\xff\xff\xff",
            b"\x91\x92\x01\x81\xa4type\xa4Nope",
            b"\x91\x92\x01\x81\xa4type\xabSendMessage",
            json.dumps({"a": 1}).encode(),
        ),
    )
    yield struct.pack(">I", 1 << 31)
    yield struct.pack(">I", 1 << 20) + b"x" * 1000


async def test_garbage_on_the_link_socket_harms_nobody(tmp_path: Path) -> None:
    async with target(tmp_path) as found:
        path = find_link_socket(found.server.root / "data" / "data")

        async def connect() -> trio.SocketStream:
            socket = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
            await socket.connect(str(path))
            return trio.SocketStream(socket)

        for data in link_garbage():
            assert b"Welcome" not in await assault(await connect(), data)
        hello = frame(msgspec.msgpack.encode(Hello(LINK_PROTOCOL, OPERATOR)))
        for data in batch_garbage():
            stream = await connect()
            await stream.send_all(hello)
            assert b"Welcome" in await stream.receive_some(1000)
            await assault(stream, data)
        assert await found.server.plugin("list") == []
