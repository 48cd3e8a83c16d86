"""Header blocks of answers: literals that no table is needed for, so equal answers are equal bytes.

Source: RFC 7541, sections 5.1, 5.2 and 6.2.2.
"""

from __future__ import annotations

from wkhost.plugin_host.grpc.frames import (
    FLAG_END_HEADERS,
    FLAG_END_STREAM,
    HEADERS,
    frame,
)
from wkhost.plugin_host.grpc.status import StatusCode, encode_message


def _string(value: bytes) -> bytes:
    length = len(value)
    if length < 127:
        return bytes((length,)) + value
    head = bytearray((127,))
    length -= 127
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + value


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + _string(name) + _string(value)


def _response(http_status: int) -> bytes:
    return (
        _literal(b":status", b"%d" % http_status)
        + _literal(b"content-type", b"application/grpc")
        + _literal(b"grpc-accept-encoding", b"identity")
    )


RESPONSE = _response(200)
_OK = _literal(b"grpc-status", b"0")


def trailers(code: StatusCode, message: str) -> bytes:
    """The block that ends an answer."""
    if code == StatusCode.OK and not message:
        return _OK
    block = _literal(b"grpc-status", b"%d" % code)
    if message:
        block += _literal(b"grpc-message", encode_message(message))
    return block


def trailers_only(code: StatusCode, message: str, http_status: int) -> bytes:
    """The block of an answer that has nothing but its status."""
    return _response(http_status) + trailers(code, message)


def headers_frame(stream_id: int, block: bytes, *, end: bool) -> bytes:
    """One HEADERS frame; what is made here is far below any frame limit."""
    flags = FLAG_END_HEADERS | FLAG_END_STREAM if end else FLAG_END_HEADERS
    return frame(HEADERS, flags, stream_id, block)
