"""What every binary packet is made of: packet types, remaining lengths, strings.

Source: wire protocol, Binary protocol, fixed header.
"""

from __future__ import annotations

import struct

from wkhost.errors import LocalProtocolError, RemoteProtocolError
from wkhost.types import MAX_STRING_BYTES

LATEST_VERSION = 5
DEFAULT_MAX_FRAME_BYTES = 1 << 20
"""Largest accepted remaining length."""

CONNECT, CONNACK, SEND, SENDACK, RECV, RECVACK = 1, 2, 3, 4, 5, 6
PING, PONG, DISCONNECT, SUB, SUBACK, EVENT = 7, 8, 9, 10, 11, 12

PING_FRAME = b"\x70"
PONG_FRAME = b"\x80"

U16 = struct.Struct(">H")
U32 = struct.Struct(">I")
I64 = struct.Struct(">q")
U64 = struct.Struct(">Q")


def effective_version(stated: int) -> int:
    """Return the version to speak with a client that states `stated`."""
    return min(stated, LATEST_VERSION)


def encode_length(n: int) -> bytes:
    """Encode a remaining length: base 128, least significant group first, at most 4 bytes."""
    if n < 0x80:
        return bytes((n,))
    if n > 0x0FFFFFFF:
        raise LocalProtocolError(f"a frame of {n} bytes is longer than the wire can state")
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def decode_length(buf: bytes | bytearray, pos: int, max_frame_bytes: int) -> tuple[int, int] | None:
    """Decode the remaining length at `pos`: (length, position behind it), None if incomplete."""
    n = shift = 0
    for i in range(pos, min(pos + 4, len(buf))):
        byte = buf[i]
        n |= (byte & 0x7F) << shift
        if byte < 0x80:
            if n > max_frame_bytes:
                raise RemoteProtocolError(
                    f"a frame announces {n} bytes, the limit is {max_frame_bytes}"
                )
            return n, i + 1
        shift += 7
    if shift == 28:
        raise RemoteProtocolError("the remaining length takes more than 4 bytes")
    return None


def unknown_type(kind: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"packet type {kind} does not exist")


def too_short(kind: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"the body of packet type {kind} is too short")


def frame(first_byte: int, body: bytes) -> bytes:
    return bytes((first_byte,)) + encode_length(len(body)) + body


def encode_string(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError as e:
        raise LocalProtocolError(f"a string is not encodable as UTF-8: {e.reason}") from e
    if len(data) > MAX_STRING_BYTES:
        raise LocalProtocolError(
            f"a string has {len(data)} bytes, the wire allows {MAX_STRING_BYTES}"
        )
    return U16.pack(len(data)) + data


class Body:
    """A cursor over one frame's body, for the packets that are not on the hot path."""

    __slots__ = ("_buf", "_end", "_kind", "pos")

    def __init__(self, buf: bytes, pos: int, end: int, kind: int) -> None:
        self._buf = buf
        self.pos = pos
        self._end = end
        self._kind = kind

    def skip(self, n: int) -> int:
        start = self.pos
        self.pos += n
        if self.pos > self._end:
            raise too_short(self._kind)
        return start

    def byte(self) -> int:
        return self._buf[self.skip(1)]

    def number(self, form: struct.Struct) -> int:
        value: int = form.unpack_from(self._buf, self.skip(form.size))[0]
        return value

    def raw_string(self) -> bytes:
        n = self.number(U16)
        if n > MAX_STRING_BYTES:
            raise RemoteProtocolError(f"a string of {n} bytes, the limit is {MAX_STRING_BYTES}")
        start = self.skip(n)
        return self._buf[start : self.pos]

    def string(self) -> str:
        return decode_utf8(self.raw_string())

    def rest(self) -> bytes:
        return self._buf[self.pos : self._end]


def decode_utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise RemoteProtocolError(f"a string is not UTF-8: {e.reason}") from e


def next_frame(buf: bytes, pos: int, max_frame_bytes: int) -> tuple[int, int] | None:
    """Bounds of the body of the frame at `pos`: (start, end), None if it is incomplete.

    The next frame begins at `end`. Raises RemoteProtocolError for unknown types and wrong lengths.
    """
    if pos >= len(buf):
        return None
    kind = buf[pos] >> 4
    if kind in (PING, PONG):
        return pos + 1, pos + 1
    if not CONNECT <= kind <= EVENT:
        raise unknown_type(kind)
    header = decode_length(buf, pos + 1, max_frame_bytes)
    if header is None or header[0] + header[1] > len(buf):
        return None
    length, start = header
    return start, start + length
