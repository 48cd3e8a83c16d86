"""A small chat client on trio for `wkhost demo`: sends, confirms and remembers what came."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import trio

from wkhost.errors import ReasonCode, RemoteProtocolError
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.packets import Connack, Packet, Recv, Recvack, Send, Sendack

P = TypeVar("P")
TEXT_TYPE = 1
"""The `type` of a text message in its JSON payload."""
_READ_BYTES = 65536


class _Text(msgspec.Struct):
    type: int
    content: str


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one message, and how long the answer took."""

    sendack: Sendack
    seconds: float


class ChatClient:
    """One login. Not for use by two tasks at once."""

    def __init__(self, connection: ClientConnection, stream: trio.SocketStream) -> None:
        self._connection = connection
        self._stream = stream
        self._waiting: deque[Packet] = deque()
        self._last_seq = 0

    @classmethod
    async def login(cls, connection: ClientConnection, host: str, port: int) -> ChatClient:
        """Connect and log in. Raises RemoteProtocolError when the server refuses."""
        client = cls(connection, await trio.open_tcp_stream(host, port))
        await client._stream.send_all(connection.connect(time.time_ns() // 1_000_000))
        connack = await client._next(Connack)
        if connack.reason_code != ReasonCode.SUCCESS:
            raise RemoteProtocolError(f"login refused with reason {connack.reason_code}")
        return client

    @property
    def uid(self) -> str:
        return self._connection.uid

    async def send_text(self, channel_id: str, channel_type: int, text: str) -> Fate:
        """Send a text message and wait for its fate."""
        self._last_seq += 1
        packet = Send(
            client_seq=self._last_seq,
            client_msg_no=f"{self.uid}-{self._last_seq}",
            channel_id=channel_id,
            channel_type=channel_type,
            payload=msgspec.json.encode(_Text(TEXT_TYPE, text)),
        )
        began = time.perf_counter()
        await self._stream.send_all(self._connection.send(packet))
        sendack = await self._next(Sendack)
        return Fate(sendack, time.perf_counter() - began)

    async def receive_text(self) -> str:
        """Wait for the next message and confirm it."""
        recv = await self._next(Recv)
        ack = Recvack(recv.message_id, recv.message_seq, recv.flags)
        await self._stream.send_all(self._connection.recvack(ack))
        return msgspec.json.decode(recv.payload, type=_Text).content

    async def close(self) -> None:
        await self._stream.aclose()

    async def _next(self, kind: type[P]) -> P:
        """Return the next packet of `kind`; others stay in their order for later."""
        while True:
            for packet in self._waiting:
                if isinstance(packet, kind):
                    self._waiting.remove(packet)
                    return packet
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                raise RemoteProtocolError(f"the server closed the connection of {self.uid}")
            self._waiting.extend(self._connection.receive(bytes(data)))
