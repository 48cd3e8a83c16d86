"""A gRPC client made of raw frames, to say what no real client would say."""

from __future__ import annotations

from collections.abc import Sequence

from hpack import Decoder, Encoder

from wkhost.plugin_host.grpc.frames import (
    CONTINUATION,
    DATA,
    DEFAULT_FRAME,
    FLAG_END_HEADERS,
    FLAG_END_STREAM,
    FRAME_HEADER,
    HEADERS,
    PREFACE,
    SETTINGS,
)

Headers = Sequence[tuple[str, str]]


def frame(kind: int, flags: int = 0, stream_id: int = 0, body: bytes = b"") -> bytes:
    return FRAME_HEADER.pack(len(body) >> 8, len(body) & 255, kind, flags, stream_id) + body


def message(data: bytes, compressed: int = 0) -> bytes:
    return bytes([compressed]) + len(data).to_bytes(4, "big") + data


class RawPeer:
    """Makes bytes to send; reads statuses out of what came back."""

    START = PREFACE + frame(SETTINGS)

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._decoder = Decoder()
        self._buffer = b""
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.status: dict[int, str] = {}
        self.data: dict[int, bytes] = {}

    def headers(
        self, stream_id: int, path: str, *, end: bool = False, extra: Headers = (), **changed: str
    ) -> bytes:
        """A request's HEADERS; `changed` replaces `method`, `te` or `content_type` ("" drops)."""
        fields = {":method": changed.get("method", "POST"), ":scheme": "http", ":path": path}
        fields[":authority"] = "localhost"
        fields["te"] = changed.get("te", "trailers")
        fields["content-type"] = changed.get("content_type", "application/grpc")
        block = self._encoder.encode([*((k, v) for k, v in fields.items() if v), *extra])
        pieces = [block[i : i + DEFAULT_FRAME] for i in range(0, len(block), DEFAULT_FRAME)]
        made = b""
        for number, piece in enumerate(pieces):
            flags = FLAG_END_HEADERS if number == len(pieces) - 1 else 0
            if number == 0:
                made += frame(HEADERS, flags | (FLAG_END_STREAM if end else 0), stream_id, piece)
            else:
                made += frame(CONTINUATION, flags, stream_id, piece)
        return made

    def body(self, stream_id: int, data: bytes, *, end: bool = True) -> bytes:
        """DATA frames that carry `data` as it is."""
        pieces = [data[i : i + DEFAULT_FRAME] for i in range(0, len(data), DEFAULT_FRAME)] or [b""]
        last = len(pieces) - 1
        return b"".join(
            frame(DATA, FLAG_END_STREAM if end and number == last else 0, stream_id, piece)
            for number, piece in enumerate(pieces)
        )

    def call(self, stream_id: int, path: str, data: bytes, *, end: bool = True) -> bytes:
        return self.headers(stream_id, path) + self.body(stream_id, message(data), end=end)

    def receive(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 9:
            high, low, kind, flags, stream_id = FRAME_HEADER.unpack_from(self._buffer)
            stop = 9 + (high << 8 | low)
            if len(self._buffer) < stop:
                return
            body, self._buffer = self._buffer[9:stop], self._buffer[stop:]
            self.frames.append((kind, flags, stream_id, body))
            if kind == DATA:
                self.data[stream_id] = self.data.get(stream_id, b"") + body
            elif kind == HEADERS:
                for name, value in self._decoder.decode(body, raw=True):
                    if name == b"grpc-status":
                        self.status[stream_id] = value.decode()

    def kinds(self) -> list[int]:
        return [kind for kind, *_ in self.frames]
