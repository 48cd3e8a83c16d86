"""Connections that log in and then say nothing, over each transport."""

from __future__ import annotations

import socket
import ssl
from functools import cache
from time import time
from typing import Protocol

from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from wkhost.bench.errors import BenchError
from wkhost.bench.peers import LOGIN_TIMEOUT_S, check_connack, connected
from wkhost.errors import RemoteProtocolError
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.packets import Packet, Pong

_READ_BYTES = 16 * 1024


class Wire(Protocol):
    """A blocking connection that carries protocol bytes."""

    def send(self, data: bytes) -> None: ...

    def receive(self) -> bytes:
        """Return what came, empty at the end."""

    def close(self) -> None: ...


class TcpWire:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def receive(self) -> bytes:
        return self._sock.recv(_READ_BYTES)

    def close(self) -> None:
        self._sock.close()


class WebSocketWire:
    """WebSocket over a socket, plain or TLS. Raises WebSocketException from its handshake."""

    def __init__(self, sock: socket.socket, uri: str) -> None:
        self._sock = sock
        self._protocol = ClientProtocol(parse_uri(uri))
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        while self._protocol.state is not OPEN:
            self._pull()
            if self._protocol.handshake_exc is not None:
                raise self._protocol.handshake_exc

    def send(self, data: bytes) -> None:
        self._protocol.send_binary(data)
        self._flush()

    def receive(self) -> bytes:
        while True:
            for event in self._protocol.events_received():
                if isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                    return bytes(event.data)
            if not self._pull():
                return b""

    def close(self) -> None:
        self._sock.close()

    def _pull(self) -> bool:
        data = self._sock.recv(_READ_BYTES)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._flush()
        return bool(data)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._sock.sendall(data)


class SilentUser:
    """A user that has logged in over a wire of its own. Raises BenchError when it cannot."""

    def __init__(self, transport: str, address: tuple[str, int], uid: str) -> None:
        self._uid = uid
        self._conn = ClientConnection(uid, device_id=uid)
        sock = connected(address)
        try:
            self._wire = _wire(transport, sock, address)
            check_connack(uid, self._ask(self._conn.connect(int(time() * 1000))))
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError | RemoteProtocolError | WebSocketException):
                raise BenchError(f"{uid}: the login over {transport} failed: {error}") from error
            raise

    def answers_ping(self) -> bool:
        """Whether the server still has this connection."""
        try:
            packets = self._ask(self._conn.ping())
        except (OSError, RemoteProtocolError, WebSocketException, BenchError):
            return False
        return isinstance(packets[0], Pong)

    def close(self) -> None:
        self._wire.close()

    def _ask(self, data: bytes) -> list[Packet]:
        """Send, and return the packets that come next, at least one."""
        self._wire.send(data)
        packets: list[Packet] = []
        while not packets:
            read = self._wire.receive()
            if not read:
                raise BenchError(f"{self._uid}: the server closed the connection")
            packets = self._conn.receive(read)
        return packets


def _wire(transport: str, sock: socket.socket, address: tuple[str, int]) -> Wire:
    if transport == "tcp":
        return TcpWire(sock)
    if transport == "wss":
        sock = _context().wrap_socket(sock)
        sock.settimeout(LOGIN_TIMEOUT_S)
    return WebSocketWire(sock, f"{transport}://{address[0]}:{address[1]}/")


@cache
def _context() -> ssl.SSLContext:
    """Return the one context of this process; the certificate is our own and not looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
