"""A client for tests: `ClientConnection` on a trio stream, one request at a time.

Deadlines are the caller's: `with trio.fail_after(5): await client.recv()`.
"""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Self, TypeVar

import trio

from wkhost.protocol.client import ClientConnection
from wkhost.protocol.connection import Form
from wkhost.protocol.packets import (
    Connack,
    Disconnect,
    Event,
    Packet,
    Pong,
    Recv,
    Recvack,
    Send,
    Sendack,
    Sub,
    Suback,
)

P = TypeVar("P", bound=Packet)
READ_BYTES = 65536


class ConnectionLostError(Exception):
    """The server closed while the test still waited for a packet."""


class TestClient:
    """One connection. Packets that a call does not wait for stay queued for the call that does."""

    __test__ = False

    def __init__(self, stream: trio.abc.Stream, conn: ClientConnection) -> None:
        self.conn = conn
        self.stream = stream
        self._queue: deque[Packet] = deque()
        self._client_seq = 0

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        uid: str,
        token: str = "",
        *,
        device_id: str = "test-device",
        device_flag: int = 1,
        version: int = 5,
        form: Form = Form.BINARY,
    ) -> Self:
        """Connect and log in; `connack` has the verdict, refusals included."""
        stream = await trio.open_tcp_stream(host, port)
        return await cls.over(
            stream,
            uid,
            token,
            device_id=device_id,
            device_flag=device_flag,
            version=version,
            form=form,
        )

    @classmethod
    async def over(
        cls,
        stream: trio.abc.Stream,
        uid: str,
        token: str = "",
        *,
        device_id: str = "test-device",
        device_flag: int = 1,
        version: int = 5,
        form: Form = Form.BINARY,
    ) -> Self:
        """Log in over a stream that is open already, such as a WebSocket."""
        conn = ClientConnection(
            uid,
            token,
            device_id=device_id,
            device_flag=device_flag,
            version=version,
            form=form,
        )
        client = cls(stream, conn)
        try:
            await stream.send_all(conn.connect(int(time.time() * 1000)))
            await client._wait(Connack)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return client

    @property
    def connack(self) -> Connack:
        assert self.conn.connack is not None
        return self.conn.connack

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self.stream.aclose()

    async def write(self, data: bytes) -> None:
        """Write raw bytes, for tests of bad input."""
        await self.stream.send_all(data)

    async def post(
        self,
        channel_id: str,
        channel_type: int,
        payload: bytes,
        *,
        client_msg_no: str = "",
        flags: int = 0,
        setting: int = 0,
        expire: int = 0,
        topic: str = "",
    ) -> int:
        """Send without waiting; returns the client_seq for `sendack`."""
        self._client_seq += 1
        packet = Send(
            client_seq=self._client_seq,
            client_msg_no=client_msg_no or f"{self.conn.uid}-{self._client_seq}",
            channel_id=channel_id,
            channel_type=channel_type,
            payload=payload,
            flags=flags,
            setting=setting,
            expire=expire,
            topic=topic,
        )
        await self.stream.send_all(self.conn.send(packet))
        return self._client_seq

    async def sendack(self, client_seq: int) -> Sendack:
        """Wait for the answer of one SEND."""
        while True:
            for i, packet in enumerate(self._queue):
                if isinstance(packet, Sendack) and packet.client_seq == client_seq:
                    del self._queue[i]
                    return packet
            await self._read()

    async def send(
        self,
        channel_id: str,
        channel_type: int,
        payload: bytes,
        *,
        client_msg_no: str = "",
        flags: int = 0,
        setting: int = 0,
        expire: int = 0,
        topic: str = "",
    ) -> Sendack:
        """Send and wait for the answer."""
        client_seq = await self.post(
            channel_id,
            channel_type,
            payload,
            client_msg_no=client_msg_no,
            flags=flags,
            setting=setting,
            expire=expire,
            topic=topic,
        )
        return await self.sendack(client_seq)

    async def recv(self, *, ack: bool = True) -> Recv:
        """Wait for the next message; acknowledged as the official clients do unless told not to."""
        packet = await self._wait(Recv)
        if ack:
            await self.recvack(packet)
        return packet

    async def recvack(self, packet: Recv) -> None:
        recvack = Recvack(packet.message_id, packet.message_seq, packet.flags)
        await self.stream.send_all(self.conn.recvack(recvack))

    async def ping(self) -> None:
        """Ping and wait for the pong."""
        await self.stream.send_all(self.conn.ping())
        await self._wait(Pong)

    async def subscribe(self, packet: Sub) -> Suback:
        await self.stream.send_all(self.conn.subscribe(packet))
        return await self._wait(Suback)

    async def event(self) -> Event:
        return await self._wait(Event)

    async def disconnected(self) -> Disconnect:
        """Wait for a DISCONNECT."""
        return await self._wait(Disconnect)

    async def wait_closed(self) -> list[Packet]:
        """Wait until the server closes; returns the packets that nobody took."""
        while True:
            try:
                await self._read()
            except ConnectionLostError:
                return list(self._queue)

    async def _wait(self, kind: type[P]) -> P:
        while True:
            for i, packet in enumerate(self._queue):
                if isinstance(packet, kind):
                    del self._queue[i]
                    return packet
            await self._read()

    async def _read(self) -> None:
        try:
            data = await self.stream.receive_some(READ_BYTES)
        except trio.BrokenResourceError as e:
            raise ConnectionLostError("the server reset the connection") from e
        if not data:
            raise ConnectionLostError("the server closed the connection")
        self._queue.extend(self.conn.receive(bytes(data)))
