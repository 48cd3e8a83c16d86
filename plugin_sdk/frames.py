"""HTTP/2 frames and gRPC headers as a client writes and reads them. Source: RFC 9113, section 6,
and the gRPC-over-HTTP/2 protocol description."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from urllib.parse import unquote

from plugin_sdk.version import VERSION

Headers = tuple[tuple[bytes, bytes], ...]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER = Struct(">HBBBL")
"""Length (high 16 bits, low 8 bits), type, flags, stream id."""
MESSAGE_PREFIX = Struct(">BL")
"""Compressed or not, length."""
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE = range(6)
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(6, 10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20
MAX_FRAME = 16384
"""Longest frame body that we announce nothing else for."""
DEFAULT_WINDOW = 65535
MAX_WINDOW = 2**31 - 1
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5
NO_ERROR, REFUSED_STREAM, CANCEL = 0x0, 0x7, 0x8

STATUS_NAMES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
    *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    "UNAUTHENTICATED",
)
"""By the number on the wire."""


class WireError(Exception):
    """The peer broke the rules of HTTP/2 or gRPC; the connection is of no more use."""


def frame(kind: int, flags: int, stream_id: int, body: bytes) -> bytes:
    size = len(body)
    return FRAME_HEADER.pack(size >> 8, size & 255, kind, flags, stream_id) + body


def window_frame(stream_id: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def preamble(stream_window: int, connection_window: int) -> bytes:
    """What a client says first: our windows, and that nothing is to be pushed."""
    values = ((ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, stream_window))
    body = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in values)
    raised = window_frame(0, connection_window - DEFAULT_WINDOW)
    return PREFACE + frame(SETTINGS, 0, 0, body) + raised


def request_headers(path: str, timeout_s: int = 0) -> Headers:
    """The headers of a call; `timeout_s` 0 is no deadline."""
    headers = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", f"wkhost-plugin-sdk/{VERSION}".encode()),
    )
    return (*headers, (b"grpc-timeout", b"%dS" % timeout_s)) if timeout_s else headers


def unpadded(flags: int, body: bytes) -> bytes:
    """Return the body of a DATA or HEADERS frame without padding and priority."""
    start, stop = 0, len(body)
    if flags & PADDED:
        if not body or body[0] >= stop:
            raise WireError("padding exceeds its frame")
        start, stop = 1, stop - body[0]
    if flags & HAS_PRIORITY:
        start += 5
    if start > stop:
        raise WireError("a frame is too short for its flags")
    return body[start:stop]


def read_settings(body: bytes) -> Iterable[tuple[int, int]]:
    if len(body) % 6:
        raise WireError("SETTINGS of an odd length")
    for at in range(0, len(body), 6):
        yield int.from_bytes(body[at : at + 2], "big"), int.from_bytes(body[at + 2 : at + 6], "big")


def read_status(headers: dict[bytes, bytes]) -> tuple[str, str]:
    """Return the name and the text of the status that trailers carry."""
    raw = headers.get(b"grpc-status")
    if raw is None:
        http = headers.get(b":status", b"").decode("ascii", "replace")
        return "UNKNOWN", f"no grpc-status; HTTP status {http or 'unknown'}"
    number = int(raw) if raw.isdigit() else 2
    name = STATUS_NAMES[number] if number < len(STATUS_NAMES) else "UNKNOWN"
    return name, unquote(headers.get(b"grpc-message", b"").decode("ascii", "replace"))
