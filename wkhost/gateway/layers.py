"""What may stand between a socket and the protocol: TLS and WebSocket, without I/O.

A plain TCP connection has no layer at all. A layer is fed what the socket gave and returns what
the protocol is to see; what the layer itself has to say (handshake, pong, close) is left in
`reply`, already in the form the socket wants, and must be written before anything wrapped later.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from typing import Protocol as TypingProtocol

from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN, SERVER, Protocol
from websockets.server import ServerProtocol

from wkhost.errors import RemoteProtocolError

BINARY_HEAD = 0x82
TEXT_HEAD = 0x81
_SHORT_HEADS = {head: [bytes((head, n)) for n in range(126)] for head in (BINARY_HEAD, TEXT_HEAD)}
_CLOSE_NORMAL = b"\x88\x02\x03\xe8"
"""A server's close frame with status 1000."""
_TLS_READ_BYTES = 64 * 1024

_quiet = logging.getLogger("wkhost.gateway.websocket")
_quiet.setLevel(logging.ERROR)


class Layer(TypingProtocol):
    """See the module's text. `handshaking` holds until `receive` may return protocol bytes;
    `ended` means that nothing may be sent any more once `reply` is written."""

    reply: bytes

    @property
    def handshaking(self) -> bool: ...

    @property
    def ended(self) -> bool: ...

    @property
    def forwarded(self) -> tuple[str, int] | None:
        """The client's address, when a proxy in front has stated it."""
        ...

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the socket. Raises RemoteProtocolError; `reply` may be set even then."""
        ...

    def wrap(self, frames: Sequence[bytes], *, text: bool) -> bytes:
        """Encode whole protocol frames for the socket. Raises RemoteProtocolError if it cannot."""
        ...

    def farewell(self) -> bytes:
        """What an orderly end looks like on the socket."""
        ...


class WebSocketLayer:
    """A WebSocket server: any path, no subprotocol, no compression.

    Frames come in through the library. They go out with a header made here: one line instead of a
    Frame object each (0.16 against 1.1 µs).
    """

    __slots__ = ("_max_bytes", "_protocol", "ended", "forwarded", "handshaking", "reply")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._protocol: Protocol = ServerProtocol(max_size=max_bytes, logger=_quiet)
        self.reply = b""
        self.handshaking = True
        self.ended = False
        self.forwarded: tuple[str, int] | None = None

    def receive(self, data: bytes) -> bytes:
        protocol = self._protocol
        protocol.receive_data(data)
        parts: list[bytes | bytearray | memoryview] = []
        for event in protocol.events_received():
            if isinstance(event, Request):
                self._shake_hands(event)
            elif isinstance(event, Frame) and event.opcode <= Opcode.BINARY:
                parts.append(event.data)
        for out in protocol.data_to_send():
            if out:
                self.reply += out
            else:
                self.ended = True
        if self.handshaking and not self.ended and protocol.state is OPEN:
            self.handshaking = False
            if data.endswith(b"\r\n\r\n"):
                # Nothing follows the request, so its parser and headers can go: 4.0 -> 1.6 KiB.
                self._protocol = Protocol(
                    SERVER, state=OPEN, max_size=self._max_bytes, logger=_quiet
                )
        return b"".join(parts)

    def _shake_hands(self, request: Request) -> None:
        protocol = self._protocol
        assert isinstance(protocol, ServerProtocol)
        if protocol.eof_sent:
            # The library reads on behind the request and has given up on what it found there.
            self.ended = True
            raise RemoteProtocolError("what follows the WebSocket request is no frame")
        protocol.send_response(protocol.accept(request))
        self.forwarded = _forwarded_peer(request)

    def wrap(self, frames: Sequence[bytes], *, text: bool) -> bytes:
        head = TEXT_HEAD if text else BINARY_HEAD
        short_heads = _SHORT_HEADS[head]
        parts = []
        for frame in frames:
            n = len(frame)
            if n < 126:
                parts.append(short_heads[n])
            elif n < 65536:
                parts.append(bytes((head, 126, n >> 8, n & 255)))
            else:
                parts.append(bytes((head, 127)) + n.to_bytes(8, "big"))
            parts.append(frame)
        return b"".join(parts)

    def farewell(self) -> bytes:
        return b"" if self.ended or self.handshaking else _CLOSE_NORMAL


class TlsLayer:
    """TLS over memory buffers, with another layer inside."""

    __slots__ = ("_incoming", "_inner", "_outgoing", "_secured", "_tls", "ended", "reply")

    def __init__(self, context: ssl.SSLContext, inner: WebSocketLayer) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._inner = inner
        self._secured = False
        self.reply = b""
        self.ended = False

    @property
    def handshaking(self) -> bool:
        return self._inner.handshaking

    @property
    def forwarded(self) -> tuple[str, int] | None:
        """Always None: TLS ends here, so no proxy could have added a header."""
        return None

    def receive(self, data: bytes) -> bytes:
        self._incoming.write(data)
        try:
            if not self._secured:
                self._tls.do_handshake()
                self._secured = True
            return self._read()
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as e:
            self.ended = True
            raise RemoteProtocolError(f"TLS: {e.reason or e}") from e
        finally:
            self.reply += self._outgoing.read()

    def _read(self) -> bytes:
        read = self._tls.read
        inner = self._inner
        parts: list[bytes] = []
        try:
            while plain := read(_TLS_READ_BYTES):
                parts.append(inner.receive(plain))
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        if inner.reply:
            reply, inner.reply = inner.reply, b""
            self._write(reply)
        self.ended = self.ended or inner.ended
        return b"".join(parts)

    def wrap(self, frames: Sequence[bytes], *, text: bool) -> bytes:
        return self._seal(self._inner.wrap(frames, text=text))

    def farewell(self) -> bytes:
        plain = self._inner.farewell()
        return self._seal(plain) if plain and not self.ended else b""

    def _seal(self, plain: bytes) -> bytes:
        try:
            self._write(plain)
        except ssl.SSLError as e:
            raise RemoteProtocolError(f"TLS: {e.reason or e}") from e
        return self._outgoing.read()

    def _write(self, plain: bytes) -> None:
        write = self._tls.write
        sent = write(plain)
        while sent < len(plain):  # OpenSSL may stop after each record of 16 KiB
            sent += write(memoryview(plain)[sent:])


def _forwarded_peer(request: Request) -> tuple[str, int] | None:
    """The client's address as a proxy states it. Source: wire protocol, Transport."""
    try:
        headers = request.headers
        host = headers.get("X-Forwarded-For", "").split(",")[0].strip()
        host = host or headers.get("X-Real-IP", "").strip()
        port = headers.get("X-Real-Port", "").strip()
    except WebSocketException:  # a header given twice says nothing reliable
        return None
    if not host or len(host) > 255:
        return None
    return host, int(port) if port.isdecimal() and len(port) <= 5 else 0
