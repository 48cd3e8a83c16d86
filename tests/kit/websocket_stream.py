"""A WebSocket as a trio stream, by the sans-IO half of the websockets library."""

from __future__ import annotations

import ssl
from collections import deque
from typing import Self

import trio
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

READ_BYTES = 65536


class WebSocketStream(trio.abc.Stream):
    """Each `send_all` is one message; `receive_some` returns whole messages, b"" at the end.

    `opcodes` collects what kinds of messages came.
    """

    def __init__(self, stream: trio.abc.Stream, protocol: ClientProtocol, *, text: bool) -> None:
        self._stream = stream
        self._protocol = protocol
        self._text = text
        self._messages: deque[bytes] = deque()
        self._answered = False
        self._ended = False
        self.opcodes: set[Opcode] = set()

    @classmethod
    async def open(
        cls, address: tuple[str, int], *, text: bool = False, tls: ssl.SSLContext | None = None
    ) -> Self:
        """Connect; sends binary messages unless `text`. Raises InvalidHandshake."""
        host, port = address
        stream: trio.abc.Stream = await trio.open_tcp_stream(host, port)
        if tls is not None:
            stream = trio.SSLStream(stream, tls, https_compatible=True)
        uri = parse_uri(f"{'wss' if tls else 'ws'}://{host}:{port}/any/path")
        self = cls(stream, ClientProtocol(uri, max_size=None), text=text)
        self._protocol.send_request(self._protocol.connect())
        await self._flush()
        while self._protocol.handshake_exc is None and not self._answered:
            await self._read()
        if self._protocol.handshake_exc is not None:
            raise InvalidHandshake(str(self._protocol.handshake_exc))
        return self

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._text:
            self._protocol.send_text(bytes(data))
        else:
            self._protocol.send_binary(bytes(data))
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while not self._messages:
            if self._ended:
                return b""
            await self._read()
        return self._messages.popleft()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                await self._stream.send_all(data)

    async def _read(self) -> None:
        data = await self._stream.receive_some(READ_BYTES)
        if data:
            self._protocol.receive_data(bytes(data))
        else:
            self._protocol.receive_eof()
            self._ended = True
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._answered = True
            elif isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY):
                assert event.fin, "the server never fragments"
                self.opcodes.add(event.opcode)
                self._messages.append(bytes(event.data))
        if not self._ended:
            await self._flush()
