"""HTTP/2 frames as far as they are read and written without h2. Source: RFC 9113, section 6."""

from __future__ import annotations

from struct import Struct

from h2.settings import SettingCodes

from wkhost.plugin_host.grpc.methods import Limits

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER = Struct(">HBBBL")
"""Length (high 16 bits, low 8 bits), type, flags, stream id."""
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE = range(6)
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(6, 10)
FLAG_END_STREAM = 0x1
FLAG_ACK = 0x1
FLAG_END_HEADERS = 0x4
FLAG_PADDED = 0x8
DEFAULT_WINDOW = 65535
DEFAULT_FRAME = 16384
MAX_WINDOW = 2**31 - 1


def frame(kind: int, flags: int, stream_id: int, body: bytes) -> bytes:
    size = len(body)
    return FRAME_HEADER.pack(size >> 8, size & 255, kind, flags, stream_id) + body


def window_frame(stream_id: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def reset_frame(stream_id: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def ping_ack_frame(payload: bytes) -> bytes:
    return frame(PING, FLAG_ACK, 0, payload)


def goaway_frame(last_stream: int, code: int, text: str) -> bytes:
    body = last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + text.encode()[:128]
    return frame(GOAWAY, 0, 0, body)


def preamble(limits: Limits) -> bytes:
    """Our SETTINGS, and the connection window raised from its default."""
    values = (
        (SettingCodes.MAX_CONCURRENT_STREAMS, limits.max_streams),
        (SettingCodes.INITIAL_WINDOW_SIZE, limits.stream_window),
        (SettingCodes.MAX_HEADER_LIST_SIZE, limits.max_header_bytes),
    )
    body = b"".join(int(k).to_bytes(2, "big") + v.to_bytes(4, "big") for k, v in values)
    settings = frame(SETTINGS, 0, 0, body)
    return settings + window_frame(0, limits.connection_window - DEFAULT_WINDOW)
