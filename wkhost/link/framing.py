"""The link's frames: bytes <-> batches of numbered requests or answers. No sockets here.

A frame is a u32 length (big endian) and that many bytes of msgpack. The first frame each way is the
handshake (`Hello`, then `Welcome` or `Error`); every later one is an array of (id, struct) pairs,
requests from the client and answers from the server, in any order. Ids are the client's choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Generic, TypeVar

import msgspec

from wkhost.link.contract import LINK_PROTOCOL, Error, Request, Response
from wkhost.link.errors import LinkProtocolError, LinkRefusedError

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Longest body of a frame, in both directions."""
BATCH_BYTES = 256 * 1024
"""A batch is closed at this size, so that no end works on one for long; one longer item still
travels alone."""
MAX_HELLO_BYTES = 4096
"""Longest body of the client's first frame: its peer is not yet known."""
_BATCH_HEAD_BYTES = 5
MAX_ITEM_BYTES = MAX_FRAME_BYTES - _BATCH_HEAD_BYTES
"""Longest encoded (id, struct) pair: a batch of one."""

_LENGTH = Struct(">I")
_HEADS = Struct(">IBI")
_MSGPACK_ARRAY32 = 0xDD

_T = TypeVar("_T")


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The client's first frame. `token` proves the role where the role needs a proof."""

    protocol: int
    role: str
    token: str = ""


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """The server's first frame to an accepted peer."""

    protocol: int


_encoder = msgspec.msgpack.Encoder()
_hello_decoder = msgspec.msgpack.Decoder(Hello)
_welcome_decoder: msgspec.msgpack.Decoder[Welcome | Error] = msgspec.msgpack.Decoder(
    Welcome | Error
)


class FrameReader:
    """Cuts a byte stream into frame bodies, however the stream is chunked."""

    __slots__ = ("_buffer", "max_body_bytes")

    def __init__(self, max_body_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self.max_body_bytes = max_body_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Return the bodies that `data` completes, in order; may be empty.

        Raises: LinkProtocolError when a frame announces more than `max_body_bytes`.
        """
        buffer = self._buffer
        buffer += data
        bodies: list[bytes] = []
        start, end = 0, len(buffer)
        while end - start >= 4:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > self.max_body_bytes:
                raise LinkProtocolError(
                    f"a frame of {length} bytes is longer than the {self.max_body_bytes} allowed"
                )
            stop = start + 4 + length
            if stop > end:
                break
            bodies.append(bytes(buffer[start + 4 : stop]))
            start = stop
        if start:
            del buffer[:start]
        return bodies


class BatchDecoder(Generic[_T]):
    """Decodes the bodies of batch frames into (id, struct) pairs."""

    __slots__ = ("_decode",)

    def __init__(self, item_type: object) -> None:
        self._decode: msgspec.msgpack.Decoder[list[tuple[int, _T]]] = msgspec.msgpack.Decoder(
            list[tuple[int, item_type]]  # type: ignore[valid-type]
        )

    def decode(self, body: bytes) -> list[tuple[int, _T]]:
        """Raises: LinkProtocolError when the body is not a batch of this decoder's structs."""
        try:
            return self._decode.decode(body)
        except msgspec.MsgspecError as error:
            raise LinkProtocolError(f"a batch cannot be read: {error}") from error


def request_decoder() -> BatchDecoder[Request]:
    return BatchDecoder(Request)


def response_decoder() -> BatchDecoder[Response]:
    return BatchDecoder(Response)


def encode_item(number: int, item: Request | Response) -> bytes:
    """Encode one pair. At most `MAX_ITEM_BYTES` of it fit a frame; the caller looks."""
    return _encoder.encode((number, item))


def pack_batches(items: Iterable[bytes]) -> bytes:
    """Join encoded pairs into frames of at most `BATCH_BYTES`, or of one pair."""
    frames: list[bytes] = []
    batch: list[bytes] = []
    size = _BATCH_HEAD_BYTES
    for item in items:
        if size + len(item) > BATCH_BYTES and batch:
            frames += (_HEADS.pack(size, _MSGPACK_ARRAY32, len(batch)), *batch)
            batch, size = [], _BATCH_HEAD_BYTES
        batch.append(item)
        size += len(item)
    if batch:
        frames += (_HEADS.pack(size, _MSGPACK_ARRAY32, len(batch)), *batch)
    return b"".join(frames)


def pack_handshake(message: Hello | Welcome | Error) -> bytes:
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def read_hello(body: bytes) -> Hello:
    """Raises: LinkProtocolError when the body is no `Hello`."""
    try:
        return _hello_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise LinkProtocolError(f"the handshake cannot be read: {error}") from error


def check_welcome(body: bytes) -> None:
    """Raises: LinkRefusedError with the server's reason; LinkProtocolError when it is neither."""
    try:
        answer = _welcome_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise LinkProtocolError(f"the handshake cannot be read: {error}") from error
    if isinstance(answer, Error):
        raise LinkRefusedError(answer.text)
    if answer.protocol != LINK_PROTOCOL:
        raise LinkProtocolError(
            f"the server speaks link protocol {answer.protocol}, expected {LINK_PROTOCOL}"
        )
