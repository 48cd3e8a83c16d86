"""A gateway with an echoing kernel behind it, and clients for every transport and form."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from tests.kit.wkclient import TestClient
from wkhost.delivery.boundary import ConnectRequest
from wkhost.gateway.settings import Address, BoundAddresses, GatewaySettings
from wkhost.gateway.sweep import Gateway
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.connection import Form
from wkhost.protocol.packets import Recv, Recvack, Send, Sendack

ANY_PORT: Address = ("127.0.0.1", 0)
NOW_MS = 1_700_000_000_000


def make_recv(payload: bytes = b"{}", *, seq: int = 1, flags: int = 0, sender: str = "x") -> Recv:
    return Recv(
        message_id=1000 + seq,
        message_seq=seq,
        timestamp=NOW_MS // 1000,
        from_uid=sender,
        channel_id=sender,
        channel_type=1,
        client_msg_no=f"no-{seq}",
        payload=payload,
        flags=flags,
    )


@dataclass
class EchoKernel:
    """An `Ingress` that accepts everybody, acks every SEND and delivers it to `channel_id`.

    `verdict` is called instead of accepting when set.
    """

    requests: list[ConnectRequest] = field(default_factory=list)
    sends: list[tuple[int, Send]] = field(default_factory=list)
    recvacks: list[tuple[int, Recvack]] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    conns: dict[str, int] = field(default_factory=dict)
    verdict: Callable[[ConnectRequest], None] | None = None
    largest_login_batch: int = 0
    gateway: Gateway = field(init=False)

    def connects(self, batch: Sequence[ConnectRequest]) -> None:
        self.largest_login_batch = max(self.largest_login_batch, len(batch))
        for request in batch:
            self.requests.append(request)
            self.conns[request.connect.uid] = request.conn_id
            if self.verdict is not None:
                self.verdict(request)
            else:
                self.gateway.accept(request.conn_id)
        self.gateway.flush()

    def packets(self, batch: Sequence[tuple[int, Send | Recvack]]) -> None:
        for conn_id, packet in batch:
            if isinstance(packet, Recvack):
                self.recvacks.append((conn_id, packet))
                continue
            self.sends.append((conn_id, packet))
            seq = len(self.sends)
            ack = Sendack(packet.client_seq, 1000 + seq, seq, 1, packet.flags)
            self.gateway.sendacks([(conn_id, ack)])
            to = self.conns.get(packet.channel_id)
            if to is not None:
                assert packet.payload is not None
                recv = make_recv(packet.payload, seq=seq, flags=packet.flags)
                self.gateway.recv(recv, [to])
        self.gateway.flush()

    def closed(self, conn_ids: Sequence[int]) -> None:
        self.gone += conn_ids


@dataclass
class Served:
    gateway: Gateway
    kernel: EchoKernel
    at: BoundAddresses
    streams: list[trio.abc.Stream] = field(default_factory=list)
    """Client ends that are closed with the server."""

    def address(self, transport: str) -> Address:
        address: Address | None = getattr(self.at, transport)
        assert address is not None
        return address


@asynccontextmanager
async def serve(settings: GatewaySettings | None = None) -> AsyncIterator[Served]:
    """Run a gateway (TCP on a free port unless told otherwise) for the time of the block."""
    kernel = EchoKernel()
    gateway = Gateway(settings or GatewaySettings(tcp=ANY_PORT), lambda: NOW_MS)
    kernel.gateway = gateway
    async with trio.open_nursery() as nursery:
        at: BoundAddresses = await nursery.start(gateway.run, kernel)
        served = Served(gateway, kernel, at)
        try:
            yield served
        finally:
            for stream in served.streams:
                await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def until(predicate: Callable[[], bool], *, within_s: float = 10) -> None:
    """Wait for something that only shows in the state of the server."""
    with trio.fail_after(within_s):
        while not predicate():  # noqa: ASYNC110 - statistics tell nobody when they change
            await trio.sleep(0.002)


class WebSocketStream(trio.abc.Stream):
    """The client's end of a WebSocket over another stream; one message per `receive_some`.

    `opcodes` has the opcode of each message received, `pongs` the data of each pong.
    """

    def __init__(self, under: trio.abc.Stream, *, text: bool = False, path: str = "/") -> None:
        self.under = under
        self.protocol = ClientProtocol(parse_uri(f"ws://test{path}"))
        self.text = text
        self.opcodes: list[Opcode] = []
        self.pongs: list[bytes] = []
        self.response: Response | None = None
        self._messages: list[bytes] = []

    async def open(self, headers: dict[str, str] | None = None) -> None:
        request = self.protocol.connect()
        for name, value in (headers or {}).items():
            request.headers[name] = value
        self.protocol.send_request(request)
        await self.flush()
        while self.response is None:
            await self._pump()
        if self.protocol.handshake_exc is not None:
            raise self.protocol.handshake_exc

    async def flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                await self.under.send_all(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        send = self.protocol.send_text if self.text else self.protocol.send_binary
        send(bytes(data))
        await self.flush()

    async def wait_send_all_might_not_block(self) -> None:
        await self.under.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while not self._messages:
            if not await self._pump():
                return b""
        return self._messages.pop(0)

    async def pump_until(self, predicate: Callable[[], bool]) -> None:
        while not predicate():
            assert await self._pump(), "the server closed"

    async def _pump(self) -> bool:
        data = await self.under.receive_some(65536)
        if not data:
            return False
        self.protocol.receive_data(bytes(data))
        for event in self.protocol.events_received():
            if isinstance(event, Response):
                self.response = event
            elif isinstance(event, Frame):
                if event.opcode is Opcode.PONG:
                    self.pongs.append(bytes(event.data))
                elif event.opcode in (Opcode.TEXT, Opcode.BINARY):
                    self.opcodes.append(event.opcode)
                    self._messages.append(bytes(event.data))
        return True

    async def aclose(self) -> None:
        await self.under.aclose()


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def open_stream(
    served: Served,
    transport: str = "tcp",
    *,
    text: bool = False,
    headers: dict[str, str] | None = None,
    path: str = "/",
) -> trio.abc.Stream:
    """Connect by `transport`; no login."""
    host, port = served.address(transport)
    stream: trio.abc.Stream = await trio.open_tcp_stream(host, port)
    served.streams.append(stream)
    if transport == "tcp":
        return stream
    if transport == "wss":
        stream = trio.SSLStream(
            stream, client_context(), server_hostname="localhost", https_compatible=True
        )
    websocket = WebSocketStream(stream, text=text, path=path)
    await websocket.open(headers)
    return websocket


async def login_over(stream: trio.abc.Stream, uid: str, form: Form = Form.BINARY) -> TestClient:
    """Log in and wait for the verdict."""
    conn = ClientConnection(uid, form=form)
    await stream.send_all(conn.connect(int(time.time() * 1000)))
    while conn.connack is None:
        data = await stream.receive_some()
        assert data, "the server closed before CONNACK"
        conn.receive(bytes(data))
    return TestClient(stream, conn)


async def login(
    served: Served, uid: str, transport: str = "tcp", form: Form = Form.BINARY
) -> TestClient:
    stream = await open_stream(served, transport, text=form is Form.JSONRPC)
    return await login_over(stream, uid, form)
